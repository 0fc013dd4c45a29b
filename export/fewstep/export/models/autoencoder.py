"""The convolutional autoencoder of latent diffusion, as VAR and MAR have it.

Residual blocks in levels of one resolution each, attention of one head where a system has it. The
state-dict keys are those of both systems' official code; what differs between them is said by
:class:`Levels`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def norm(channels: int) -> nn.GroupNorm:
    """As all of them are: 32 groups."""
    return nn.GroupNorm(32, channels, eps=1e-6)


def conv(in_channels: int, out_channels: int, size: int = 3) -> nn.Conv2d:
    """A convolution that keeps height and width."""
    return nn.Conv2d(in_channels, out_channels, size, padding=size // 2)


class ResnetBlock(nn.Module):
    """GroupNorm–SiLU–conv twice, and the input beside: ``[B, C, H, W] → [B, C', H, W]``."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = norm(in_channels)
        self.conv1 = conv(in_channels, out_channels)
        self.norm2 = norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv(out_channels, out_channels)
        same = in_channels == out_channels
        self.nin_shortcut = nn.Identity() if same else conv(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        out: Tensor = self.nin_shortcut(x) + h
        return out


def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of one head over all positions of maps ``[B, C, H, W]``."""
    _, channels, height, width = q.shape
    q, k, v = q.flatten(2), k.flatten(2), v.flatten(2)  # [B, C, N]
    weights = torch.softmax((q.transpose(1, 2) @ k) * channels**-0.5, dim=-1)  # [B, N, N]
    return (v @ weights.transpose(1, 2)).reshape(-1, channels, height, width)


class Upsample2x(nn.Module):
    """Nearest-neighbour doubling, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv(channels, channels)

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


Attention = Callable[[int], nn.Module]
"""Makes the attention of so many channels."""


class Level(nn.Module):
    """The blocks of one resolution, with attention after each or without."""

    def __init__(self, widths: Sequence[int], dropout: float, attention: Attention | None) -> None:
        super().__init__()
        pairs = list(zip(widths, widths[1:], strict=False))
        self.block = nn.ModuleList(ResnetBlock(a, b, dropout) for a, b in pairs)
        self.attn = nn.ModuleList(attention(b) for _, b in pairs if attention is not None)

    def forward(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[index](x)
        return x


class _Middle(nn.Module):
    def __init__(self, channels: int, dropout: float, attention: Attention | None) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, dropout)
        self.attn_1 = nn.Identity() if attention is None else attention(channels)
        self.block_2 = ResnetBlock(channels, channels, dropout)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block_2(self.attn_1(self.block_1(x)))
        return out


@dataclass(frozen=True)
class Levels:
    """What encoder and decoder are made of, in the official names.

    ``ch``: width of the first level; ``ch_mult``: of all in multiples of it. ``num_res_blocks`` of
    a level. ``z_channels`` of the latents; ``encoded``: channels that the encoder gives.
    ``attention``: makes it. ``encoder_attention``, ``decoder_attention``: the levels that have it;
    ``middle_attention``: whether the middle has.
    """

    ch: int
    ch_mult: Sequence[int]
    num_res_blocks: int
    z_channels: int
    encoded: int
    in_channels: int
    dropout: float
    attention: Attention
    encoder_attention: Collection[int] = ()
    decoder_attention: Collection[int] = ()
    middle_attention: bool = True

    @property
    def middle(self) -> Attention | None:
        """The attention of the middle, if any."""
        return self.attention if self.middle_attention else None


class Encoder(nn.Module):
    """Image ``[B, 3, H, W]`` → ``[B, encoded, H/f, W/f]``, f = 2^(levels − 1)."""

    def __init__(self, of: Levels) -> None:
        super().__init__()
        widths, last = [of.ch, *(of.ch * m for m in of.ch_mult)], len(of.ch_mult) - 1
        self.conv_in = conv(of.in_channels, of.ch)
        self.down = nn.ModuleList()
        for level, (source, width) in enumerate(zip(widths, widths[1:], strict=False)):
            blocks = [source, *[width] * of.num_res_blocks]
            attention = of.attention if level in of.encoder_attention else None
            made = Level(blocks, of.dropout, attention)
            if level < last:
                made.downsample = Downsample2x(width)
            self.down.append(made)
        self.mid = _Middle(widths[-1], of.dropout, of.middle)
        self.norm_out = norm(widths[-1])
        self.conv_out = conv(widths[-1], of.encoded)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
            if hasattr(level, "downsample"):
                h = level.downsample(h)  # type: ignore[operator]
        out: Tensor = self.conv_out(F.silu(self.norm_out(self.mid(h))))
        return out


class Decoder(nn.Module):
    """Latents ``[B, z_channels, h, w]`` → image ``[B, in_channels, h·f, w·f]``."""

    def __init__(self, of: Levels) -> None:
        super().__init__()
        widths, last = [of.ch * m for m in of.ch_mult], len(of.ch_mult) - 1
        self.conv_in = conv(of.z_channels, widths[-1])
        self.mid = _Middle(widths[-1], of.dropout, of.middle)
        self.up = nn.ModuleList()
        for level, width in enumerate(widths):
            source = widths[min(level + 1, last)]
            blocks = [source, *[width] * (of.num_res_blocks + 1)]
            attention = of.attention if level in of.decoder_attention else None
            made = Level(blocks, of.dropout, attention)
            if level > 0:
                made.upsample = Upsample2x(width)
            self.up.append(made)
        self.norm_out = norm(widths[0])
        self.conv_out = conv(widths[0], of.in_channels)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
            if hasattr(level, "upsample"):
                h = level.upsample(h)  # type: ignore[operator]
        out: Tensor = self.conv_out(F.silu(self.norm_out(h)))
        return out
