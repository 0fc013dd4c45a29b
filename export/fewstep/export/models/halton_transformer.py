"""Halton-MaskGIT's transformer: tokens of an image, the class in the modulation of every layer.

Same constructor arguments and state-dict keys as ``Transformer`` in ``Network/transformer.py`` of
the official Halton-MaskGIT repository (valeoai/Halton-MaskGIT). It is a DiT with adaptive layer
norm: RMSNorm, queries and keys normalised over all heads together, SwiGLU, register tokens behind
those of the image, and an output layer that shares its matrix with the embedding of tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.export.models.sizes import check_whole

_EPS = 1e-5
_FEED_FORWARD_MULTIPLE = 256


def rms_normalised(x: Tensor) -> Tensor:
    """``x`` over the root of the mean of its squares, along the last axis."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + _EPS)


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """``[B, L, C]`` with shift and scale ``[B, 1, C]``."""
    return x * (1 + scale) + shift


class RMSNorm(nn.Module):
    """RMSNorm with a weight, with a bias or without."""

    def __init__(self, width: int, *, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.weight * rms_normalised(x)
        return x if self.bias is None else x + self.bias


class Attention(nn.Module):
    """Attention of all positions to all, ``[B, L, C] → [B, L, C]``.

    A head is ``width // heads`` wide, so that all of them may be narrower than ``width``.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head_width = heads, width // heads
        inner = self.heads * self.head_width
        self.wq, self.wk, self.wv = (nn.Linear(width, inner, bias=False) for _ in range(3))
        self.wo = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rms_normalised(self.wq(x)), rms_normalised(self.wk(x)), self.wv(x)
        q, k, v = (
            each.unflatten(-1, (self.heads, self.head_width)).transpose(1, 2) for each in (q, k, v)
        )  # [B, heads, L, d]
        weights = torch.softmax((q * self.head_width**-0.5) @ k.transpose(-2, -1), dim=-1)
        out: Tensor = self.wo((weights @ v).transpose(1, 2).flatten(2))
        return out


class FeedForward(nn.Module):
    """SwiGLU. Of ``hidden`` two thirds are kept, rounded up to a multiple of 256."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        kept = int(2 * hidden / 3)
        hidden = -(-kept // _FEED_FORWARD_MULTIPLE) * _FEED_FORWARD_MULTIPLE
        self.w1 = nn.Linear(width, hidden, bias=False)
        self.w2 = nn.Linear(hidden, width, bias=False)
        self.w3 = nn.Linear(width, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.w2(F.silu(self.w1(x)) * self.w3(x))
        return out


def _modulation(width: int, parts: int) -> nn.Sequential:
    return nn.Sequential(nn.SiLU(), nn.Linear(width, parts * width))


class Block(nn.Module):
    """Attention and feed-forward; the class says shift, scale and gate of each, in this order."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.mlp = _modulation(width, 6)
        self.ln1, self.attn = RMSNorm(width), Attention(width, heads)
        self.ln2, self.ff = RMSNorm(width), FeedForward(width, hidden)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """``x [B, L, C]``, ``condition [B, 1, C]`` → ``[B, L, C]``."""
        shift, scale, gate, ff_shift, ff_scale, ff_gate = self.mlp(condition).chunk(6, dim=-1)
        x = x + gate * self.attn(modulated(self.ln1(x), shift, scale))
        out: Tensor = x + ff_gate * self.ff(modulated(self.ln2(x), ff_shift, ff_scale))
        return out


class _Blocks(nn.Module):
    """A module of its own, for the official keys."""

    def __init__(self, width: int, depth: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(width, heads, hidden) for _ in range(depth))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, condition)
        return x


class _AdaNorm(nn.Module):
    """The last norm; the class says its shift and scale, in this order."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_final = RMSNorm(width, bias=True)
        self.mlp = _modulation(width, 2)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.mlp(condition).chunk(2, dim=-1)
        return modulated(self.norm_final(x), shift, scale)


class HaltonTransformer(nn.Module):
    """The masked token transformer of Halton-MaskGIT.

    Args:
        input_size: side of the square token grid; N = ``input_size ** 2``.
        hidden_dim: width C.
        codebook_size: codes V; the mask token has id V.
        depth: blocks.
        heads: attention heads, each ``hidden_dim // heads`` wide.
        mlp_dim: of the feed-forward layers, of which two thirds are kept, rounded up to a multiple
            of 256; published models have ``4 * hidden_dim``.
        dropout: without effect here.
        nclass: classes; id ``nclass`` stands for none.
        register: tokens behind those of the image, for the network's own use.
        proj: 1. The official class takes more, but then fails.
    """

    def __init__(
        self,
        input_size: int = 16,
        hidden_dim: int = 768,
        codebook_size: int = 1024,
        depth: int = 12,
        heads: int = 16,
        mlp_dim: int = 3072,
        dropout: float = 0.0,
        nclass: int = 1000,
        register: int = 1,
        proj: float = 1,
    ) -> None:
        super().__init__()
        check_whole(
            input_size=input_size,
            hidden_dim=hidden_dim,
            codebook_size=codebook_size,
            depth=depth,
            heads=heads,
            mlp_dim=mlp_dim,
            nclass=nclass,
        )
        check_whole(0, register=register)
        if heads > hidden_dim:
            raise ValueError(f"heads must be at most hidden_dim, {hidden_dim}, got {heads}")
        if proj != 1:
            raise ValueError(f"proj must be 1, got {proj!r}")
        self.input_size, self.hidden_dim = input_size, hidden_dim
        self.codebook_size, self.nclass, self.register = codebook_size, nclass, register
        self.cls_emb = nn.Embedding(nclass + 1, hidden_dim)
        self.tok_emb = nn.Embedding(codebook_size + 1, hidden_dim)
        self.pos_emb = nn.Embedding(input_size**2, hidden_dim)
        self.transformer = _Blocks(hidden_dim, depth, heads, mlp_dim)
        self.last_norm = _AdaNorm(hidden_dim)
        self.head = nn.Linear(hidden_dim, codebook_size + 1)
        self.head.weight = self.tok_emb.weight
        if register:
            self.reg_tokens = nn.Embedding(register, hidden_dim)

    @property
    def num_tokens(self) -> int:
        """Tokens of an image, N."""
        return self.input_size**2

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """Predict every token at once.

        Args:
            tokens: ids ``[B, N]``, integer; V marks a masked position.
            condition: class ids ``[B]``, integer; ``nclass`` for none.

        Returns:
            Logits ``[B, N, V + 1]``. The last is that of the mask id, which the official samplers
            may draw too.
        """
        # Of the shared matrix a file has two copies. Loaded, they are two tensors: one is used.
        x = F.embedding(tokens, self.head.weight) + self.pos_emb.weight
        if self.register:
            registers = self.reg_tokens.weight.expand(tokens.shape[0], -1, -1)
            x = torch.cat([x, registers], dim=1)
        of_class = self.cls_emb(condition)[:, None]  # [B, 1, C]
        x = self.transformer(x, of_class)[:, : self.num_tokens]
        out: Tensor = self.head(self.last_norm(x, of_class))
        return out
