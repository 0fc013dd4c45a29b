"""Halton-MaskGIT's networks, in the sizes that its authors publish them.

Sizes as in ``Trainer/abstract_trainer.py`` and the README of the official repository. The tokenizer
is LlamaGen's. Nothing in the shapes says how many heads there are, except in the small one, or
whether codes are brought to length 1.
"""

from __future__ import annotations

from collections.abc import Mapping

from fewstep.export.models.halton_transformer import HaltonTransformer
from fewstep.export.models.halton_vq import LlamaGenVQ
from fewstep.export.parts import Kind, Part, Preset
from fewstep.export.wrappers import Wanted

_PUBLISHED_CODES = 16384
_WIDTH_DEPTH_HEADS = {
    "tiny": (384, 6, 6),
    "small": (512, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
}


def _size(name: str, pixels: int) -> Preset:
    width, depth, heads = _WIDTH_DEPTH_HEADS[name]
    return Preset(
        f"Halton-MaskGIT {name}, ImageNet {pixels}×{pixels}",
        {
            "input_size": pixels // 16,
            "hidden_dim": width,
            "codebook_size": _PUBLISHED_CODES,
            "depth": depth,
            "heads": heads,
            "mlp_dim": 4 * width,
        },
    )


PARTS: Mapping[Kind, Part] = {
    HaltonTransformer: Part(
        "Halton-MaskGIT transformer",
        "--transformer",
        sizes=(
            *(_size(name, 256) for name in ("tiny", "small", "base")),
            *(_size(name, 384) for name in ("small", "base", "large")),
        ),
        form="halton",
        settings=("hidden_dim", "codebook_size", "mlp_dim", "nclass", "register", "proj"),
    ),
    LlamaGenVQ: Part(
        "LlamaGen tokenizer",
        "--tokenizer",
        sizes=(Preset("LlamaGen VQ-16, 16384 codes", {}),),
        form="halton",
        settings=(
            "codebook_size",
            "codebook_embed_dim",
            "codebook_l2_norm",
            "encoder_ch_mult",
            "decoder_ch_mult",
            "z_channels",
        ),
        settings_beside="codebook_embed_dim",
        rules=Wanted(
            frozenset(),
            unused=("encoder.", "quant_conv."),
            beside=r"^quantize\.codebook_used$",  # where codebook_show_usage is false
        ),
    ),
}
"""By the class of the network."""
