"""The networks of the AdaNAT repository, and the tokenizer as others publish it.

Sizes as in ``configs/`` of the official repository: ImageNet 256×256 (AdaNAT-L) and CC3M. Head
count and text length leave no trace in the shapes, so other sizes need ``--config``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from fewstep.export.models import PolicyNet, UViT, VQModel
from fewstep.export.parts import Kind, Part, Preset
from fewstep.export.wrappers import Wanted


def open_muse_name(key: str) -> str:
    """The key under which ``maskgit-vqgan-imagenet-f16-256.bin`` has a tensor of the VQGAN.

    As in ``muse/modeling_maskgit_vqgan.py`` of huggingface/open-muse: its middle is a list, and
    the convolution after a doubling has no module around it.
    """
    middle = re.sub(r"\.mid\.block_(\d+)\.", lambda found: f".mid.{int(found[1]) - 1}.", key)
    return middle.replace(".upsample.conv.", ".upsample_conv.")


PARTS: Mapping[Kind, Part] = {
    UViT: Part(
        "transformer (U-ViT)",
        "--transformer",
        sizes=(
            Preset(
                "AdaNAT-L, ImageNet 256×256",
                {"embed_dim": 768, "depth": 24, "num_heads": 8, "num_classes": 1001},
            ),
            Preset(
                "AdaNAT, CC3M 256×256",
                {
                    "embed_dim": 1152,
                    "depth": 28,
                    "num_heads": 16,
                    "clip_dim": 1280,
                    "num_clip_token": 77,
                },
            ),
        ),
        settings=(
            "embed_dim",
            "depth",
            "num_heads",
            "mlp_ratio",
            "qkv_bias",
            "qk_scale",
            "clip_dim",
            "num_clip_token",
            "codebook_size",
        ),
    ),
    PolicyNet: Part(
        "policy network",
        "--policy",
        sizes=(
            Preset("AdaNAT-L policy, ImageNet", {"in_channels": 768, "hidden_size": 512}),
            Preset("AdaNAT policy, CC3M", {"in_channels": 1152, "hidden_size": 512}),
        ),
        settings=("in_channels", "out_channels", "hidden_size", "grid_size"),
        rules=Wanted(
            frozenset(),
            preferred=("policy_old.actor", "actor"),
            avoided=r"(^|\.)critic$",
            bare_note="its file says nothing of itself, as AdaGen's do; fewstep export adanat "
            "takes it for AdaNAT's, fewstep export adagen for AdaGen's",
        ),
    ),
    VQModel: Part(
        "tokenizer (VQGAN)",
        "--tokenizer",
        sizes=(
            Preset(
                "MaskGIT VQGAN f16, 1024 codes",
                {
                    "ddconfig": {
                        "double_z": False,
                        "z_channels": 256,
                        "resolution": 256,
                        "in_channels": 3,
                        "out_ch": 3,
                        "ch": 128,
                        "ch_mult": [1, 1, 2, 2, 4],
                        "num_res_blocks": 2,
                        "attn_resolutions": [16],
                        "dropout": 0.0,
                    },
                    "n_embed": 1024,
                    "embed_dim": 256,
                },
            ),
        ),
        settings=("ddconfig", "n_embed", "embed_dim"),
        settings_beside="ddconfig",
        other_name=open_muse_name,
        other_system="open-muse",
        rules=Wanted(
            frozenset(),
            unused=("encoder.", "quant_conv."),
            # Statistics of codes, of taming-transformers, LlamaGen and others.
            beside=r"^quantize\.(.*\.)?(cluster_size|embed_avg|ema_\w+|codebook_used|initt?ed)$",
        ),
    ),
}
"""By the class of the network."""
