"""TiTok's MaskGIT generators: a BERT (``ImageBert``) and a U-ViT (``UViTBert``).

Same state-dict keys as the classes of these names in ``modeling/maskgit.py`` of the official
1d-tokenizer repository (bytedance/1d-tokenizer). Constructor arguments are the entries of
``model.generator`` and ``model.vq_model`` of its configurations. The BERT is ``BertModel`` of
transformers without pooling, written out here: post-norm, LayerNorm eps 1e-12, exact GELU.

One table embeds everything. Ids 0 to V − 1 are codes, V is the mask, V + 1 + c is class c and
V + 1 + ``condition_num_classes`` no class. The class goes first: ``[B, 1 + N]``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.export.models.sizes import check_whole
from fewstep.export.models.uvit import Block

DECAYS = ("constant", "linear", "power-cosine")
"""How the authors' guidance grows over the steps."""

_VQ_MODEL = frozenset(
    [
        "token_size",
        "use_l2_norm",
        "commitment_cost",
        "vit_enc_model_size",
        "vit_dec_model_size",
        "vit_enc_patch_size",
        "vit_dec_patch_size",
        "num_latent_tokens",
        "finetune_decoder",
        "is_legacy",
        "quantize_mode",
        "pretrained_tokenizer_weight",
    ]
)
"""Entries of ``model.vq_model`` besides ``codebook_size``."""


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Scaled dot-product attention of all positions to all: ``[B, L, C]`` each → ``[B, L, C]``."""
    length, width = q.shape[1], q.shape[2]

    def split(x: Tensor) -> Tensor:
        return x.reshape(-1, length, heads, width // heads).transpose(1, 2)  # [B, H, L, d]

    scaled = split(q) * (width // heads) ** -0.5
    weights = torch.softmax(scaled @ split(k).transpose(-2, -1), dim=-1)
    return (weights @ split(v)).transpose(1, 2).reshape(-1, length, width)


class MaskedGenerator(nn.Module, ABC):
    """What both generators share: their arguments, and the sequence that they read.

    Args:
        codebook_size: codes V, of ``model.vq_model``; the mask token has id V.
        image_seq_len: tokens N of an image.
        condition_num_classes: classes, without the one for none.
        hidden_size: width C.
        num_hidden_layers: blocks. The U-ViT has one besides, and an odd number counts as the even
            one below.
        num_attention_heads: heads; divides ``hidden_size``.
        intermediate_size: hidden width of the feed-forward layers.
        model_type: ``ViT`` for the BERT, ``UViT`` for the U-ViT; must agree with the class.
        dropout: without effect here.
        attn_drop: without effect here.
        class_label_dropout: without effect here.
        num_steps: steps that the authors sample with; see ``sampling``.
        randomize_temperature: of the Gumbel noise; see ``sampling``.
        guidance_scale: see ``sampling``.
        guidance_decay: ``constant``, ``linear`` or ``power-cosine``; see ``sampling``.
        vq_model: the other entries of ``model.vq_model``, without effect here.

    ``sampling`` holds what the configuration says of sampling, by these names. The networks do not
    read it.
    """

    _model_type = ""

    def __init__(
        self,
        *,
        codebook_size: int,
        image_seq_len: int,
        condition_num_classes: int,
        hidden_size: int,
        num_hidden_layers: int,
        num_attention_heads: int,
        intermediate_size: int,
        model_type: str | None = None,
        dropout: float = 0.1,
        attn_drop: float = 0.1,
        class_label_dropout: float = 0.1,
        num_steps: int | None = None,
        randomize_temperature: float | None = None,
        guidance_scale: float | None = None,
        guidance_decay: str | None = None,
        **vq_model: object,
    ) -> None:
        super().__init__()
        check_whole(
            codebook_size=codebook_size,
            image_seq_len=image_seq_len,
            condition_num_classes=condition_num_classes,
            hidden_size=hidden_size,
            num_hidden_layers=num_hidden_layers,
            num_attention_heads=num_attention_heads,
            intermediate_size=intermediate_size,
        )
        if hidden_size % num_attention_heads:
            raise ValueError(
                f"hidden_size {hidden_size} must be a multiple of num_attention_heads "
                f"{num_attention_heads}"
            )
        if model_type not in (None, self._model_type):
            raise ValueError(f"model_type must be {self._model_type}, got {model_type!r}")
        if guidance_decay not in (None, *DECAYS):
            raise ValueError(
                f"guidance_decay must be {' or '.join(DECAYS)}, got {guidance_decay!r}"
            )
        if unknown := sorted(vq_model.keys() - _VQ_MODEL):
            raise TypeError(f"unexpected arguments: {', '.join(unknown)}")
        self.codebook_size, self.num_tokens = codebook_size, image_seq_len
        self.condition_num_classes = condition_num_classes
        self.hidden_size, self.num_attention_heads = hidden_size, num_attention_heads
        said = {
            "num_steps": num_steps,
            "randomize_temperature": randomize_temperature,
            "guidance_scale": guidance_scale,
            "guidance_decay": guidance_decay,
        }
        self.sampling = {name: each for name, each in said.items() if each is not None}
        self._build(num_hidden_layers, intermediate_size)

    @property
    def vocab_size(self) -> int:
        """Rows of the table that embeds codes, the mask, classes and no class."""
        return self.codebook_size + self.condition_num_classes + 2

    @abstractmethod
    def _build(self, layers: int, intermediate_size: int) -> None:
        """Make the modules."""

    def _sequence(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """Tokens ``[B, N]`` and classes ``[B]`` → ids ``[B, 1 + N]``."""
        return torch.cat([condition.reshape(-1, 1) + (self.codebook_size + 1), tokens], dim=1)


# --- BERT


class _Embeddings(nn.Module):
    """Word, position and segment embeddings, then LayerNorm: ``[B, L] → [B, L, C]``.

    All positions are of segment 0, as in ``BertModel`` when none is given.
    """

    def __init__(self, vocab_size: int, positions: int, width: int) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(vocab_size, width)
        self.position_embeddings = nn.Embedding(positions, width)
        self.token_type_embeddings = nn.Embedding(2, width)
        self.LayerNorm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, ids: Tensor) -> Tensor:
        places = self.position_embeddings.weight + self.token_type_embeddings.weight[0]
        out: Tensor = self.LayerNorm(self.word_embeddings(ids) + places)
        return out


class _SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return attend(self.query(x), self.key(x), self.value(x), self.heads)


class _Output(nn.Module):
    """A layer, the input beside it, and LayerNorm of both."""

    def __init__(self, width: int, out_width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, out_width)
        self.LayerNorm = nn.LayerNorm(out_width, eps=1e-12)

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        out: Tensor = self.LayerNorm(self.dense(h) + x)
        return out


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.self = _SelfAttention(width, heads)
        self.output = _Output(width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.output(self.self(x), x)
        return out


class _Intermediate(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.dense(x))


class _Layer(nn.Module):
    """A post-norm transformer block: ``[B, L, C] → [B, L, C]``."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attention = _Attention(width, heads)
        self.intermediate = _Intermediate(width, hidden)
        self.output = _Output(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention(x)
        out: Tensor = self.output(self.intermediate(x), x)
        return out


class _Encoder(nn.Module):
    def __init__(self, layers: list[_Layer]) -> None:
        super().__init__()
        self.layer = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layer:
            x = layer(x)
        return x


class _Bert(nn.Module):
    """``BertModel`` without pooling, and the head that the official class hangs on it."""

    def __init__(self, of: MaskedGenerator, layers: int, hidden: int) -> None:
        super().__init__()
        width, heads = of.hidden_size, of.num_attention_heads
        self.embeddings = _Embeddings(of.vocab_size, of.num_tokens + 1, width)
        self.encoder = _Encoder([_Layer(width, heads, hidden) for _ in range(layers)])
        self.lm_head = nn.Linear(width, of.codebook_size)

    def forward(self, ids: Tensor) -> Tensor:
        """Ids ``[B, 1 + N]`` → logits of all but the first ``[B, N, V]``."""
        out: Tensor = self.lm_head(self.encoder(self.embeddings(ids))[:, 1:])
        return out


class ImageBert(MaskedGenerator):
    """The BERT generator (``model_type: ViT``)."""

    _model_type = "ViT"

    def _build(self, layers: int, intermediate_size: int) -> None:
        self.model = _Bert(self, layers, intermediate_size)

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """Predict every token at once.

        Args:
            tokens: ids ``[B, N]``, integer; ``codebook_size`` marks a masked position.
            condition: class ids ``[B]``, integer; ``condition_num_classes`` for none.

        Returns:
            logits ``[B, N, V]``.
        """
        out: Tensor = self.model(self._sequence(tokens, condition))
        return out


# --- U-ViT


class UViTBert(MaskedGenerator):
    """The U-ViT generator (``model_type: UViT``): pre-norm blocks with long skips."""

    _model_type = "UViT"

    def _build(self, layers: int, intermediate_size: int) -> None:
        width, half = self.hidden_size, layers // 2

        def block(skip: bool = False) -> Block:
            # The official class computes the hidden width from this quotient.
            ratio = intermediate_size / width
            return Block(width, self.num_attention_heads, ratio, False, None, skip)

        self.embeddings = nn.Embedding(self.vocab_size, width)
        self.pos_embed = nn.Parameter(torch.empty(1, self.num_tokens + 1, width))
        nn.init.normal_(self.pos_embed, std=0.02)
        self.in_blocks = nn.ModuleList(block() for _ in range(half))
        self.mid_block = block()
        self.out_blocks = nn.ModuleList(block(skip=True) for _ in range(half))
        self.norm = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, self.codebook_size)

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        """Predict every token at once, as :meth:`ImageBert.forward` does."""
        x = self.embeddings(self._sequence(tokens, condition)) + self.pos_embed
        skips = []
        for down in self.in_blocks:
            x = down(x)
            skips.append(x)
        x = self.mid_block(x)
        for up in self.out_blocks:
            x = up(x, skips.pop())
        out: Tensor = self.lm_head(self.norm(x)[:, 1:])
        return out
