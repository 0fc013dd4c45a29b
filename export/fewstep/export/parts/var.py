"""VAR's networks, and AdaGen's policies for them.

Sizes as the VAR repository publishes them: depth d, width 64·d, d heads; the 512-pixel model has
scales of its own and shares its modulation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fewstep.export.models.policy import PolicyNet
from fewstep.export.models.var import VAR
from fewstep.export.models.var_vae import VQVAE
from fewstep.export.parts import Kind, Part, Preset

_512 = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)


@dataclass(frozen=True)
class Codebook:
    """Size of a tokenizer's codebook, in the official names."""

    vocab_size: int = 4096
    Cvae: int = 32


class AdaGenPolicy(PolicyNet):
    """AdaGen's policy network: key for key AdaNAT's."""


def _size(depth: int, pixels: int = 256, **more: Any) -> Preset:
    arguments = {
        "vae_local": Codebook(),
        "depth": depth,
        "embed_dim": 64 * depth,
        "num_heads": depth,
        "attn_l2_norm": True,
    }
    return Preset(f"VAR-d{depth}, ImageNet {pixels}×{pixels}", arguments | more)


PARTS: Mapping[Kind, Part] = {
    VAR: Part(
        "VAR transformer",
        "--transformer",
        sizes=(
            *(_size(depth) for depth in (16, 20, 24, 30)),
            _size(36, 512, patch_nums=_512, shared_aln=True),
        ),
        form="var",
    ),
    VQVAE: Part(
        "multi-scale tokenizer",
        "--tokenizer",
        sizes=(Preset("VAR's VQVAE, 4096 codes", {"ch": 160}),),
        form="var",
    ),
    AdaGenPolicy: Part(
        "policy network",
        "--policy",
        sizes=tuple(
            Preset(f"AdaGen policy, VAR-d{depth}", {"in_channels": 64 * depth, "hidden_size": 512})
            for depth in (16, 30)
        ),
    ),
}
"""By the class of the network."""
