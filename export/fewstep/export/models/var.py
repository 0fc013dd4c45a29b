"""VAR's transformer.

Same constructor arguments and state-dict keys as ``models/var.py`` and ``models/basic_var.py`` of
the official VAR repository (FoundationVision/VAR). Token maps from 1×1 to the full grid are
predicted one after the other; the queries of a scale see all scales before it and its own. The
modules here compute one scale from the keys and values of those before it; ``forward`` computes
all scales at once, as training does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.export.models.var_quantizer import PATCH_NUMS, check_sides

_LARGEST_SCALE = math.log(100)
_LEAST_NORM = 1e-12
_UNSCALED = 0.25


class Codes(Protocol):
    """What the transformer has to know of its tokenizer."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def Cvae(self) -> int: ...


def _unit(x: Tensor) -> Tensor:
    """Over its length; written out, because ``F.normalize`` exports an Expand."""
    out: Tensor = x / x.norm(dim=-1, keepdim=True).clamp(min=_LEAST_NORM)
    return out


class SelfAttention(nn.Module):
    """Attention with q and v biases, and with unit queries and keys if ``attn_l2_norm``."""

    def __init__(self, embed_dim: int, num_heads: int, attn_l2_norm: bool) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, embed_dim // num_heads
        self.attn_l2_norm = attn_l2_norm
        if attn_l2_norm:
            self.scale_mul_1H11 = nn.Parameter(torch.full((1, num_heads, 1, 1), math.log(4.0)))
        self.mat_qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(embed_dim))
        self.v_bias = nn.Parameter(torch.zeros(embed_dim))
        self.register_buffer("zero_k_bias", torch.zeros(embed_dim))
        self.proj = nn.Linear(embed_dim, embed_dim)

    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[R, n, C]`` → queries, ready to be multiplied, keys and values ``[R, n, H, d]``."""
        assert isinstance(self.zero_k_bias, Tensor)
        bias = torch.cat([self.q_bias, self.zero_k_bias, self.v_bias])
        shape = (x.shape[0], x.shape[1], 3, self.num_heads, self.head_dim)
        q, k, v = F.linear(x, self.mat_qkv.weight, bias).reshape(shape).unbind(2)
        if self.attn_l2_norm:
            scale = self.scale_mul_1H11.clamp(max=_LARGEST_SCALE).exp()
            return _unit(q) * scale.reshape(1, 1, self.num_heads, 1), _unit(k), v
        return q * (_UNSCALED / math.sqrt(self.head_dim)), k, v

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        """Queries ``[R, H, n, d]``, keys ``[R, H, d, m]``, values ``[R, H, m, d]`` → ``[R, n, C]``.

        ``bias [n, m]`` is added to the products.
        """
        products = q @ k if bias is None else q @ k + bias
        h = torch.softmax(products, dim=-1) @ v
        width = self.num_heads * self.head_dim
        out: Tensor = self.proj(h.transpose(1, 2).reshape(q.shape[0], q.shape[2], width))
        return out


class FFN(nn.Module):
    """Two layers with GELU in its tanh form."""

    def __init__(self, embed_dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(embed_dim, hidden), nn.Linear(hidden, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        return out


class AdaLNSelfAttn(nn.Module):
    """A block whose norms the class modulates: gains γ, scales and shifts of attention and FFN."""

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        hidden: int,
        norm_eps: float,
        attn_l2_norm: bool,
        shared_aln: bool,
    ) -> None:
        super().__init__()
        self.embed_dim, self.norm_eps = embed_dim, norm_eps
        self.attn = SelfAttention(embed_dim, num_heads, attn_l2_norm)
        self.ffn = FFN(embed_dim, hidden)
        if shared_aln:
            self.ada_gss = nn.Parameter(torch.randn(1, 1, 6, embed_dim) / embed_dim**0.5)
        else:
            self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(embed_dim, 6 * embed_dim))

    def modulation(self, condition: Tensor) -> Tensor:
        """γ₁, γ₂, scale₁, scale₂, shift₁, shift₂ ``[R, 6, C]``.

        ``condition``: of the class, ``[R, C]``; with ``shared_aln`` what all blocks share,
        ``[R, 1, 6, C]``.
        """
        if hasattr(self, "ada_gss"):
            return (self.ada_gss + condition)[:, 0]
        out: Tensor = self.ada_lin(condition)
        return out.reshape(-1, 6, self.embed_dim)

    def norm(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """LayerNorm without weights of its own, scaled and shifted."""
        normed: Tensor = F.layer_norm(x, (self.embed_dim,), eps=self.norm_eps)
        return normed * (1 + scale) + shift

    def step(
        self,
        x: Tensor,
        modulation: Tensor,
        past: tuple[Tensor, Tensor],
        bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One scale, or all at once.

        Args:
            x: ``[R, n, C]``.
            modulation: ``[R, 6, C]``.
            past: keys and values of the scales before, ``[p, R, C]``.
            bias: as of attention, ``[n, p + n]``.

        Returns:
            ``[R, n, C]``, and keys and values of this scale, ``[n, R, C]``.
        """
        gain1, gain2, scale1, scale2, shift1, shift2 = (m[:, None] for m in modulation.unbind(1))
        q, k, v = self.attn.qkv(self.norm(x, scale1, shift1))
        rows, heads, width = x.shape[0], self.attn.num_heads, self.attn.head_dim
        keys = k.transpose(0, 1).reshape(-1, rows, heads * width)
        values = v.transpose(0, 1).reshape(-1, rows, heads * width)
        seen = (
            torch.cat([before, new]).reshape(-1, rows, heads, width)
            for before, new in zip(past, (keys, values), strict=True)
        )
        all_keys, all_values = next(seen).permute(1, 2, 3, 0), next(seen).permute(1, 2, 0, 3)
        x = x + self.attn.attend(q.transpose(1, 2), all_keys, all_values, bias) * gain1
        x = x + self.ffn(self.norm(x, scale2, shift2)) * gain2
        return x, keys, values

    def forward(self, x: Tensor, condition: Tensor, bias: Tensor) -> Tensor:
        """All scales at once: ``[R, L, C]``, ``bias [L, L]`` as of attention."""
        nothing = x.new_empty(0, x.shape[0], self.embed_dim)
        return self.step(x, self.modulation(condition), (nothing, nothing), bias)[0]


class AdaLNBeforeHead(nn.Module):
    """The norm before the head, modulated by the class: scale, then shift."""

    def __init__(self, embed_dim: int, norm_eps: float) -> None:
        super().__init__()
        self.embed_dim, self.norm_eps = embed_dim, norm_eps
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(embed_dim, 2 * embed_dim))

    def modulation(self, condition: Tensor) -> Tensor:
        """Scale and shift ``[R, 2, C]`` from the class ``[R, C]``."""
        out: Tensor = self.ada_lin(condition)
        return out.reshape(-1, 2, self.embed_dim)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        scale, shift = (m[:, None] for m in modulation.unbind(1))
        normed: Tensor = F.layer_norm(x, (self.embed_dim,), eps=self.norm_eps)
        return normed * (1 + scale) + shift


class SharedAdaLin(nn.Linear):
    """The modulation that all blocks share: ``[R, C] → [R, 1, 6, C]``."""

    def forward(self, condition: Tensor) -> Tensor:
        return super().forward(condition).reshape(-1, 1, 6, self.weight.shape[1])


class VAR(nn.Module):
    """The transformer.

    Args:
        vae_local: the tokenizer, or what is needed of it.
        num_classes: classes; one more row stands for no class.
        depth: blocks.
        embed_dim: width C.
        num_heads: heads.
        mlp_ratio: width of the FFN over C.
        norm_eps: of the norms.
        shared_aln: one modulation for all blocks, and an offset for each.
        attn_l2_norm: queries and keys of unit length, and a learned scale for each head.
        patch_nums: sides of the token maps.
        drop_rate, attn_drop_rate, drop_path_rate, cond_drop_rate, flash_if_available,
            fused_if_available: of training or of speed; without effect here.

    Raises:
        ValueError: a width that is no multiple of the heads, or no scales.
    """

    def __init__(
        self,
        vae_local: Codes,
        num_classes: int = 1000,
        depth: int = 16,
        embed_dim: int = 1024,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        norm_eps: float = 1e-6,
        shared_aln: bool = False,
        cond_drop_rate: float = 0.1,
        attn_l2_norm: bool = False,
        patch_nums: Sequence[int] = PATCH_NUMS,
        flash_if_available: bool = True,
        fused_if_available: bool = True,
    ) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim {embed_dim} is no multiple of num_heads {num_heads}")
        check_sides("patch_nums", patch_nums)
        if not isinstance(norm_eps, float) or not 0 < norm_eps < 1:
            raise ValueError(f"norm_eps must be above 0 and below 1, got {norm_eps!r}")
        self.embed_dim, self.depth, self.num_heads = embed_dim, depth, num_heads
        self.num_classes, self.codebook_size = num_classes, vae_local.vocab_size
        self.codebook_width, self.patch_nums = vae_local.Cvae, tuple(patch_nums)
        counts = [side * side for side in self.patch_nums]
        self.word_embed = nn.Linear(self.codebook_width, embed_dim)
        self.class_emb = nn.Embedding(num_classes + 1, embed_dim)
        self.pos_start = nn.Parameter(torch.empty(1, counts[0], embed_dim))
        self.pos_1LC = nn.Parameter(torch.empty(1, sum(counts), embed_dim))
        self.lvl_embed = nn.Embedding(len(counts), embed_dim)
        self.shared_ada_lin = (
            nn.Sequential(nn.SiLU(), SharedAdaLin(embed_dim, 6 * embed_dim))
            if shared_aln
            else nn.Identity()
        )
        hidden = round(embed_dim * mlp_ratio)
        self.blocks = nn.ModuleList(
            AdaLNSelfAttn(embed_dim, num_heads, hidden, norm_eps, attn_l2_norm, shared_aln)
            for _ in range(depth)
        )
        level = self.levels()
        self.register_buffer("lvl_1L", level)
        later = level > level.T
        bias = torch.zeros(later.shape).masked_fill(later, -torch.inf)
        self.register_buffer("attn_bias_for_masking", bias[None, None])
        self.head_nm = AdaLNBeforeHead(embed_dim, norm_eps)
        self.head = nn.Linear(embed_dim, self.codebook_size)

    def levels(self, device: str | None = None) -> Tensor:
        """The scale of every token, ``[1, L]`` int64."""
        parts = [
            torch.full((side * side,), index, device=device)
            for index, side in enumerate(self.patch_nums)
        ]
        return torch.cat(parts)[None]

    def positions(self) -> Tensor:
        """Position and level embeddings of every token, ``[L, C]``."""
        assert isinstance(self.lvl_1L, Tensor)
        out: Tensor = self.lvl_embed(self.lvl_1L) + self.pos_1LC
        return out[0]

    def modulations(self, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Of all blocks ``[R, depth, 6, C]`` and of the head ``[R, 2, C]``, from ``[R, C]``."""
        shared = self.shared_ada_lin(condition)
        blocks = [block.modulation(shared) for block in self.blocks]  # type: ignore[operator]
        return torch.stack(blocks, 1), self.head_nm.modulation(condition)

    def forward(self, class_ids: Tensor, words: Tensor) -> Tensor:
        """Logits ``[B, L, V]`` of all scales at once (teacher forcing).

        Args:
            class_ids: ``[B]``; ``num_classes`` stands for no class.
            words: f̂ after every scale but the last, brought to the size of the next,
                ``[B, L − n, Cvae]`` with n tokens of the first scale.
        """
        assert isinstance(self.attn_bias_for_masking, Tensor)
        condition = self.class_emb(class_ids)
        first = condition[:, None] + self.pos_start
        x = torch.cat([first, self.word_embed(words)], 1) + self.positions()
        shared, bias = self.shared_ada_lin(condition), self.attn_bias_for_masking[0, 0]
        for block in self.blocks:
            x = block(x, shared, bias)
        out: Tensor = self.head(self.head_nm(x, self.head_nm.modulation(condition)))
        return out
