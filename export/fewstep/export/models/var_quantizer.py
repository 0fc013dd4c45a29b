"""The codebook of VAR's tokenizer, and how token maps and latents become each other.

As ``models/quant.py`` of the official VAR repository (FoundationVision/VAR): an image is a sum of
token maps from 1×1 to the full grid, each enlarged to the full grid and smoothed by a convolution
φ.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

PATCH_NUMS = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
"""Sides of the token maps of the published 256-pixel models."""

_NO_RESIDUAL = 1e-6


def check_sides(name: str, sides: Sequence[int]) -> None:
    """Raise ``ValueError`` unless sides of token maps are whole numbers that rise."""
    fine = isinstance(sides, (list, tuple)) and all(type(side) is int for side in sides)
    if not fine or not sides or min(sides) < 1 or list(sides) != sorted(set(sides)):
        raise ValueError(f"{name} must be rising sides, got {sides!r}")


class Phi(nn.Conv2d):
    """φ(x) = (1 − r)·x + r·conv(x) with r = ``resi_ratio``: ``[B, C, H, W] → [B, C, H, W]``."""

    def __init__(self, channels: int, quant_resi: float) -> None:
        super().__init__(channels, channels, 3, padding=1)
        self.resi_ratio = abs(quant_resi)

    def forward(self, x: Tensor) -> Tensor:
        return (1 - self.resi_ratio) * x + self.resi_ratio * super().forward(x)


class PhiShared(nn.Module):
    """One φ for all scales."""

    def __init__(self, phi: nn.Module) -> None:
        super().__init__()
        self.qresi = phi


class PhiPartiallyShared(nn.Module):
    """A few φ, each for neighbouring scales."""

    def __init__(self, phis: Sequence[nn.Module]) -> None:
        super().__init__()
        self.qresi_ls = nn.ModuleList(phis)


def phi_indices(count: int, scales: int) -> tuple[int, ...]:
    """Which of ``count`` φ each scale takes: the one whose tick is nearest to s / (S − 1).

    In float64 as NumPy computes it, like ``models/quant.py`` of the official repository: the ten
    published scales tie twice.
    """
    margin = 1 / 3 / count if count == 4 else 1 / 2 / count
    ticks = np.linspace(margin, 1 - margin, count)
    at = [scale / (scales - 1) if scales > 1 else 0.0 for scale in range(scales)]
    return tuple(int(np.argmin(np.abs(ticks - each))) for each in at)


class VectorQuantizer2(nn.Module):
    """The codebook, and how token maps and latents become each other.

    Args:
        vocab_size: codes V.
        Cvae: width of a code.
        using_znorm: the nearest code is by cosine, not by distance.
        v_patch_nums: sides of the token maps, the last one that of the latents.
        quant_resi: φ's ratio r; 0 leaves the φ out.
        share_quant_resi: how many φ; 0 for one a scale, 1 for one in all.
        default_qresi_counts: how many, where ``share_quant_resi`` is 0; 0 for one a scale.
    """

    def __init__(
        self,
        vocab_size: int,
        Cvae: int,
        using_znorm: bool,
        v_patch_nums: Sequence[int],
        quant_resi: float = 0.5,
        share_quant_resi: int = 4,
        default_qresi_counts: int = 0,
    ) -> None:
        super().__init__()
        self.using_znorm, self.v_patch_nums = using_znorm, tuple(v_patch_nums)
        count = share_quant_resi or default_qresi_counts or len(self.v_patch_nums)
        plain = abs(quant_resi) <= _NO_RESIDUAL
        phis = [nn.Identity() if plain else Phi(Cvae, quant_resi) for _ in range(count)]
        if share_quant_resi == 0:
            self.quant_resi: nn.Module = nn.ModuleList(phis)
        elif share_quant_resi == 1:
            self.quant_resi = PhiShared(phis[0])
        else:
            self.quant_resi = PhiPartiallyShared(phis)
        self.phis = tuple(phis)  # a tuple, so that they have no second key
        self.register_buffer("ema_vocab_hit_SV", torch.zeros(len(self.v_patch_nums), vocab_size))
        self.embedding = nn.Embedding(vocab_size, Cvae)

    def phi(self, scale: int) -> nn.Module:
        """The φ of a scale."""
        return self.phis[phi_indices(len(self.phis), len(self.v_patch_nums))[scale]]

    def nearest(self, z: Tensor) -> Tensor:
        """The nearest code of each latent: ``[B, C, h, w] → ids [B, h, w]``."""
        flat, codes = z.permute(0, 2, 3, 1), self.embedding.weight
        if self.using_znorm:
            return (F.normalize(flat, dim=-1) @ F.normalize(codes, dim=-1).T).argmax(-1)
        distance = flat.square().sum(-1, keepdim=True) + codes.square().sum(1)
        return (distance - 2 * (flat @ codes.T)).argmin(-1)

    def grown(self, tokens: Tensor, scale: int) -> Tensor:
        """What a token map ``[B, s, s]`` adds to f̂: ``[B, C, G, G]``."""
        h = self.embedding(tokens).permute(0, 3, 1, 2)
        if scale < len(self.v_patch_nums) - 1:
            side = self.v_patch_nums[-1]
            h = F.interpolate(h, size=(side, side), mode="bicubic")
        out: Tensor = self.phi(scale)(h)
        return out

    def token_maps(self, f: Tensor) -> list[Tensor]:
        """The token map of every scale from latents ``[B, C, G, G]``: ids ``[B, s, s]``."""
        rest, found = f, list[Tensor]()
        for scale, side in enumerate(self.v_patch_nums):
            last = scale == len(self.v_patch_nums) - 1
            z = rest if last else F.interpolate(rest, size=(side, side), mode="area")
            found.append(self.nearest(z))
            rest = rest - self.grown(found[-1], scale)
        return found

    def f_hat(self, maps: Sequence[Tensor]) -> Tensor:
        """f̂ ``[B, C, G, G]`` of the first maps, ids ``[B, s, s]``."""
        parts = [self.grown(each, scale) for scale, each in enumerate(maps)]
        return torch.stack(parts).sum(0)
