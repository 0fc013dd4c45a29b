"""A small decoder, distilled from that of a tokenizer: convolutions, ReLU and sub-pixel upsampling.

    input  → map [B, C, h, w] → 1×1 convolution to the first width
    level  residual block of two 3×3 convolutions; 3×3 convolution and PixelShuffle to the next
    end    residual block; 3×3 convolution and PixelShuffle to the image

Levels double the map until one PixelShuffle is left to the image, so that no convolution runs at
its full resolution. Widths are w · 2^(levels after it), at most 4w. There are no norms and no
attention: builders know every operator, and nothing leaves the range of float16.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from pydantic import BaseModel, ConfigDict, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

_WIDEST = 4


class DecoderShape(BaseModel):
    """What a small decoder reads and draws.

    ``codes``: of a table, where it reads ids ``[B, N]``; ``None`` where it reads numbers, tokens
    ``[B, N, C]`` or a map ``[B, C, h, w]``. ``channels``: C; with codes the table's. ``grid``: rows
    and columns, h and w. ``factor``: pixels along the side of a position. ``width``: w.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    codes: PositiveInt | None
    channels: PositiveInt
    grid: tuple[PositiveInt, PositiveInt]
    factor: PositiveInt
    width: PositiveInt

    @property
    def example(self) -> Tensor:
        """An input of two images: zeros."""
        if self.codes is not None:
            return torch.zeros((2, self.grid[0] * self.grid[1]), dtype=torch.int32)
        return torch.zeros((2, self.channels, *self.grid))

    @property
    def doublings(self) -> int:
        """How often a level doubles the map."""
        twos = (self.factor & -self.factor).bit_length() - 1
        return max(0, twos - 1) if self.factor == 1 << twos else twos

    @property
    def widths(self) -> tuple[int, ...]:
        """Of every level."""
        last = self.doublings
        return tuple(self.width * min(_WIDEST, 2 ** (last - each)) for each in range(last + 1))


class SmallDecoder(nn.Module):
    """Tokens or latents → image ``[B, 3, H, W]`` in 0 … 1."""

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        self.shape, widths = shape, shape.widths
        self._map = (shape.channels, *shape.grid)
        self.table = None if shape.codes is None else nn.Embedding(shape.codes, shape.channels)
        self.first = nn.Conv2d(shape.channels, widths[0], 1)
        self.blocks = nn.ModuleList(_Block(width) for width in widths)
        self.ups = nn.ModuleList(
            nn.Conv2d(width, 4 * after, 3, padding=1)
            for width, after in zip(widths, widths[1:], strict=False)
        )
        self.last_factor = shape.factor // 2**shape.doublings
        self.last = nn.Conv2d(widths[-1], 3 * self.last_factor**2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.unclamped(x).clamp(0, 1)

    def unclamped(self, x: Tensor) -> Tensor:
        """The image before it is clamped."""
        h = self.first(self.map(x))
        h = self.blocks[0](h)
        for up, block in zip(self.ups, list(self.blocks)[1:], strict=True):
            h = block(F.pixel_shuffle(up(h), 2))
        # 0.5: grey before anything is learned.
        return F.pixel_shuffle(self.last(F.relu(h)), self.last_factor) + 0.5

    def map(self, x: Tensor) -> Tensor:
        """``[B, C, h, w]`` of whatever is read."""
        if self.table is not None:
            x = self.table(x)
        return x if x.ndim == 4 else x.transpose(1, 2).reshape(-1, *self._map)


class _Block(nn.Module):
    """x + conv(relu(conv(relu(x))))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.conv2(F.relu(self.conv1(F.relu(x))))
        return out


def flops_of(shape: DecoderShape) -> int:
    """Operations of the convolutions of one image, as ``fewstep.build.graph_work`` counts them."""
    total = 0

    def count(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        assert isinstance(module, nn.Conv2d)
        total += 2 * output.numel() * module.weight[0].numel()

    with torch.device("meta"), torch.no_grad():
        network = SmallDecoder(shape)
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(count)
        network(shape.example[:1])
    return total


def widest(shape: Callable[[int], DecoderShape], flops: int) -> DecoderShape | None:
    """The shape of the largest width with so many operations at most; ``None`` if none has.

    Args:
        shape: by width.
        flops: of one image.
    """
    if flops_of(shape(1)) > flops:
        return None
    width = 1
    while flops_of(shape(2 * width)) <= flops:
        width *= 2
    step = width // 2
    while step:
        if flops_of(shape(width + step)) <= flops:
            width += step
        step //= 2
    return shape(width)
