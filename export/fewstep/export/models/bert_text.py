"""BERT as a text encoder (Devlin et al., NAACL 2019): token ids → states of a text.

Same constructor arguments and state-dict keys as ``BertModel`` of transformers
(``models/bert/modeling_bert.py``), less its pooler, which no token model reads. Blocks norm after
they add. Positions of the padding id are hidden from the others, and their states are zero, as in
the files of text states that masked models are trained with.

Flow: ``ids [B, L]`` → sum of word, position and type embeddings → norm → layers → ``[B, L, W]``.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.export.models.clip_text import HIDDEN

ARGUMENTS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
    "layer_norm_eps",
    "pad_token_id",
)
"""What the constructor takes from a ``config.json``."""

_ONLY = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}
_UNUSED = ("embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias")


class Embeddings(nn.Module):
    """Token ids ``[B, L]`` → ``[B, L, W]``; every token is of the first type."""

    def __init__(self, vocabulary: int, positions: int, types: int, width: int, eps: float) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(vocabulary, width)
        self.position_embeddings = nn.Embedding(positions, width)
        self.token_type_embeddings = nn.Embedding(types, width)
        self.LayerNorm = nn.LayerNorm(width, eps=eps)

    def forward(self, ids: Tensor) -> Tensor:
        positions = self.position_embeddings.weight[: ids.shape[1]]
        x = self.word_embeddings(ids) + positions + self.token_type_embeddings.weight[0]
        out: Tensor = self.LayerNorm(x)
        return out


class SelfAttention(nn.Module):
    """Attention of all positions to those that ``seen [B, 1, 1, L]`` (bool) allows."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        q, k, v = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, H, L, d]
            for project in (self.query, self.key, self.value)
        )
        scores = (q @ k.transpose(2, 3)) * q.shape[-1] ** -0.5
        weights = scores.masked_fill(~seen, HIDDEN).softmax(-1)
        out: Tensor = (weights @ v).transpose(1, 2).flatten(2)  # [B, L, W]
        return out


class AddNorm(nn.Module):
    """A linear layer, whose output is added to ``beside [B, L, W]`` and normed."""

    def __init__(self, width_in: int, width: int, eps: float) -> None:
        super().__init__()
        self.dense = nn.Linear(width_in, width)
        self.LayerNorm = nn.LayerNorm(width, eps=eps)

    def forward(self, x: Tensor, beside: Tensor) -> Tensor:
        out: Tensor = self.LayerNorm(self.dense(x) + beside)
        return out


class Attention(nn.Module):
    """Attention and what joins it to its input."""

    def __init__(self, width: int, heads: int, eps: float) -> None:
        super().__init__()
        self.self = SelfAttention(width, heads)
        self.output = AddNorm(width, width, eps)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        out: Tensor = self.output(self.self(x, seen), x)
        return out


class Intermediate(nn.Module):
    """The wide half of the MLP: a linear layer and the exact GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.dense(x))


class Layer(nn.Module):
    """Attention and MLP: ``[B, L, W]``."""

    def __init__(self, width: int, heads: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.attention = Attention(width, heads, eps)
        self.intermediate = Intermediate(width, hidden)
        self.output = AddNorm(hidden, width, eps)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        x = self.attention(x, seen)
        out: Tensor = self.output(self.intermediate(x), x)
        return out


class Encoder(nn.Module):
    """The layers."""

    def __init__(self, layers: list[Layer]) -> None:
        super().__init__()
        self.layer = nn.ModuleList(layers)


class BertText(nn.Module):
    """BERT's last hidden states.

    Args:
        vocab_size: number of token ids.
        hidden_size: width W of the states.
        num_hidden_layers: layers.
        num_attention_heads: heads; divides ``hidden_size``.
        intermediate_size: width of the MLP between its two layers.
        max_position_embeddings: the longest text.
        type_vocab_size: types of tokens, of which the first is used.
        layer_norm_eps: added to the variance in norms.
        pad_token_id: the id that fills up a text.

    Raises:
        ValueError: the heads do not divide the width.
    """

    def __init__(
        self,
        *,
        vocab_size: int = 30522,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        intermediate_size: int = 3072,
        max_position_embeddings: int = 512,
        type_vocab_size: int = 2,
        layer_norm_eps: float = 1e-12,
        pad_token_id: int = 0,
    ) -> None:
        super().__init__()
        if num_attention_heads < 1 or hidden_size % num_attention_heads:
            raise ValueError(
                f"num_attention_heads must divide hidden_size ({hidden_size}), "
                f"got {num_attention_heads}"
            )
        self.pad_token_id, self.width = pad_token_id, hidden_size
        self.embeddings = Embeddings(
            vocab_size, max_position_embeddings, type_vocab_size, hidden_size, layer_norm_eps
        )
        self.encoder = Encoder(
            [
                Layer(hidden_size, num_attention_heads, intermediate_size, layer_norm_eps)
                for _ in range(num_hidden_layers)
            ]
        )

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids ``[B, L]`` (integer) → states ``[B, L, W]`` (float32), zero at padding."""
        kept = ids != self.pad_token_id
        seen, x = kept[:, None, None, :], self.embeddings(ids)
        for layer in self.encoder.layer:
            x = layer(x, seen)
        out: Tensor = x * kept[..., None].to(x.dtype)
        return out


def constructor_arguments(config: dict[str, Any]) -> dict[str, Any]:
    """What :class:`BertText` takes of a ``config.json`` of transformers.

    Raises:
        ValueError: another kind of network, or an activation or positions that BERT does not have.
    """
    for name, expected in _ONLY.items():
        if config.get(name, expected) != expected:
            raise ValueError(f'{name} must be "{expected}", got "{config[name]}"')
    return {name: config[name] for name in ARGUMENTS if name in config}


def without_unused(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of transformers' ``BertModel`` less what no state of a text needs."""
    return {key: value for key, value in state.items() if key not in _UNUSED}
