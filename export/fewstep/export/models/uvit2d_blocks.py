"""What aMUSEd's transformer is made of: convolutional blocks and transformer layers.

Same state-dict keys as diffusers 0.42.1 has in ``models/unets/uvit_2d.py``,
``models/attention.py`` and ``models/normalization.py``. Norms of the transformer's layers are
scaled and shifted by the condition.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RMSNorm(nn.Module):
    """x / √(mean of x² + eps) over the last dimension, times a weight if ``affine``."""

    def __init__(self, width: int, eps: float, affine: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        h = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)
        return h if self.weight is None else h * self.weight


class AdaptiveNorm(nn.Module):
    """A norm of ``[B, n, D]``, scaled and shifted by the condition ``[B, D]``."""

    def __init__(self, width: int, norm: nn.Module, bias: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 2 * width, bias)
        self.norm = norm

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.linear(F.silu(condition))[:, None].chunk(2, dim=-1)
        out: Tensor = self.norm(x) * (1 + scale) + shift
        return out


class Attention(nn.Module):
    """Attention of ``[B, n, W]`` to ``[B, m, W]``, with a layer for each of q, k and v."""

    def __init__(self, width: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads, self.head_width = heads, width // heads
        inner = heads * self.head_width
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, inner, bias) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(inner, width, bias)])

    def forward(self, x: Tensor, to: Tensor) -> Tensor:
        q, k, v = (
            each.unflatten(-1, (self.heads, self.head_width)).transpose(1, 2)  # [B, H, n, d]
            for each in (self.to_q(x), self.to_k(to), self.to_v(to))
        )
        weights = torch.softmax((q * self.head_width**-0.5) @ k.transpose(2, 3), dim=-1)
        out: Tensor = self.to_out[0]((weights @ v).transpose(1, 2).flatten(2))
        return out


class Gated(nn.Module):
    """GEGLU: one half of a linear layer times GELU of the other."""

    def __init__(self, width: int, hidden: int, bias: bool) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * hidden, bias)

    def forward(self, x: Tensor) -> Tensor:
        h, gate = self.proj(x).chunk(2, dim=-1)
        out: Tensor = h * F.gelu(gate)
        return out


class FeedForward(nn.Module):
    """A gated layer and a linear one; index 1 of the official list is its dropout."""

    def __init__(self, width: int, hidden: int, bias: bool) -> None:
        super().__init__()
        self.net = nn.ModuleList(
            [Gated(width, hidden, bias), nn.Identity(), nn.Linear(hidden, width, bias)]
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net[2](self.net[0](x))
        return out


class TransformerBlock(nn.Module):
    """Attention to the image, attention to the text, feed-forward."""

    def __init__(
        self, width: int, heads: int, hidden: int, eps: float, affine: bool, bias: bool
    ) -> None:
        super().__init__()
        self.norm1 = AdaptiveNorm(width, RMSNorm(width, eps, affine), bias)
        self.attn1 = Attention(width, heads, bias)
        self.norm2 = AdaptiveNorm(width, RMSNorm(width, eps, affine), bias)
        self.attn2 = Attention(width, heads, bias)
        # The last norm is another kind than the first two.
        self.norm3 = AdaptiveNorm(width, nn.LayerNorm(width, eps, affine, bias), bias)
        self.ff = FeedForward(width, hidden, bias)

    def forward(self, x: Tensor, condition: Tensor, text: Tensor) -> Tensor:
        """``x [B, n, D]``, condition ``[B, D]``, text ``[B, L, D]`` → ``[B, n, D]``."""
        h = self.norm1(x, condition)
        x = x + self.attn1(h, h)
        x = x + self.attn2(self.norm2(x, condition), text)
        out: Tensor = x + self.ff(self.norm3(x, condition))
        return out


class ResponseNorm(nn.Module):
    """Global response normalisation of ConvNeXt V2 over the positions of ``[B, h, w, C]``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, width))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        response = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
        relative = response / (response.mean(-1, keepdim=True) + 1e-6)
        out: Tensor = self.gamma * (x * relative) + self.beta + x
        return out


class ConvBlock(nn.Module):
    """A block of ConvNeXt V2, scaled and shifted by the condition: ``[B, C, h, w]``."""

    def __init__(self, channels: int, width: int, eps: float, affine: bool, bias: bool) -> None:
        super().__init__()
        hidden = 4 * channels
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=bias)
        self.norm = RMSNorm(channels, eps, affine)
        self.channelwise_linear_1 = nn.Linear(channels, hidden, bias)
        self.channelwise_norm = ResponseNorm(hidden)
        self.channelwise_linear_2 = nn.Linear(hidden, channels, bias)
        self.cond_embeds_mapper = nn.Linear(width, 2 * channels, bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        h = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        h = self.channelwise_norm(F.gelu(self.channelwise_linear_1(h)))
        h = x + self.channelwise_linear_2(h).permute(0, 3, 1, 2)
        scale, shift = self.cond_embeds_mapper(F.silu(condition))[..., None, None].chunk(2, dim=1)
        out: Tensor = h * (1 + scale) + shift
        return out


class TextBlock(nn.Module):
    """Attention to the text, twice: ``[B, n, C]``. Its norms do not follow the arguments."""

    def __init__(self, channels: int, width: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.kv_mapper = None if width == channels else nn.Linear(width, channels, bias)
        self.norm1, self.norm2 = RMSNorm(channels, 1e-6), RMSNorm(channels, 1e-6)
        self.attn1, self.attn2 = (Attention(channels, heads, bias) for _ in range(2))

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        if self.kv_mapper is not None:
            text = self.kv_mapper(F.silu(text))
        x = x + self.attn1(self.norm1(x), text)
        out: Tensor = x + self.attn2(self.norm2(x), text)
        return out


class Resize(nn.Module):
    """A norm, then a convolution that halves or doubles height and width."""

    def __init__(self, norm: RMSNorm, conv: nn.Module) -> None:
        super().__init__()
        self.norm, self.conv = norm, conv

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
        return out


class Level(nn.Module):
    """The convolutional blocks of one side, each with attention to the text.

    Args:
        channels: their width C.
        width: that of condition and text, D.
        blocks: how many.
        heads: of the attention.
        eps: of the norms.
        affine: whether the norms have weights.
        bias: whether layers have one.
        down: halve the grid first. The official class pads odd sides, which no sampler of it can
            use, so they are not padded here.
        up: double the grid at the end.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        blocks: int,
        heads: int,
        eps: float,
        affine: bool,
        bias: bool,
        *,
        down: bool = False,
        up: bool = False,
    ) -> None:
        super().__init__()
        halve = nn.Conv2d(channels, channels, 2, stride=2, bias=bias) if down else None
        double = nn.ConvTranspose2d(channels, channels, 2, stride=2, bias=bias) if up else None
        norm = (channels, eps, affine)
        self.downsample = None if halve is None else Resize(RMSNorm(*norm), halve)
        self.res_blocks = nn.ModuleList(
            ConvBlock(channels, width, eps, affine, bias) for _ in range(blocks)
        )
        self.attention_blocks = nn.ModuleList(
            TextBlock(channels, width, heads, bias) for _ in range(blocks)
        )
        self.upsample = None if double is None else Resize(RMSNorm(*norm), double)

    def forward(self, x: Tensor, condition: Tensor, text: Tensor) -> Tensor:
        """``x [B, C, h, w]``, condition ``[B, D]``, text ``[B, L, D]`` → ``[B, C, h', w']``."""
        if self.downsample is not None:
            x = self.downsample(x)
        shape = (-1, *x.shape[1:])
        for convolve, attend in zip(self.res_blocks, self.attention_blocks, strict=True):
            x = convolve(x, condition)
            x = attend(x.flatten(2).transpose(1, 2), text).transpose(1, 2).reshape(shape)
        return x if self.upsample is None else self.upsample(x)
