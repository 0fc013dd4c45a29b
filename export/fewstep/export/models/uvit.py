"""U-ViT masked token transformer, class- or text-conditional.

Same constructor arguments and state-dict keys as ``libs/uvit.py`` of the official AdaNAT
repository (LeapLabTHU/AdaNAT), so that published checkpoints load strictly. The architecture
is U-ViT (Bao et al., CVPR 2023) with BERT-style token embeddings and a masked-language-model
head whose output matrix is tied to the token embeddings.

Flow: ``tokens [B, N]`` and a condition become one sequence ``[B, E + N, C]`` (E context
positions first), pass ``depth // 2`` blocks down, one in the middle and ``depth // 2`` up
(joined to the way down by long skips), and end in logits over the codebook.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Embeddings(nn.Module):
    """Word plus position embeddings, then LayerNorm (eps 1e-6): ``[B, N] → [B, N, C]``."""

    def __init__(self, vocab_size: int, dim: int, positions: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(vocab_size, dim)
        self.position_embeddings = nn.Embedding(positions, dim)
        self.LayerNorm = nn.LayerNorm(dim, eps=1e-6)
        self.dropout = nn.Dropout(dropout)
        nn.init.normal_(self.word_embeddings.weight, std=0.02)
        nn.init.normal_(self.position_embeddings.weight, std=0.02)

    def forward(self, ids: Tensor, positions: Tensor | None = None) -> Tensor:
        """Ids of all positions, or of those named, ``[B, n]``."""
        places = self.position_embeddings
        x = self.word_embeddings(ids) + (places.weight if positions is None else places(positions))
        out: Tensor = self.dropout(self.LayerNorm(x))
        return out


class Attention(nn.Module):
    """Multi-head self-attention over ``[B, L, C]`` with a fused ``qkv`` projection."""

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool, qk_scale: float | None) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = qk_scale or (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, dim * 3, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        length, dim = x.shape[1], x.shape[2]
        qkv = self.qkv(x).reshape(-1, length, 3, self.num_heads, dim // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, heads, L, head_dim]
        weights = ((q * self.scale) @ k.transpose(-2, -1)).softmax(dim=-1)
        out: Tensor = self.proj((weights @ v).transpose(1, 2).reshape(-1, length, dim))
        return out

    def with_cached(self, x: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Attention over ``[B, L, C]`` and others, whose keys and values are ``[B, P, C]``.

        Returns:
            the output, and own keys and values, ``[B, L, C]``.
        """
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        all_keys, all_values = torch.cat([keys, k], 1), torch.cat([values, v], 1)
        wanted, found, content = (self._heads(each) for each in (q, all_keys, all_values))
        weights = ((wanted * self.scale) @ found.transpose(-2, -1)).softmax(dim=-1)
        out: Tensor = self.proj((weights @ content).transpose(1, 2).flatten(2))
        return out, k, v

    def _heads(self, x: Tensor) -> Tensor:
        """``[B, L, C] → [B, heads, L, head_dim]``."""
        batch, length, dim = x.shape
        return x.reshape(batch, length, self.num_heads, dim // self.num_heads).transpose(1, 2)


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class Block(nn.Module):
    """Pre-norm transformer block, optionally joined to a long skip by a linear layer."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        qkv_bias: bool,
        qk_scale: float | None,
        skip: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, num_heads, qkv_bias, qk_scale)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.skip_linear = nn.Linear(2 * dim, dim) if skip else None

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        if self.skip_linear is not None and skip is not None:
            x = self.skip_linear(torch.cat([x, skip], dim=-1))
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out

    def with_cached(
        self, x: Tensor, skip: Tensor | None, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The same, beside others whose keys and values are given; with own keys and values."""
        if self.skip_linear is not None and skip is not None:
            x = self.skip_linear(torch.cat([x, skip], dim=-1))
        attended, *own = self.attn.with_cached(self.norm1(x), keys, values)
        x = x + attended
        return x + self.mlp(self.norm2(x)), own[0], own[1]


class MlmLayer(nn.Module):
    """Masked-language-model head: ``[B, L, C] → [B, L, vocabulary]`` with a tied matrix."""

    def __init__(self, dim: int, vocab_size: int) -> None:
        super().__init__()
        self.fc = nn.Linear(dim, dim)
        self.gelu = nn.GELU()
        self.ln = nn.LayerNorm(dim)
        self.bias = nn.Parameter(torch.zeros(1, 1, vocab_size))

    def forward(self, x: Tensor, word_embeddings: Tensor) -> Tensor:
        hidden = self.ln(self.gelu(self.fc(x)))
        out: Tensor = hidden @ word_embeddings.transpose(0, 1) + self.bias
        return out


class UViT(nn.Module):
    """The masked token transformer of AdaNAT.

    Args:
        img_size: side of the square token grid; ``N = img_size ** 2``.
        patch_size: always 1 (a token is a position); kept for official configurations.
        in_chans: unused, kept for official configurations.
        embed_dim: width C.
        depth: number of blocks besides the middle one; an odd number counts as ``depth - 1``.
        num_heads: attention heads; divides ``embed_dim``.
        mlp_ratio: hidden width of the MLP over C.
        qkv_bias: bias on the qkv projection.
        qk_scale: attention scale; ``None`` means ``head_dim ** -0.5``.
        use_checkpoint: unused (gradient checkpointing), kept for official configurations.
        clip_dim: width of the text states, when ``num_classes`` is ``None``.
        num_clip_token: number of text states.
        skip: long skips between the way down and the way up.
        codebook_size: number of codes V; the mask token has id V.
        num_classes: number of class ids *with* the unconditional one, or ``None`` for text.
    """

    def __init__(
        self,
        img_size: int = 16,
        patch_size: int = 1,
        in_chans: int = 8,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        use_checkpoint: bool = False,
        clip_dim: int = 768,
        num_clip_token: int = 77,
        skip: bool = True,
        codebook_size: int = 1024,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        if patch_size != 1:
            raise ValueError(f"patch_size must be 1, got {patch_size}")
        if num_heads < 1 or embed_dim % num_heads:
            raise ValueError(f"num_heads must divide embed_dim ({embed_dim}), got {num_heads}")
        self.skip = skip
        self.codebook_size = codebook_size
        self.num_tokens = img_size**2
        self.embed_dim = embed_dim
        self.num_classes = num_classes or 0
        self.context_width = clip_dim
        self.token_emb = Embeddings(codebook_size + 1, embed_dim, self.num_tokens, dropout=0.1)
        self.context_embed: nn.Module
        if num_classes is not None:
            self.extras = 1
            self.context_embed = Embeddings(num_classes, embed_dim, 1)
        else:
            self.extras = num_clip_token
            self.context_embed = nn.Linear(clip_dim, embed_dim)

        def block(with_skip: bool = False) -> Block:
            return Block(embed_dim, num_heads, mlp_ratio, qkv_bias, qk_scale, with_skip)

        self.in_blocks = nn.ModuleList([block() for _ in range(depth // 2)])
        self.mid_block = block()
        self.out_blocks = nn.ModuleList([block(skip) for _ in range(depth // 2)])
        self.norm = nn.LayerNorm(embed_dim)
        self.mlm_layer = MlmLayer(embed_dim, codebook_size + 1)
        self.apply(_init_linear)

    @property
    def class_conditional(self) -> bool:
        """Whether the condition is a class id (else text states)."""
        return self.num_classes > 0

    def forward(self, tokens: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Predict every token at once.

        Args:
            tokens: ids ``[B, N]``, integer; ``codebook_size`` marks a masked position.
            condition: class ids ``[B]`` (integer) or text states ``[B, L, D]`` (float32).

        Returns:
            logits ``[B, N, V]`` and features ``[B, N, C]`` (the policy network's input).
        """
        if self.class_conditional:
            condition = condition.reshape(-1, 1)
        x = torch.cat([self.context_embed(condition), self.token_emb(tokens)], dim=1)
        skips = []
        for down in self.in_blocks:
            x = down(x)
            skips.append(x)
        x = self.mid_block(x)
        for up in self.out_blocks:
            x = up(x, skips.pop() if self.skip else None)
        return self._output(x)

    @property
    def num_blocks(self) -> int:
        """All blocks, each of which has keys and values."""
        return len(self.in_blocks) + 1 + len(self.out_blocks)

    def with_cached(
        self, tokens: Tensor, positions: Tensor, condition: Tensor, past: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Predict some positions beside others, whose keys and values are cached.

        As ReCAP does (liebenxj/ReCAP): the context, and these positions, attend to each other and
        to what is cached; what is cached does not change. With all positions and an empty cache
        this is :meth:`forward`.

        Args:
            tokens: ids ``[B, n]``, as for :meth:`forward`.
            positions: of these, ``[B, n]``, integer.
            condition: as for :meth:`forward`.
            past: keys and values of every block, one after the other, ``[B, P, C]``.

        Returns:
            logits ``[B, n, V]``, features ``[B, n, C]``, and own keys and values in the order of
            ``past``, ``[B, n, C]``.
        """
        if self.class_conditional:
            condition = condition.reshape(-1, 1)
        context, own = self.context_embed(condition), list[Tensor]()
        x, skips = torch.cat([context, self.token_emb(tokens, positions)], dim=1), list[Tensor]()
        blocks, down = [*self.in_blocks, self.mid_block, *self.out_blocks], len(self.in_blocks)
        for index, block in enumerate(blocks):
            skip = skips.pop() if self.skip and index > down else None
            x, *new = block.with_cached(x, skip, past[2 * index], past[2 * index + 1])
            own += [each[:, self.extras :] for each in new]
            if index < down:
                skips.append(x)
        logits, features = self._output(x)
        return logits, features, own

    def _output(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.norm(x)[:, self.extras :]
        # Detached as in the official class: the head does not train the embeddings it is tied to.
        logits = self.mlm_layer(features, self.token_emb.word_embeddings.weight.detach())
        return logits[:, :, : self.codebook_size], features


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
