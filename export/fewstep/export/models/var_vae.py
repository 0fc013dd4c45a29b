"""VAR's multi-scale VQ autoencoder.

Same constructor arguments and state-dict keys as ``models/vqvae.py``, ``models/basic_vae.py`` and
``models/quant.py`` of the official VAR repository (FoundationVision/VAR). An image is a sum of
token maps from 1×1 to the full grid, each enlarged to the full grid and smoothed by a convolution
φ. Images are RGB in −1…1.
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


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


def _conv(in_channels: int, out_channels: int, size: int = 3) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, size, padding=size // 2)


class ResnetBlock(nn.Module):
    """GroupNorm–SiLU–conv twice, and the input beside: ``[B, C, H, W] → [B, C', H, W]``."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = _norm(in_channels)
        self.conv1 = _conv(in_channels, out_channels)
        self.norm2 = _norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = _conv(out_channels, out_channels)
        same = in_channels == out_channels
        self.nin_shortcut = nn.Identity() if same else _conv(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        out: Tensor = self.nin_shortcut(x) + h
        return out


class AttnBlock(nn.Module):
    """Attention of one head over all positions, and the input beside."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.qkv = _conv(channels, 3 * channels, 1)
        self.proj_out = _conv(channels, channels, 1)
        self.scale = channels**-0.5

    def forward(self, x: Tensor) -> Tensor:
        _, channels, height, width = x.shape
        q, k, v = self.qkv(self.norm(x)).flatten(2).split(channels, dim=1)  # [B, C, N]
        weights = torch.softmax((q.transpose(1, 2) @ k) * self.scale, dim=-1)  # [B, N, N]
        h = (v @ weights.transpose(1, 2)).reshape(-1, channels, height, width)
        out: Tensor = x + self.proj_out(h)
        return out


class Upsample2x(nn.Module):
    """Nearest-neighbour doubling, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = _conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


class Downsample2x(nn.Module):
    """A convolution of stride 2, padded on the right and below."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return out


class Level(nn.Module):
    """The blocks of one resolution, with attention or without, and the way to the next."""

    def __init__(self, widths: Sequence[int], dropout: float, *, attention: bool) -> None:
        super().__init__()
        pairs = list(zip(widths, widths[1:], strict=False))
        self.block = nn.ModuleList(ResnetBlock(a, b, dropout) for a, b in pairs)
        self.attn = nn.ModuleList(AttnBlock(b) for _, b in pairs if attention)

    def forward(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[index](x)
        return x


def _middle(channels: int, dropout: float, *, attention: bool) -> nn.Module:
    middle = nn.Module()
    middle.block_1 = ResnetBlock(channels, channels, dropout)
    middle.attn_1 = AttnBlock(channels) if attention else nn.Identity()
    middle.block_2 = ResnetBlock(channels, channels, dropout)
    return middle


def _through(middle: nn.Module, x: Tensor) -> Tensor:
    for part in (middle.block_1, middle.attn_1, middle.block_2):
        assert isinstance(part, nn.Module)
        x = part(x)
    return x


class Encoder(nn.Module):
    """Image ``[B, 3, H, W]`` → latents ``[B, z_channels, H/f, W/f]``, f = 2^(levels − 1)."""

    def __init__(
        self,
        *,
        ch: int,
        ch_mult: Sequence[int],
        num_res_blocks: int,
        z_channels: int,
        in_channels: int,
        dropout: float,
        using_sa: bool,
        using_mid_sa: bool,
    ) -> None:
        super().__init__()
        widths, last = [ch, *(ch * m for m in ch_mult)], len(ch_mult) - 1
        self.conv_in = _conv(in_channels, ch)
        self.down = nn.ModuleList()
        for level, (source, width) in enumerate(zip(widths, widths[1:], strict=False)):
            blocks = [source, *[width] * num_res_blocks]
            made = Level(blocks, dropout, attention=using_sa and level == last)
            if level < last:
                made.downsample = Downsample2x(width)
            self.down.append(made)
        self.mid = _middle(widths[-1], dropout, attention=using_mid_sa)
        self.norm_out = _norm(widths[-1])
        self.conv_out = _conv(widths[-1], z_channels)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
            if hasattr(level, "downsample"):
                h = level.downsample(h)  # type: ignore[operator]
        out: Tensor = self.conv_out(F.silu(self.norm_out(_through(self.mid, h))))
        return out


class Decoder(nn.Module):
    """Latents ``[B, z_channels, h, w]`` → image ``[B, in_channels, h·f, w·f]``."""

    def __init__(
        self,
        *,
        ch: int,
        ch_mult: Sequence[int],
        num_res_blocks: int,
        z_channels: int,
        in_channels: int,
        dropout: float,
        using_sa: bool,
        using_mid_sa: bool,
    ) -> None:
        super().__init__()
        widths, last = [ch * m for m in ch_mult], len(ch_mult) - 1
        self.conv_in = _conv(z_channels, widths[-1])
        self.mid = _middle(widths[-1], dropout, attention=using_mid_sa)
        self.up = nn.ModuleList()
        for level, width in enumerate(widths):
            source = widths[min(level + 1, last)]
            blocks = [source, *[width] * (num_res_blocks + 1)]
            made = Level(blocks, dropout, attention=using_sa and level == last)
            if level > 0:
                made.upsample = Upsample2x(width)
            self.up.append(made)
        self.norm_out = _norm(widths[0])
        self.conv_out = _conv(widths[0], in_channels)

    def forward(self, z: Tensor) -> Tensor:
        h = _through(self.mid, self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
            if hasattr(level, "upsample"):
                h = level.upsample(h)  # type: ignore[operator]
        out: Tensor = self.conv_out(F.silu(self.norm_out(h)))
        return out


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


class VQVAE(nn.Module):
    """The multi-scale tokenizer.

    Args:
        vocab_size: codes V.
        z_channels: width of a code, and channels of the latents.
        ch: width of the first level.
        dropout: without effect here.
        beta: without effect here.
        using_znorm: of :class:`VectorQuantizer2`.
        quant_conv_ks: kernel size of the convolutions before and after the codebook.
        quant_resi: of :class:`VectorQuantizer2`.
        share_quant_resi: of :class:`VectorQuantizer2`.
        default_qresi_counts: of :class:`VectorQuantizer2`.
        v_patch_nums: of :class:`VectorQuantizer2`.
        test_mode: without effect here.
        ch_mult: widths of the levels in multiples of ``ch``; the official code fixes it.
        num_res_blocks: of each level; the official code fixes it.
        using_sa: attention in the lowest level; the official code fixes it.
        using_mid_sa: attention in the middle; the official code fixes it.
        in_channels: of images.
    """

    def __init__(
        self,
        vocab_size: int = 4096,
        z_channels: int = 32,
        ch: int = 128,
        dropout: float = 0.0,
        beta: float = 0.25,
        using_znorm: bool = False,
        quant_conv_ks: int = 3,
        quant_resi: float = 0.5,
        share_quant_resi: int = 4,
        default_qresi_counts: int = 0,
        v_patch_nums: Sequence[int] = PATCH_NUMS,
        test_mode: bool = True,
        *,
        ch_mult: Sequence[int] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 2,
        using_sa: bool = True,
        using_mid_sa: bool = True,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        if in_channels != 3:
            raise ValueError(f"images have 3 channels, got in_channels {in_channels}")
        self.vocab_size, self.Cvae, self.beta = vocab_size, z_channels, beta
        self.v_patch_nums, self.downsampling = tuple(v_patch_nums), 2 ** (len(ch_mult) - 1)
        levels = {
            "ch": ch,
            "ch_mult": ch_mult,
            "num_res_blocks": num_res_blocks,
            "z_channels": z_channels,
            "in_channels": in_channels,
            "dropout": dropout,
            "using_sa": using_sa,
            "using_mid_sa": using_mid_sa,
        }
        self.encoder = Encoder(**levels)  # type: ignore[arg-type]
        self.decoder = Decoder(**levels)  # type: ignore[arg-type]
        self.quantize = VectorQuantizer2(
            vocab_size,
            z_channels,
            using_znorm,
            self.v_patch_nums,
            quant_resi,
            share_quant_resi,
            default_qresi_counts,
        )
        self.quant_conv = _conv(z_channels, z_channels, quant_conv_ks)
        self.post_quant_conv = _conv(z_channels, z_channels, quant_conv_ks)

    def latents(self, image: Tensor) -> Tensor:
        """Image ``[B, 3, H, W]`` in −1…1 → latents before the codebook ``[B, C, G, G]``."""
        out: Tensor = self.quant_conv(self.encoder(image))
        return out

    def img_to_idxBl(self, image: Tensor) -> list[Tensor]:
        """Image ``[B, 3, H, W]`` in −1…1 → ids of every scale, ``[B, s²]``."""
        return [each.flatten(1) for each in self.quantize.token_maps(self.latents(image))]

    def unclamped(self, f_hat: Tensor) -> Tensor:
        """f̂ ``[B, C, G, G]`` → image ``[B, 3, H, W]`` in −1…1, not clamped."""
        out: Tensor = self.decoder(self.post_quant_conv(f_hat))
        return out
