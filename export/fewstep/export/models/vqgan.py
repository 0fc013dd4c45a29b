"""VQGAN encoder, codebook and decoder, in AdaNAT's form.

Same constructor arguments and state-dict keys as ``taming/models/vqgan.py`` and
``taming/modules/diffusionmodules/model.py`` of the official AdaNAT repository (the MaskGIT
VQGAN converted from JAX). It differs from taming-transformers: no attention, convolutions
without bias, average pooling on the way down, and ``nin_shortcut`` applied to the *output* of
``conv2`` while the block's input is dropped. Images are RGB in 0…1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


def _conv(in_channels: int, out_channels: int, size: int = 3, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, size, padding=size // 2, bias=bias)


class ResnetBlock(nn.Module):
    """GroupNorm–SiLU–conv twice, with a shortcut: ``[B, C, H, W] → [B, C', H, W]``."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = _norm(in_channels)
        self.conv1 = _conv(in_channels, out_channels)
        self.norm2 = _norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = _conv(out_channels, out_channels)
        same = in_channels == out_channels
        self.nin_shortcut = None if same else _conv(out_channels, out_channels, size=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        # The official block takes the shortcut from h, not from x, when the width changes.
        shortcut = x if self.nin_shortcut is None else self.nin_shortcut(h)
        out: Tensor = h + shortcut
        return out


class Upsample(nn.Module):
    """Nearest-neighbour doubling, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = _conv(channels, channels, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


class Level(nn.Module):
    """The residual blocks of one resolution; ``upsample`` only on the way up."""

    def __init__(self, blocks: list[ResnetBlock], upsample: Upsample | None = None) -> None:
        super().__init__()
        self.block = nn.ModuleList(blocks)
        self.upsample = upsample

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        return x if self.upsample is None else self.upsample(x)


class Middle(nn.Module):
    """Two residual blocks at the lowest resolution."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, dropout)
        self.block_2 = ResnetBlock(channels, channels, dropout)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block_2(self.block_1(x))
        return out


def _blocks(in_channels: int, out_channels: int, count: int, dropout: float) -> list[ResnetBlock]:
    widths = [in_channels] + [out_channels] * count
    return [ResnetBlock(a, b, dropout) for a, b in zip(widths, widths[1:], strict=False)]


class Encoder(nn.Module):
    """Image ``[B, 3, H, W]`` → latents ``[B, z_channels, H/f, W/f]``, f = 2^(levels − 1)."""

    def __init__(
        self,
        *,
        ch: int,
        ch_mult: Sequence[int],
        num_res_blocks: int,
        in_channels: int,
        z_channels: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.conv_in = _conv(in_channels, ch)
        widths = [ch, *(ch * m for m in ch_mult)]
        self.down = nn.ModuleList(
            Level(_blocks(a, b, num_res_blocks, dropout))
            for a, b in zip(widths, widths[1:], strict=False)
        )
        self.mid = Middle(widths[-1], dropout)
        self.norm_out = _norm(widths[-1])
        self.conv_out = _conv(widths[-1], z_channels, size=1, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level, down in enumerate(self.down):
            h = down(h if level == 0 else F.avg_pool2d(h, 2))
        out: Tensor = self.conv_out(F.silu(self.norm_out(self.mid(h))))
        return out


class Decoder(nn.Module):
    """Latents ``[B, z_channels, h, w]`` → image ``[B, out_ch, h·f, w·f]``."""

    def __init__(
        self,
        *,
        ch: int,
        ch_mult: Sequence[int],
        num_res_blocks: int,
        out_ch: int,
        z_channels: int,
        dropout: float,
    ) -> None:
        super().__init__()
        widths = [ch * m for m in ch_mult]
        self.conv_in = _conv(z_channels, widths[-1], bias=True)
        self.mid = Middle(widths[-1], dropout)
        self.up = nn.ModuleList(
            Level(
                _blocks(source, width, num_res_blocks, dropout),
                Upsample(width) if level > 0 else None,
            )
            for level, (width, source) in enumerate(
                zip(widths, [*widths[1:], widths[-1]], strict=True)
            )
        )
        self.norm_out = _norm(widths[0])
        self.conv_out = _conv(widths[0], out_ch, bias=True)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))
        for up in reversed(self.up):
            h = up(h)
        out: Tensor = self.conv_out(F.silu(self.norm_out(h)))
        return out


class Codebook(nn.Module):
    """Nearest-neighbour vector quantizer over ``embedding [V, D]``."""

    def __init__(self, n_embed: int, embed_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_embed, embed_dim)
        nn.init.uniform_(self.embedding.weight, -1.0 / n_embed, 1.0 / n_embed)

    def forward(self, z: Tensor) -> Tensor:
        """Nearest code of each latent: ``[B, D, h, w] → ids [B, h, w]``."""
        flat = z.permute(0, 2, 3, 1)  # [B, h, w, D]
        codes = self.embedding.weight
        # |z|² is the same for every code and so does not change the argmin.
        distance = codes.square().sum(1) - 2 * (flat @ codes.T)
        return distance.argmin(-1)


class VQModel(nn.Module):
    """The VQGAN tokenizer.

    Args:
        ddconfig: the official ``ddconfig``: ``ch``, ``ch_mult``, ``num_res_blocks``,
            ``resolution``, ``in_channels``, ``out_ch``, ``z_channels`` and, without effect
            here, ``double_z`` (must be false), ``attn_resolutions``, ``dropout``.
        n_embed: codebook size V.
        embed_dim: code width D, equal to ``z_channels``.
    """

    def __init__(self, ddconfig: dict[str, object], n_embed: int, embed_dim: int) -> None:
        super().__init__()
        config = dict(ddconfig)
        if config.pop("double_z", False):
            raise ValueError("double_z must be false: a VQ model has one latent, not two moments")
        if config["z_channels"] != embed_dim:
            raise ValueError(
                f"z_channels ({config['z_channels']}) must equal embed_dim ({embed_dim})"
            )
        config.pop("attn_resolutions", None)
        config.setdefault("dropout", 0.0)
        self.resolution = int(config.pop("resolution"))  # type: ignore[call-overload]
        out_ch, in_channels = config.pop("out_ch"), config.pop("in_channels")
        self.encoder = Encoder(in_channels=in_channels, **config)  # type: ignore[arg-type]
        self.decoder = Decoder(out_ch=out_ch, **config)  # type: ignore[arg-type]
        self.quantize = Codebook(n_embed, embed_dim)
        if self.resolution % self.downsampling:
            raise ValueError(
                f"resolution must be a multiple of {self.downsampling}, got {self.resolution}"
            )

    @property
    def downsampling(self) -> int:
        """Pixels per token along one side."""
        return int(2 ** (len(self.decoder.up) - 1))

    def encode(self, image: Tensor) -> Tensor:
        """Image ``[B, 3, H, W]`` in 0…1 → token ids ``[B, H/f · W/f]``."""
        out: Tensor = self.quantize(self.encoder(image)).flatten(1)
        return out

    def decode(self, tokens: Tensor) -> Tensor:
        """Token ids ``[B, h, w]`` → image ``[B, 3, h·f, w·f]``, not clamped."""
        z = self.quantize.embedding(tokens).permute(0, 3, 1, 2)  # [B, D, h, w]
        out: Tensor = self.decoder(z)
        return out

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids of a square grid ``[B, N]`` → image ``[B, 3, H, W]`` clamped to 0…1."""
        return torch.clamp(self.unclamped(tokens), 0.0, 1.0)

    def unclamped(self, tokens: Tensor) -> Tensor:
        """The same, not clamped."""
        side = self.resolution // self.downsampling
        return self.decode(tokens.reshape(-1, side, side))
