"""CLIP's text encoder with its projection: what text-conditional models are told of a text.

Same constructor arguments and state-dict keys as ``CLIPTextModelWithProjection`` of transformers
(``models/clip/modeling_clip.py``; 4.x and 5.x agree). aMUSEd reads the states before the last layer
and the projected vector; AdaNAT's CC3M model reads the states after the last norm.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.export.models.sizes import check_whole
from fewstep.export.models.uvit2d import packed


def quick_gelu(x: Tensor) -> Tensor:
    """OpenAI's approximation of GELU: x · sigmoid(1.702 x)."""
    return x * torch.sigmoid(1.702 * x)


_TANH_GELU = functools.partial(F.gelu, approximate="tanh")
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "quick_gelu": quick_gelu,
    "gelu": F.gelu,
    "gelu_new": _TANH_GELU,
    "gelu_pytorch_tanh": _TANH_GELU,
}
WRONG_END = 2
"""What older configurations say by mistake of the token at the end of a text."""

HIDDEN = -30_000.0
"""Added to scores of positions that are not seen: e to this is 0, and fp16 has it, unlike -inf."""


class Embeddings(nn.Module):
    """Token ids ``[B, L]`` → ``[B, L, W]``, with learned positions."""

    def __init__(self, vocabulary: int, positions: int, width: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.position_embedding = nn.Embedding(positions, width)

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[1]]
        return out


class Attention(nn.Module):
    """Attention of all positions, with a layer for each of q, k and v."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head_width = heads, width // heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(width, width) for _ in range(4)
        )

    def forward(self, x: Tensor, later: Tensor) -> Tensor:
        """``x [B, L, W]``; ``later [L, L]`` is −∞ where a position may not look, else 0."""
        q, k, v = (
            project(x).unflatten(-1, (self.heads, self.head_width)).transpose(1, 2)  # [B, H, L, d]
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        weights = torch.softmax((q * self.head_width**-0.5) @ k.transpose(2, 3) + later, dim=-1)
        out: Tensor = self.out_proj((weights @ v).transpose(1, 2).flatten(2))
        return out


class Mlp(nn.Module):
    """Two layers with an activation between."""

    def __init__(self, width: int, hidden: int, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.act = act
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class Layer(nn.Module):
    """Attention and MLP, each with a norm before and its input beside: ``[B, L, W]``."""

    def __init__(
        self, width: int, heads: int, hidden: int, act: Callable[[Tensor], Tensor], eps: float
    ) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(width, heads), Mlp(width, hidden, act)
        self.layer_norm1, self.layer_norm2 = (nn.LayerNorm(width, eps=eps) for _ in range(2))

    def forward(self, x: Tensor, later: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x), later)
        out: Tensor = x + self.mlp(self.layer_norm2(x))
        return out


class Encoder(nn.Module):
    """The layers."""

    def __init__(self, layers: list[Layer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)


class TextTransformer(nn.Module):
    """Embeddings, layers and the last norm."""

    def __init__(self, embeddings: Embeddings, layers: list[Layer], norm: nn.LayerNorm) -> None:
        super().__init__()
        self.embeddings, self.encoder, self.final_layer_norm = embeddings, Encoder(layers), norm

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """States before the last layer, and after it and the last norm, ``[B, L, W]`` each."""
        before = x = self.embeddings(ids)
        length = ids.shape[1]
        later = torch.full((length, length), HIDDEN, device=x.device).triu(1)
        for layer in self.encoder.layers:
            before, x = x, layer(x, later)
        return before, self.final_layer_norm(x)


class CLIPTextModelWithProjection(nn.Module):
    """The text encoder.

    Args:
        vocab_size: token ids.
        hidden_size: width W.
        intermediate_size: hidden width of the MLPs.
        projection_dim: width P of the projected vector; ``None`` for an encoder without one, as
            ``CLIPTextModel`` is.
        num_hidden_layers: layers.
        num_attention_heads: heads; they divide ``hidden_size``.
        max_position_embeddings: tokens of a text at most; texts are padded and cut to that many.
        hidden_act: ``quick_gelu`` (OpenAI's), ``gelu`` (OpenCLIP's), ``gelu_new`` or
            ``gelu_pytorch_tanh``.
        layer_norm_eps: of all norms.
        eos_token_id: the token at the end of a text. The vector is read where it first is. With 2,
            which configurations said by mistake, it is read where the largest id first is.
        attention_dropout: without effect here.
        dropout: without effect here.
        initializer_range: without effect here.
        initializer_factor: without effect here.
        bos_token_id: without effect here: the tokenizer begins a text.
        pad_token_id: without effect here: the tokenizer pads, and padding is not masked.
    """

    def __init__(
        self,
        vocab_size: int = 49408,
        hidden_size: int = 512,
        intermediate_size: int = 2048,
        projection_dim: int | None = 512,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 8,
        max_position_embeddings: int = 77,
        hidden_act: str = "quick_gelu",
        layer_norm_eps: float = 1e-5,
        eos_token_id: int = 49407,
        attention_dropout: float = 0.0,
        dropout: float = 0.0,
        initializer_range: float = 0.02,
        initializer_factor: float = 1.0,
        bos_token_id: int = 49406,
        pad_token_id: int = 1,
    ) -> None:
        super().__init__()
        if hidden_act not in _ACTIVATIONS:
            raise ValueError(
                f"hidden_act must be one of {', '.join(_ACTIVATIONS)}, got {hidden_act}"
            )
        check_whole(
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            num_hidden_layers=num_hidden_layers,
            num_attention_heads=num_attention_heads,
            max_position_embeddings=max_position_embeddings,
        )
        if hidden_size % num_attention_heads:
            raise ValueError(
                f"num_attention_heads must divide hidden_size {hidden_size}, "
                f"got {num_attention_heads}"
            )
        self.vocab_size, self.eos_token_id = vocab_size, eos_token_id
        self.hidden_size, self.max_positions = hidden_size, max_position_embeddings
        act = _ACTIVATIONS[hidden_act]
        layer = (hidden_size, num_attention_heads, intermediate_size, act, layer_norm_eps)
        self.text_model = TextTransformer(
            Embeddings(vocab_size, max_position_embeddings, hidden_size),
            [Layer(*layer) for _ in range(num_hidden_layers)],
            nn.LayerNorm(hidden_size, eps=layer_norm_eps),
        )
        if projection_dim is not None:
            check_whole(projection_dim=projection_dim)
            self.text_projection = nn.Linear(hidden_size, projection_dim, bias=False)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Everything that models read of a text.

        Args:
            ids: token ids ``[B, L]``, integer, L at most ``max_position_embeddings``.

        Returns:
            The projected vector ``[B, P]`` (``text_embeds``), the states before the last layer
            ``[B, L, W]`` (``hidden_states[-2]``, without a norm), and those after the last norm
            ``[B, L, W]`` (``last_hidden_state``).
        """
        before, last = self.text_model(ids)
        ends = ids if self.eos_token_id == WRONG_END else ids == self.eos_token_id
        # The first of several; float32 has every id, and every engine finds its maximum.
        at = ends.float().argmax(dim=1)[:, None, None].expand(-1, 1, last.shape[2])
        return self.text_projection(last.gather(1, at)[:, 0]), before, last


class TextStates(nn.Module):
    """A text encoder as a graph: the one tensor that a transformer reads.

    Args:
        encoder: with its weights.
        reads: ``penultimate`` for the states before the last layer, ``last`` for those after the
            last norm.
        pooled: whether the projected vector is in front of the states.
    """

    def __init__(
        self,
        encoder: CLIPTextModelWithProjection,
        reads: Literal["penultimate", "last"],
        *,
        pooled: bool,
    ) -> None:
        super().__init__()
        self.encoder, self.reads, self.pooled = encoder, reads, pooled

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids ``[B, L]`` → states ``[B, L, W]``, or ``[B, 1 + L, max(P, W)]`` as
        :func:`fewstep.export.models.uvit2d.packed` has them."""
        vector, before, last = (
            self.encoder(ids) if self.pooled else (None, *self.encoder.text_model(ids))
        )
        states: Tensor = before if self.reads == "penultimate" else last
        return states if vector is None else packed(vector, states)

    @property
    def width(self) -> int:
        """Width of the states that :meth:`forward` gives."""
        own = self.encoder.hidden_size
        return max(own, self.encoder.text_projection.out_features) if self.pooled else own
