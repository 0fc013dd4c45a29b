"""The networks of a masked token model as files have them: their names, and what is beside them."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

from torch import nn

from fewstep.export.models import PolicyNet, UViT, VQModel
from fewstep.export.wrappers import Wanted


@dataclass(frozen=True)
class Part:
    """How one class of network is published.

    Args:
        title: what it is called.
        option: how its file is passed.
        settings: constructor arguments that a checkpoint may state, and that must then agree.
            Others share their names with settings of training scripts.
        settings_beside: a name without which the file's settings are another network's.
        other_name: the key under which another system has a tensor.
        other_system: that system.
        rules: what to look for besides keys.
    """

    title: str
    option: str
    settings: tuple[str, ...] = ()
    settings_beside: str = ""
    other_name: Callable[[str], str] = str
    other_system: str = ""
    rules: Wanted = Wanted(frozenset())

    def wanted(self, keys: Collection[str]) -> Wanted:
        """What to look for, of a model whose state dict has ``keys``."""
        exported = frozenset(key for key in keys if not key.startswith(self.rules.unused))
        aliases = {name: key for key in exported if (name := self.other_name(key)) != key}
        return replace(self.rules, keys=exported, aliases=aliases, alias_of=self.other_system)


def open_muse_name(key: str) -> str:
    """The key under which ``maskgit-vqgan-imagenet-f16-256.bin`` has a tensor of the VQGAN.

    As in ``muse/modeling_maskgit_vqgan.py`` of huggingface/open-muse: its middle is a list, and
    the convolution after a doubling has no module around it.
    """
    middle = re.sub(r"\.mid\.block_(\d+)\.", lambda found: f".mid.{int(found[1]) - 1}.", key)
    return middle.replace(".upsample.conv.", ".upsample_conv.")


PARTS: Mapping[Callable[..., nn.Module], Part] = {
    UViT: Part(
        "transformer (U-ViT)",
        "--transformer",
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
        settings=("in_channels", "out_channels", "hidden_size", "grid_size"),
        rules=Wanted(
            frozenset(),
            preferred=("policy_old.actor", "actor"),
            avoided=r"(^|\.)critic$",
            bare_note="read as AdaNAT's; AdaGen's files look the same, but their actions are "
            "smoothed over the steps, which is not supported yet",
        ),
    ),
    VQModel: Part(
        "tokenizer (VQGAN)",
        "--tokenizer",
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
