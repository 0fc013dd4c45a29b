"""VAR's multi-scale VQ autoencoder.

Same constructor arguments and state-dict keys as ``models/vqvae.py``, ``models/basic_vae.py`` and
``models/quant.py`` of the official VAR repository (FoundationVision/VAR). Images are RGB in −1…1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.export.models.var_quantizer import PATCH_NUMS, VectorQuantizer2, check_sides


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


@dataclass(frozen=True)
class Levels:
    """What encoder and decoder are made of, in the names of :class:`VQVAE`."""

    ch: int
    ch_mult: Sequence[int]
    num_res_blocks: int
    z_channels: int
    in_channels: int
    dropout: float
    using_sa: bool
    using_mid_sa: bool


class Encoder(nn.Module):
    """Image ``[B, 3, H, W]`` → latents ``[B, z_channels, H/f, W/f]``, f = 2^(levels − 1)."""

    def __init__(self, of: Levels) -> None:
        super().__init__()
        widths, last = [of.ch, *(of.ch * m for m in of.ch_mult)], len(of.ch_mult) - 1
        self.conv_in = _conv(of.in_channels, of.ch)
        self.down = nn.ModuleList()
        for level, (source, width) in enumerate(zip(widths, widths[1:], strict=False)):
            blocks = [source, *[width] * of.num_res_blocks]
            made = Level(blocks, of.dropout, attention=of.using_sa and level == last)
            if level < last:
                made.downsample = Downsample2x(width)
            self.down.append(made)
        self.mid = _middle(widths[-1], of.dropout, attention=of.using_mid_sa)
        self.norm_out = _norm(widths[-1])
        self.conv_out = _conv(widths[-1], of.z_channels)

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

    def __init__(self, of: Levels) -> None:
        super().__init__()
        widths, last = [of.ch * m for m in of.ch_mult], len(of.ch_mult) - 1
        self.conv_in = _conv(of.z_channels, widths[-1])
        self.mid = _middle(widths[-1], of.dropout, attention=of.using_mid_sa)
        self.up = nn.ModuleList()
        for level, width in enumerate(widths):
            source = widths[min(level + 1, last)]
            blocks = [source, *[width] * (of.num_res_blocks + 1)]
            made = Level(blocks, of.dropout, attention=of.using_sa and level == last)
            if level > 0:
                made.upsample = Upsample2x(width)
            self.up.append(made)
        self.norm_out = _norm(widths[0])
        self.conv_out = _conv(widths[0], of.in_channels)

    def forward(self, z: Tensor) -> Tensor:
        h = _through(self.mid, self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
            if hasattr(level, "upsample"):
                h = level.upsample(h)  # type: ignore[operator]
        out: Tensor = self.conv_out(F.silu(self.norm_out(h)))
        return out


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
        check_sides("v_patch_nums", v_patch_nums)
        if in_channels != 3:
            raise ValueError(f"images have 3 channels, got in_channels {in_channels}")
        self.vocab_size, self.Cvae, self.beta = vocab_size, z_channels, beta
        self.v_patch_nums, self.downsampling = tuple(v_patch_nums), 2 ** (len(ch_mult) - 1)
        levels = Levels(
            ch,
            ch_mult,
            num_res_blocks,
            z_channels,
            in_channels,
            dropout,
            using_sa,
            using_mid_sa,
        )
        self.encoder, self.decoder = Encoder(levels), Decoder(levels)
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
