"""The transformer of Google's MaskGIT, as maskgit-torch publishes its weights.

Same constructor arguments and state-dict keys as ``maskgit/nets/bidirectional_transformer.py`` of
hmorimitsu/maskgit-torch, so that published checkpoints load strictly. It is BERT: LayerNorm after
every residual sum, and a masked-language-model head whose matrix is that of the token embeddings.

One vocabulary holds everything that a position may be: V codes, then the classes, then the mask.
The class is the first position of the sequence and the tokens follow, as in
``maskgit/inference.py`` there. There is no class id that stands for no class.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.export.models.sizes import check_whole

_EPS = 1e-12  # of every LayerNorm


class Attention(nn.Module):
    """Multi-head self-attention ``[B, L, C] → [B, L, C]``, with the keys of
    ``torch.nn.MultiheadAttention``."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, x: Tensor) -> Tensor:
        length, dim = x.shape[1], x.shape[2]
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        qkv = qkv.reshape(-1, length, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, heads, L, head width]
        q = q * (dim // self.heads) ** -0.5
        h = torch.softmax(q @ k.transpose(-2, -1), dim=-1) @ v
        out: Tensor = self.out_proj(h.transpose(1, 2).reshape(-1, length, dim))
        return out


class Encoder(nn.Module):
    """A block: attention, then an MLP, each added to its input and normalised afterwards."""

    def __init__(self, dim: int, hidden_dim: int, num_heads: int) -> None:
        super().__init__()
        self.MultiHeadAttention = Attention(dim, num_heads)
        self.AttentionLN = nn.LayerNorm(dim, eps=_EPS)
        self.MLP = nn.Sequential(nn.Linear(dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, dim))
        self.MlpLN = nn.LayerNorm(dim, eps=_EPS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.AttentionLN(x + self.MultiHeadAttention(x))
        out: Tensor = self.MlpLN(x + self.MLP(x))
        return out


class BidirectionalTransformer(nn.Module):
    """The masked token transformer; the defaults are those of ImageNet 256×256.

    Args:
        num_image_tokens: positions with the class: ``N + 1``.
        num_codebook_vectors: size of the vocabulary: codes, classes and the mask.
        dim: width C.
        hidden_dim: hidden width of the MLP.
        num_heads: attention heads; divides ``dim``.
        attention_dropout: without effect here.
        hidden_dropout: without effect here.
        n_layers: blocks.
        codebook_size: codes V; the official code has it in its configuration.
    """

    def __init__(
        self,
        num_image_tokens: int = 257,
        num_codebook_vectors: int = 2025,
        dim: int = 768,
        hidden_dim: int = 3072,
        num_heads: int = 16,
        attention_dropout: float = 0.1,
        hidden_dropout: float = 0.1,
        n_layers: int = 24,
        *,
        codebook_size: int = 1024,
    ) -> None:
        super().__init__()
        check_whole(2, num_image_tokens=num_image_tokens)
        check_whole(3, num_codebook_vectors=num_codebook_vectors)
        check_whole(
            dim=dim,
            hidden_dim=hidden_dim,
            num_heads=num_heads,
            n_layers=n_layers,
            codebook_size=codebook_size,
        )
        if dim % num_heads:
            raise ValueError(f"num_heads must divide dim ({dim}), got {num_heads}")
        if num_codebook_vectors < codebook_size + 2:
            raise ValueError(
                f"num_codebook_vectors must be at least codebook_size ({codebook_size}), one class "
                f"and the mask, got {num_codebook_vectors}"
            )
        self.codebook_size, self.embed_dim = codebook_size, dim
        self.num_tokens = num_image_tokens - 1
        self.mask_token_id = num_codebook_vectors - 1
        self.num_classes = self.mask_token_id - codebook_size
        self.tok_emb = nn.Embedding(num_codebook_vectors, dim)
        self.pos_emb = nn.Parameter(torch.zeros(num_image_tokens, dim))
        self.blocks = nn.Sequential(*(Encoder(dim, hidden_dim, num_heads) for _ in range(n_layers)))
        self.Token_Prediction = nn.Sequential(
            nn.Linear(dim, dim), nn.GELU(), nn.LayerNorm(dim, eps=_EPS)
        )
        self.bias = nn.Parameter(torch.zeros(num_codebook_vectors))
        self.emb_ln = nn.LayerNorm(dim, eps=_EPS)
        nn.init.trunc_normal_(self.pos_emb, std=0.02)
        self.apply(_init)

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """Predict every token at once.

        Args:
            tokens: ids ``[B, N]``, integer; ``codebook_size`` marks a masked position.
            condition: class ids ``[B]``, integer, from 0.

        Returns:
            logits ``[B, N, V]``.
        """
        masked = tokens == self.codebook_size
        places = torch.where(masked, self.mask_token_id, tokens)
        classes = condition.reshape(-1, 1) + self.codebook_size
        hidden = self._hidden(torch.cat([classes, places], dim=1))
        return self._logits(hidden[:, 1:], self.codebook_size)

    def sequence_logits(self, ids: Tensor) -> Tensor:
        """What the official class returns.

        Args:
            ids: a sequence of the vocabulary's ids, ``[B, L]``, integer; ``L ≤ N + 1``.

        Returns:
            logits of the whole vocabulary, ``[B, L, num_codebook_vectors]``.
        """
        return self._logits(self._hidden(ids), len(self.bias))

    def _hidden(self, ids: Tensor) -> Tensor:
        """Ids ``[B, L]`` → hidden states after the last block, ``[B, L, C]``."""
        x = self.tok_emb(ids) + self.pos_emb[: ids.shape[1]]
        out: Tensor = self.blocks(self.emb_ln(x))
        return out

    def _logits(self, hidden: Tensor, count: int) -> Tensor:
        """Hidden states ``[B, L, C]`` → logits of the first ids, ``[B, L, count]``."""
        x = self.Token_Prediction(hidden)
        return F.linear(x, self.tok_emb.weight[:count], self.bias[:count])


def _init(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.trunc_normal_(module.weight, std=0.02)
