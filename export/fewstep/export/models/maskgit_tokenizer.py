"""The VQGAN of Google's MaskGIT, as maskgit-torch publishes its weights.

The state-dict keys are those of ``maskgit/nets/vqgan_tokenizer.py`` of hmorimitsu/maskgit-torch,
and the constructor takes the fields of ``vqvae`` in ``maskgit/configs/vqgan_config.py`` there. The
network is that of :mod:`fewstep.export.models.vqgan` under other keys: no attention, convolutions
without bias, average pooling on the way down, and a block that changes its width drops its input.
But the epsilon of its GroupNorm is 1e-5. Images are RGB in 0…1.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.export.models.sizes import check_whole

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "swish": F.silu}
_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "GN": functools.partial(nn.GroupNorm, 32, eps=1e-5),
    "BN": functools.partial(nn.BatchNorm2d, eps=1e-5),
}


@dataclass(frozen=True)
class _Sizes:
    """What encoder and decoder are made of.

    ``widths``: of the levels, the finest first; ``blocks``: of each; ``norm`` and ``activation``:
    names.
    """

    filters: int
    widths: Sequence[int]
    blocks: int
    codes: int
    colours: int
    norm: str
    activation: str
    conv_downsample: bool

    def level(self, source: int, width: int, *after: nn.Module) -> nn.Sequential:
        """The blocks of a resolution, and what comes after them."""
        widths = [source, *[width] * self.blocks]
        return nn.Sequential(
            *(
                ResBlock(a, b, self.norm, self.activation)
                for a, b in zip(widths, widths[1:], strict=False)
            ),
            *after,
        )


class ResBlock(nn.Module):
    """Norm, activation and convolution, twice: ``[B, C, H, W] → [B, C', H, W]``."""

    def __init__(self, input_dim: int, filters: int, norm: str, activation: str) -> None:
        super().__init__()
        self.norm0 = _NORMS[norm](input_dim)
        self.conv0 = _conv(input_dim, filters, bias=False)
        self.norm1 = _NORMS[norm](filters)
        self.conv1 = _conv(filters, filters, bias=False)
        same = input_dim == filters
        self.conv_res = None if same else _conv(filters, filters, size=1, bias=False)
        self.activation = _ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv0(self.activation(self.norm0(x)))
        h = self.conv1(self.activation(self.norm1(h)))
        # The official block takes the shortcut from h, not from x, when the width changes.
        out: Tensor = h + (x if self.conv_res is None else self.conv_res(h))
        return out


class _Network(nn.Module):
    """An encoder or a decoder: a convolution, the levels one after the other, a convolution."""

    def __init__(
        self,
        conv_in: nn.Conv2d,
        levels: Sequence[nn.Sequential],
        norm_out: nn.Module,
        activation: Callable[[Tensor], Tensor],
        conv_out: nn.Conv2d,
    ) -> None:
        super().__init__()
        self.conv_in, self.conv_out = conv_in, conv_out
        self.res_blocks = nn.Sequential(*levels)
        self.norm_out, self.activation = norm_out, activation

    def forward(self, x: Tensor) -> Tensor:
        h = self.activation(self.norm_out(self.res_blocks(self.conv_in(x))))
        out: Tensor = self.conv_out(h)
        return out


def _encoder(of: _Sizes) -> _Network:
    """Image ``[B, colours, H, W]`` → latents ``[B, codes, H/f, W/f]``, f = 2^(levels − 1)."""
    levels, last = [], of.widths[-1]
    for number, (source, width) in enumerate(
        zip([of.filters, *of.widths], of.widths, strict=False)
    ):
        smaller: list[nn.Module] = []
        if number < len(of.widths) - 1:
            convolution = nn.Conv2d(width, width, 4, stride=2)
            smaller = [convolution if of.conv_downsample else nn.AvgPool2d(2)]
        levels.append(of.level(source, width, *smaller))
    return _Network(
        _conv(of.colours, of.filters, bias=False),
        [*levels, of.level(last, last)],
        _NORMS[of.norm](last),
        _ACTIVATIONS[of.activation],
        _conv(last, of.codes, size=1),
    )


def _decoder(of: _Sizes) -> _Network:
    """Latents ``[B, codes, h, w]`` → image ``[B, 3, h·f, w·f]``."""
    last = of.widths[-1]
    levels = [of.level(last, last)]
    for number in reversed(range(len(of.widths))):
        width, source = of.widths[number], of.widths[min(number + 1, len(of.widths) - 1)]
        larger: list[nn.Module] = []
        if number > 0:
            larger = [nn.Upsample(scale_factor=2.0, mode="nearest"), _conv(width, width)]
        levels.append(of.level(source, width, *larger))
    return _Network(
        _conv(of.codes, last),
        levels,
        _NORMS[of.norm](of.widths[0]),
        _ACTIVATIONS[of.activation],
        _conv(of.widths[0], 3),
    )


class VectorQuantizer(nn.Module):
    """The codebook, ``[V, D]``."""

    def __init__(self, codebook_size: int, embedding_dim: int) -> None:
        super().__init__()
        self.codebook = nn.Embedding(codebook_size, embedding_dim)

    def forward(self, z: Tensor) -> Tensor:
        """Nearest codes, the first of equals: latents ``[B, D, h, w]`` → ids ``[B, h, w]``."""
        codes = self.codebook.weight
        # |z|² is the same for every code and so does not change the argmin.
        return (codes.square().sum(1) - 2 * (z.permute(0, 2, 3, 1) @ codes.T)).argmin(-1)


class VQVAE(nn.Module):
    """The tokenizer; the defaults are those of the published ones.

    Args:
        codebook_size: codes V.
        embedding_dim: width D of a code.
        filters: width of the first level.
        channel_multipliers: widths of the levels in multiples of ``filters``.
        num_res_blocks: blocks of each level.
        input_dim: channels of the images that are encoded; decoded ones have 3.
        conv_downsample: the encoder halves with convolutions instead of averages. They have no
            padding in the official code, so that its grid is smaller than the decoder's.
        norm_type: ``GN``, GroupNorm of 32 groups, or ``BN``, BatchNorm.
        activation_fn: ``swish`` or ``relu``.
        quantizer: always ``vq``, as in the official code.
        entropy_loss_ratio: without effect here.
        entropy_temperature: without effect here.
        entropy_loss_type: without effect here.
        commitment_cost: without effect here.
        image_size: side of images in pixels, or height and width; ``None`` for square images with
            as many pixels as the tokens make, so that a tokenizer serves several sizes.
    """

    def __init__(
        self,
        codebook_size: int = 1024,
        embedding_dim: int = 256,
        filters: int = 128,
        channel_multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 2,
        input_dim: int = 3,
        conv_downsample: bool = False,
        norm_type: str = "GN",
        activation_fn: str = "swish",
        quantizer: str = "vq",
        entropy_loss_ratio: float = 0.1,
        entropy_temperature: float = 0.01,
        entropy_loss_type: str = "softmax",
        commitment_cost: float = 0.25,
        image_size: int | Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        _check_name("quantizer", quantizer, ["vq"])
        _check_name("norm_type", norm_type, list(_NORMS))
        _check_name("activation_fn", activation_fn, list(_ACTIVATIONS))
        check_whole(
            codebook_size=codebook_size,
            embedding_dim=embedding_dim,
            filters=filters,
            num_res_blocks=num_res_blocks,
            input_dim=input_dim,
        )
        widths = _widths(filters, channel_multipliers)
        if norm_type == "GN" and any(width % 32 for width in (filters, *widths)):
            raise ValueError(
                "filters, and filters times each of channel_multipliers, must be multiples of 32 "
                f"(GroupNorm), got {filters} and {widths}"
            )
        self.codebook_size, self.downsampling = codebook_size, 2 ** (len(widths) - 1)
        self.image_size = _image_size(image_size, self.downsampling)
        sizes = _Sizes(
            filters=filters,
            widths=widths,
            blocks=num_res_blocks,
            codes=embedding_dim,
            colours=input_dim,
            norm=norm_type,
            activation=activation_fn,
            conv_downsample=conv_downsample,
        )
        self.quantizer = VectorQuantizer(codebook_size, embedding_dim)
        self.encoder, self.decoder = _encoder(sizes), _decoder(sizes)

    def grid(self, tokens: int) -> tuple[int, int]:
        """Rows and columns of so many tokens.

        Raises:
            ValueError: they make no image of ``image_size``, or no square one where it is ``None``.
        """
        if self.image_size is not None:
            height, width = (side // self.downsampling for side in self.image_size)
        else:
            height = width = math.isqrt(tokens)
        if height * width != tokens:
            raise ValueError(f"{tokens} tokens do not fill a grid of {height}×{width}")
        return height, width

    def encode(self, image: Tensor) -> Tensor:
        """Image ``[B, 3, H, W]`` in 0…1 → token ids ``[B, H/f · W/f]``, f = ``downsampling``."""
        out: Tensor = self.quantizer(self.encoder(image)).flatten(1)
        return out

    def decode(self, tokens: Tensor) -> Tensor:
        """Token ids ``[B, h, w]`` → image ``[B, 3, h·f, w·f]``, not clamped."""
        z = self.quantizer.codebook(tokens).permute(0, 3, 1, 2)  # [B, D, h, w]
        out: Tensor = self.decoder(z)
        return out

    def unclamped(self, tokens: Tensor) -> Tensor:
        """Token ids ``[B, N]``, row by row → image ``[B, 3, H, W]`` in 0…1, not clamped."""
        return self.decode(tokens.reshape(-1, *self.grid(tokens.shape[1])))

    def forward(self, tokens: Tensor) -> Tensor:
        """The same, clamped to 0…1."""
        return torch.clamp(self.unclamped(tokens), 0.0, 1.0)


def _conv(in_channels: int, out_channels: int, size: int = 3, bias: bool = True) -> nn.Conv2d:
    """A convolution that keeps height and width."""
    return nn.Conv2d(in_channels, out_channels, size, padding=size // 2, bias=bias)


def _widths(filters: int, channel_multipliers: Sequence[int]) -> list[int]:
    if not channel_multipliers or any(type(m) is not int or m < 1 for m in channel_multipliers):
        raise ValueError(
            "channel_multipliers must be whole numbers, at least 1, one for every level, got "
            f"{channel_multipliers!r}"
        )
    return [filters * m for m in channel_multipliers]


def _image_size(
    image_size: int | Sequence[int] | None, downsampling: int
) -> tuple[int, int] | None:
    """Height and width in pixels."""
    if image_size is None:
        return None
    sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(sides) != 2 or any(
        type(side) is not int or side < 1 or side % downsampling for side in sides
    ):
        raise ValueError(
            f"image_size must be a multiple of {downsampling} pixels, or two of them, got "
            f"{image_size!r}"
        )
    return sides[0], sides[1]


def _check_name(name: str, value: object, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be {' or '.join(known)}, got {value!r}")
