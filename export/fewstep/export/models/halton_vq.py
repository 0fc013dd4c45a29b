"""LlamaGen's VQ tokenizer, which Halton-MaskGIT decodes with.

Same state-dict keys and names of arguments as ``VQModel`` and its ``ModelArgs`` in
``Network/vq_model.py`` of the official Halton-MaskGIT repository (valeoai/Halton-MaskGIT), which
took them from LlamaGen. Blocks are those of latent diffusion. The network's own pixels are −1…1;
images here are RGB in 0…1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.export.models.autoencoder import Downsample2x, ResnetBlock, Upsample2x, conv, norm
from fewstep.export.models.kl import AttnBlock

_USED_CODES = 65536  # that the official class keeps to count them


class Level(nn.Module):
    """The blocks of one resolution, with attention after each or without."""

    def __init__(self, widths: Sequence[int], dropout: float, *, attention: bool) -> None:
        super().__init__()
        pairs = list(zip(widths, widths[1:], strict=False))
        self.res = nn.ModuleList(ResnetBlock(a, b, dropout) for a, b in pairs)
        self.attn = nn.ModuleList(AttnBlock(b) for _, b in pairs if attention)

    def forward(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.res):
            x = block(x)
            if len(self.attn):
                x = self.attn[index](x)
        return x


def _middle(channels: int, dropout: float) -> nn.ModuleList:
    return nn.ModuleList(
        [
            ResnetBlock(channels, channels, dropout),
            AttnBlock(channels),
            ResnetBlock(channels, channels, dropout),
        ]
    )


class Encoder(nn.Module):
    """Image ``[B, 3, H, W]`` → ``[B, z_channels, H/f, W/f]``, f = 2^(levels − 1)."""

    def __init__(
        self, ch: int, ch_mult: Sequence[int], num_res_blocks: int, z_channels: int, dropout: float
    ) -> None:
        super().__init__()
        widths, last = [ch, *(ch * m for m in ch_mult)], len(ch_mult) - 1
        self.conv_in = conv(3, ch)
        self.conv_blocks = nn.ModuleList()
        for index, (source, width) in enumerate(zip(widths, widths[1:], strict=False)):
            blocks = [source, *[width] * num_res_blocks]
            level = Level(blocks, dropout, attention=index == last)
            if index < last:
                level.downsample = Downsample2x(width)
            self.conv_blocks.append(level)
        self.mid = _middle(widths[-1], dropout)
        self.norm_out = norm(widths[-1])
        self.conv_out = conv(widths[-1], z_channels)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.conv_blocks:
            h = level(h)
            if hasattr(level, "downsample"):
                h = level.downsample(h)  # type: ignore[operator]
        for block in self.mid:
            h = block(h)
        out: Tensor = self.conv_out(F.silu(self.norm_out(h)))
        return out


class Decoder(nn.Module):
    """Latents ``[B, z_channels, h, w]`` → image ``[B, 3, h·f, w·f]``."""

    def __init__(
        self, ch: int, ch_mult: Sequence[int], num_res_blocks: int, z_channels: int, dropout: float
    ) -> None:
        super().__init__()
        widths = [ch * m for m in reversed(ch_mult)]
        self.conv_in = conv(z_channels, widths[0])
        self.mid = _middle(widths[0], dropout)
        self.conv_blocks = nn.ModuleList()
        for index, (source, width) in enumerate(zip([widths[0], *widths], widths, strict=False)):
            blocks = [source, *[width] * (num_res_blocks + 1)]
            level = Level(blocks, dropout, attention=index == 0)
            if index < len(widths) - 1:
                level.upsample = Upsample2x(width)
            self.conv_blocks.append(level)
        self.norm_out = norm(widths[-1])
        self.conv_out = conv(widths[-1], 3)

    def forward(self, z: Tensor) -> Tensor:
        h = self.conv_in(z)
        for block in self.mid:
            h = block(h)
        for level in self.conv_blocks:
            h = level(h)
            if hasattr(level, "upsample"):
                h = level.upsample(h)  # type: ignore[operator]
        out: Tensor = self.conv_out(F.silu(self.norm_out(h)))
        return out


class Codebook(nn.Module):
    """Codes ``[V, D]``, used at length 1 where ``l2_norm`` says so."""

    def __init__(self, codes: int, width: int, *, l2_norm: bool, show_usage: bool) -> None:
        super().__init__()
        self.l2_norm = l2_norm
        self.embedding = nn.Embedding(codes, width)
        if show_usage:
            self.register_buffer("codebook_used", torch.zeros(_USED_CODES))

    def codes(self) -> Tensor:
        """All codes as they are used, ``[V, D]``."""
        codes = self.embedding.weight
        return F.normalize(codes, dim=-1) if self.l2_norm else codes

    def forward(self, z: Tensor) -> Tensor:
        """Nearest code of each latent: ``[B, D, h, w] → ids [B, h, w]``."""
        flat, codes = z.permute(0, 2, 3, 1), self.codes()  # [B, h, w, D]
        if self.l2_norm:
            flat = F.normalize(flat, dim=-1)
        # |z|² is the same for every code and so does not change the argmin.
        distance = codes.square().sum(1) - 2 * (flat @ codes.T)
        return distance.argmin(-1)

    def latents(self, tokens: Tensor) -> Tensor:
        """Ids ``[B, h, w]`` → codes ``[B, D, h, w]``."""
        return F.embedding(tokens, self.codes()).permute(0, 3, 1, 2)


class LlamaGenVQ(nn.Module):
    """The VQ tokenizer; by default LlamaGen's VQ-16.

    Args:
        codebook_size: codes V.
        codebook_embed_dim: their width D.
        codebook_l2_norm: whether codes and latents are brought to length 1.
        codebook_show_usage: whether there is a buffer of codes used in training; without effect.
        commit_loss_beta: without effect here.
        entropy_loss_ratio: without effect here.
        encoder_ch_mult: widths of the encoder's levels in multiples of ``ch``.
        decoder_ch_mult: the same of the decoder, as many.
        z_channels: channels between the networks and the codebook.
        dropout_p: without effect here.
        ch: width of the first level; the official code fixes it.
        num_res_blocks: of each level; the official code fixes it.
    """

    def __init__(
        self,
        codebook_size: int = 16384,
        codebook_embed_dim: int = 8,
        codebook_l2_norm: bool = True,
        codebook_show_usage: bool = True,
        commit_loss_beta: float = 0.25,
        entropy_loss_ratio: float = 0.0,
        encoder_ch_mult: Sequence[int] = (1, 1, 2, 2, 4),
        decoder_ch_mult: Sequence[int] = (1, 1, 2, 2, 4),
        z_channels: int = 256,
        dropout_p: float = 0.0,
        *,
        ch: int = 128,
        num_res_blocks: int = 2,
    ) -> None:
        super().__init__()
        if not encoder_ch_mult or len(encoder_ch_mult) != len(decoder_ch_mult):
            raise ValueError(
                "encoder_ch_mult and decoder_ch_mult must have as many levels as each other, at "
                f"least 1, got {len(encoder_ch_mult)} and {len(decoder_ch_mult)}"
            )
        self.codebook_size, self.downsampling = codebook_size, 2 ** (len(decoder_ch_mult) - 1)
        self.encoder = Encoder(ch, encoder_ch_mult, num_res_blocks, z_channels, dropout_p)
        self.decoder = Decoder(ch, decoder_ch_mult, num_res_blocks, z_channels, dropout_p)
        self.quantize = Codebook(
            codebook_size,
            codebook_embed_dim,
            l2_norm=codebook_l2_norm,
            show_usage=codebook_show_usage,
        )
        self.quant_conv = conv(z_channels, codebook_embed_dim, 1)
        self.post_quant_conv = conv(codebook_embed_dim, z_channels, 1)

    def encode(self, image: Tensor) -> Tensor:
        """Image ``[B, 3, H, W]`` in 0…1 → token ids ``[B, H/f · W/f]``."""
        latents = self.quant_conv(self.encoder(2 * image - 1))
        ids: Tensor = self.quantize(latents)
        return ids.flatten(1)

    def decode(self, tokens: Tensor) -> Tensor:
        """Token ids of any grid ``[B, h, w]`` → image ``[B, 3, h·f, w·f]``, not clamped.

        Ids from V on are taken for V − 1, as in the official samplers, which may draw the mask id.
        """
        latents = self.quantize.latents(tokens.clamp(max=self.codebook_size - 1))
        image: Tensor = self.decoder(self.post_quant_conv(latents))
        return (image + 1) / 2

    def unclamped(self, tokens: Tensor) -> Tensor:
        """Token ids of a square grid ``[B, N]`` → image ``[B, 3, H, W]``, not clamped."""
        side = math.isqrt(tokens.shape[1])
        return self.decode(tokens.reshape(-1, side, side))

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids of a square grid ``[B, N]`` → image ``[B, 3, H, W]`` clamped to 0…1."""
        return torch.clamp(self.unclamped(tokens), 0.0, 1.0)
