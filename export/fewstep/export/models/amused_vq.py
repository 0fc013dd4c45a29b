"""aMUSEd's tokenizer: a VQ autoencoder, which Meissonic uses too.

Same constructor arguments and state-dict keys as ``VQModel`` of diffusers 0.42.1
(``models/autoencoders/vq_model.py`` and ``vae.py``). Images are RGB in 0…1: the pipeline of aMUSEd
neither normalises what is encoded nor what is decoded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.export.models.autoencoder import Downsample2x, Upsample2x, conv
from fewstep.export.models.sizes import check_whole
from fewstep.export.models.vqgan import Codebook

Activation = Callable[[Tensor], Tensor]

_ACTIVATIONS: dict[str, Activation] = {
    "silu": F.silu,
    "swish": F.silu,
    "mish": F.mish,
    "gelu": F.gelu,
    "relu": F.relu,
}
_DOWN = {"DownEncoderBlock2D": False, "AttnDownEncoderBlock2D": True}
_UP = {"UpDecoderBlock2D": False, "AttnUpDecoderBlock2D": True}


@dataclass(frozen=True)
class Levels:
    """What encoder and decoder have in common.

    ``widths`` of the levels, the highest resolution first; ``layers``: residual blocks of a level
    of the encoder; ``groups`` of every norm; ``act``: activation of the residual blocks;
    ``middle_attention``: whether the middle has attention.
    """

    widths: tuple[int, ...]
    layers: int
    groups: int
    act: Activation
    middle_attention: bool

    def norm(self, channels: int) -> nn.GroupNorm:
        """As all of them are."""
        return nn.GroupNorm(self.groups, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    """GroupNorm, activation and convolution twice, and the input beside: ``[B, C, H, W]``."""

    def __init__(self, source: int, channels: int, of: Levels) -> None:
        super().__init__()
        self.act = of.act
        self.norm1, self.norm2 = of.norm(source), of.norm(channels)
        self.conv1, self.conv2 = conv(source, channels), conv(channels, channels)
        self.conv_shortcut = nn.Identity() if source == channels else conv(source, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(self.act(self.norm1(x)))
        out: Tensor = self.conv_shortcut(x) + self.conv2(self.act(self.norm2(h)))
        return out


class MapAttention(nn.Module):
    """Attention of one head over all positions, and the input beside: ``[B, C, H, W]``."""

    def __init__(self, channels: int, of: Levels) -> None:
        super().__init__()
        self.group_norm = of.norm(channels)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        h = self.group_norm(x).flatten(2).transpose(1, 2)  # [B, N, C]
        q, k, v = self.to_q(h) * h.shape[2] ** -0.5, self.to_k(h), self.to_v(h)
        h = self.to_out[0](torch.softmax(q @ k.transpose(1, 2), dim=-1) @ v)
        out: Tensor = x + h.transpose(1, 2).reshape(x.shape)
        return out


class Level(nn.Module):
    """The blocks of one resolution, with attention after each or without, then another resolution.

    Args:
        widths: of the input and of all blocks.
        of: what all levels have in common.
        attention: whether it has any.
        resize: to the next resolution; ``None`` at the last level.
        name: of the list that holds it.
    """

    def __init__(
        self,
        widths: Sequence[int],
        of: Levels,
        attention: bool,
        resize: nn.Module | None,
        name: str,
    ) -> None:
        super().__init__()
        pairs = list(zip(widths, widths[1:], strict=False))
        self.resnets = nn.ModuleList(ResnetBlock(a, b, of) for a, b in pairs)
        self.attentions = nn.ModuleList(MapAttention(b, of) for _, b in pairs if attention)
        self.last = name
        self.add_module(name, nn.ModuleList([] if resize is None else [resize]))

    def forward(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.resnets):
            x = block(x)
            if len(self.attentions):
                x = self.attentions[index](x)
        for resize in self.get_submodule(self.last).children():
            x = resize(x)
        return x


class Middle(nn.Module):
    """Two blocks, and attention between them or none."""

    def __init__(self, channels: int, of: Levels) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([MapAttention(channels, of)] if of.middle_attention else [])
        self.resnets = nn.ModuleList(ResnetBlock(channels, channels, of) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.resnets[0](x)
        for attend in self.attentions:
            x = attend(x)
        out: Tensor = self.resnets[1](x)
        return out


class Encoder(nn.Module):
    """Image ``[B, 3, H, W]`` → latents ``[B, L, H/f, W/f]``, f = 2^(levels − 1)."""

    def __init__(
        self, in_channels: int, latents: int, attention: Sequence[bool], of: Levels
    ) -> None:
        super().__init__()
        widths, last = of.widths, len(of.widths) - 1
        self.conv_in = conv(in_channels, widths[0])
        self.down_blocks = nn.ModuleList(
            Level(
                [widths[max(level - 1, 0)], *[width] * of.layers],
                of,
                attention[level],
                Downsample2x(width) if level < last else None,
                "downsamplers",
            )
            for level, width in enumerate(widths)
        )
        self.mid_block = Middle(widths[-1], of)
        self.conv_norm_out = of.norm(widths[-1])
        self.conv_out = conv(widths[-1], latents)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.down_blocks:
            h = level(h)
        out: Tensor = self.conv_out(F.silu(self.conv_norm_out(self.mid_block(h))))
        return out


class Decoder(nn.Module):
    """Latents ``[B, L, h, w]`` → image ``[B, 3, h·f, w·f]``. Its levels have a block more."""

    def __init__(
        self, latents: int, out_channels: int, attention: Sequence[bool], of: Levels
    ) -> None:
        super().__init__()
        widths, last = of.widths[::-1], len(of.widths) - 1
        self.conv_in = conv(latents, widths[0])
        self.mid_block = Middle(widths[0], of)
        self.up_blocks = nn.ModuleList(
            Level(
                [widths[max(level - 1, 0)], *[width] * (of.layers + 1)],
                of,
                attention[level],
                Upsample2x(width) if level < last else None,
                "upsamplers",
            )
            for level, width in enumerate(widths)
        )
        self.conv_norm_out = of.norm(widths[-1])
        self.conv_out = conv(widths[-1], out_channels)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid_block(self.conv_in(z))
        for level in self.up_blocks:
            h = level(h)
        out: Tensor = self.conv_out(F.silu(self.conv_norm_out(h)))
        return out


class VQModel(nn.Module):
    """The tokenizer.

    Args:
        in_channels: of images that are encoded.
        out_channels: of images that are decoded.
        down_block_types: of the encoder's levels: ``DownEncoderBlock2D``, or with attention
            ``AttnDownEncoderBlock2D``.
        up_block_types: of the decoder's levels, the lowest resolution first:
            ``UpDecoderBlock2D`` or ``AttnUpDecoderBlock2D``.
        block_out_channels: widths of the levels, the highest resolution first.
        layers_per_block: residual blocks of a level; the decoder has one more.
        act_fn: ``silu``, ``swish``, ``mish``, ``gelu`` or ``relu``.
        latent_channels: of the latents.
        sample_size: without effect here.
        num_vq_embeddings: codes V.
        norm_num_groups: groups of every norm.
        vq_embed_dim: width of a code; that of the latents if ``None``.
        scaling_factor: without effect here, as in the official class.
        norm_type: ``group``; the official ``spatial`` is for Kandinsky's decoder.
        mid_block_add_attention: attention between the two blocks of the middle.
        lookup_from_codebook: without effect here: tokens are always looked up.
        force_upcast: without effect here: all is float32.
        grid: rows and columns of the tokens that :meth:`forward` takes; a square if ``None``.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        down_block_types: Sequence[str] = ("DownEncoderBlock2D",),
        up_block_types: Sequence[str] = ("UpDecoderBlock2D",),
        block_out_channels: Sequence[int] = (64,),
        layers_per_block: int = 1,
        act_fn: str = "silu",
        latent_channels: int = 3,
        sample_size: int = 32,
        num_vq_embeddings: int = 256,
        norm_num_groups: int = 32,
        vq_embed_dim: int | None = None,
        scaling_factor: float = 0.18215,
        norm_type: str = "group",
        mid_block_add_attention: bool = True,
        lookup_from_codebook: bool = False,
        force_upcast: bool = False,
        *,
        grid: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        if norm_type != "group":
            raise ValueError(f"norm_type must be group, got {norm_type}")
        if act_fn not in _ACTIVATIONS:
            raise ValueError(f"act_fn must be one of {', '.join(_ACTIVATIONS)}, got {act_fn}")
        widths, groups = tuple(block_out_channels), norm_num_groups
        check_whole(
            layers_per_block=layers_per_block,
            latent_channels=latent_channels,
            num_vq_embeddings=num_vq_embeddings,
            norm_num_groups=groups,
            **{f"block_out_channels[{place}]": width for place, width in enumerate(widths)},
        )
        if wrong := [width for width in widths if width % groups]:
            raise ValueError(f"block_out_channels must be multiples of {groups}, got {wrong[0]}")
        act = _ACTIVATIONS[act_fn]
        of = Levels(widths, layers_per_block, groups, act, mid_block_add_attention)
        down = _attention("down_block_types", down_block_types, _DOWN, len(widths))
        up = _attention("up_block_types", up_block_types, _UP, len(widths))
        width = latent_channels if vq_embed_dim is None else vq_embed_dim
        self.downsampling, self.num_codes = 2 ** (len(widths) - 1), num_vq_embeddings
        self.grid = grid
        self.encoder = Encoder(in_channels, latent_channels, down, of)
        self.quant_conv = conv(latent_channels, width, 1)
        self.quantize = Codebook(num_vq_embeddings, width)
        self.post_quant_conv = conv(width, latent_channels, 1)
        self.decoder = Decoder(latent_channels, out_channels, up, of)

    def encode(self, image: Tensor) -> Tensor:
        """Image ``[B, 3, H, W]`` in 0…1 → token ids ``[B, H/f · W/f]``, row by row."""
        out: Tensor = self.quantize(self.quant_conv(self.encoder(image))).flatten(1)
        return out

    def decode(self, tokens: Tensor) -> Tensor:
        """Token ids ``[B, h, w]`` → image ``[B, 3, h·f, w·f]`` in 0…1, not clamped."""
        z = self.quantize.embedding(tokens).permute(0, 3, 1, 2)  # [B, D, h, w]
        out: Tensor = self.decoder(self.post_quant_conv(z))
        return out

    def unclamped(self, tokens: Tensor) -> Tensor:
        """Token ids of the grid ``[B, N]``, row by row → image ``[B, 3, H, W]``, not clamped."""
        side = math.isqrt(tokens.shape[1])
        rows, columns = self.grid or (side, side)
        return self.decode(tokens.reshape(-1, rows, columns))

    def forward(self, tokens: Tensor) -> Tensor:
        """The same, clamped to 0…1."""
        return torch.clamp(self.unclamped(tokens), 0.0, 1.0)


def _attention(
    name: str, types: Sequence[str], known: dict[str, bool], levels: int
) -> tuple[bool, ...]:
    """Which levels have attention."""
    if len(types) != levels:
        raise ValueError(
            f"{name} must have {levels} entries, as block_out_channels has, got {len(types)}"
        )
    if wrong := [each for each in types if each not in known]:
        raise ValueError(f"{name} must be of {', '.join(known)}, got {wrong[0]}")
    return tuple(known[each] for each in types)
