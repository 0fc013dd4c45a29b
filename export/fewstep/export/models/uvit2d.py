"""aMUSEd's transformer: a U-ViT on a grid of tokens that reads a text.

Same constructor arguments and state-dict keys as ``UVit2DModel`` of diffusers 0.42.1
(``models/unets/uvit_2d.py``). Convolutional blocks lie around a transformer on half the grid or on
all of it. There are no position embeddings, so any grid works.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.export.models.sizes import check_whole
from fewstep.export.models.uvit2d_blocks import Level, RMSNorm, TransformerBlock

MICRO_CONDITIONS = 5
"""Width and height of the image, top and left of the crop, aesthetic score."""


class Embed(nn.Module):
    """Token ids ``[B, h, w]`` → ``[B, C, h, w]``."""

    def __init__(
        self, vocabulary: int, width: int, channels: int, eps: float, affine: bool, bias: bool
    ) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(vocabulary, width)
        self.layer_norm = RMSNorm(width, eps, affine)
        self.conv = nn.Conv2d(width, channels, 1, bias=bias)

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.conv(self.layer_norm(self.embeddings(ids)).permute(0, 3, 1, 2))
        return out


class Head(nn.Module):
    """``[B, C, h, w]`` → logits ``[B, V, h, w]``."""

    def __init__(
        self, channels: int, width: int, codes: int, eps: float, affine: bool, bias: bool
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, bias=bias)
        self.layer_norm = RMSNorm(width, eps, affine)
        self.conv2 = nn.Conv2d(width, codes, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer_norm(self.conv1(x).permute(0, 2, 3, 1))
        out: Tensor = self.conv2(h.permute(0, 3, 1, 2))
        return out


class ConditionEmbed(nn.Module):
    """Pooled text and micro conditions ``[B, P + M]`` → what norms and blocks are told."""

    def __init__(self, width: int, hidden: int, bias: bool) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width, hidden, bias)
        self.linear_2 = nn.Linear(hidden, hidden, bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear_2(F.silu(self.linear_1(x)))
        return out


class UVit2DModel(nn.Module):
    """The transformer.

    Args:
        hidden_size: width D of the transformer's layers.
        use_bias: bias in linear layers, convolutions and norms of the feed-forward.
        hidden_dropout: without effect here.
        cond_embed_dim: width P of the pooled text.
        micro_cond_encode_dim: numbers that a micro condition is encoded with.
        micro_cond_embed_dim: the same for all five.
        encoder_hidden_size: width E of the text states.
        vocab_size: ids that have an embedding: the codes, the mask token and unused ones.
        codebook_size: codes V.
        in_channels: width of the embeddings.
        block_out_channels: width C of the convolutional blocks.
        num_res_blocks: of each side.
        downsample: whether the transformer is on half the grid; then its sides have to be even.
        upsample: the same again, since the logits are on the whole grid.
        block_num_heads: heads of the convolutional blocks' attention.
        num_hidden_layers: layers of the transformer.
        num_attention_heads: heads of its attention.
        attention_dropout: without effect here.
        intermediate_size: hidden width of its feed-forward.
        layer_norm_eps: of all norms but those of the convolutional blocks' attention (1e-6).
        ln_elementwise_affine: weights in the same norms.
        sample_size: side of the grid that it is meant for; any other works too.
    """

    def __init__(
        self,
        hidden_size: int = 1024,
        use_bias: bool = False,
        hidden_dropout: float = 0.0,
        cond_embed_dim: int = 768,
        micro_cond_encode_dim: int = 256,
        micro_cond_embed_dim: int = 1280,
        encoder_hidden_size: int = 768,
        vocab_size: int = 8256,
        codebook_size: int = 8192,
        in_channels: int = 768,
        block_out_channels: int = 768,
        num_res_blocks: int = 3,
        downsample: bool = False,
        upsample: bool = False,
        block_num_heads: int = 12,
        num_hidden_layers: int = 22,
        num_attention_heads: int = 16,
        attention_dropout: float = 0.0,
        intermediate_size: int = 2816,
        layer_norm_eps: float = 1e-6,
        ln_elementwise_affine: bool = True,
        sample_size: int = 64,
    ) -> None:
        super().__init__()
        check_whole(
            cond_embed_dim=cond_embed_dim,
            micro_cond_encode_dim=micro_cond_encode_dim,
            encoder_hidden_size=encoder_hidden_size,
            codebook_size=codebook_size,
            in_channels=in_channels,
            intermediate_size=intermediate_size,
            sample_size=sample_size,
        )
        check_whole(0, num_res_blocks=num_res_blocks, num_hidden_layers=num_hidden_layers)
        if downsample != upsample:
            raise ValueError(
                f"downsample and upsample must be the same, got {downsample} and {upsample}"
            )
        if micro_cond_embed_dim != MICRO_CONDITIONS * micro_cond_encode_dim:
            raise ValueError(
                f"micro_cond_embed_dim must be {MICRO_CONDITIONS} times micro_cond_encode_dim "
                f"{micro_cond_encode_dim}, got {micro_cond_embed_dim}"
            )
        if vocab_size < codebook_size:
            raise ValueError(
                f"vocab_size must be codebook_size {codebook_size} at least, got {vocab_size}"
            )
        _check_heads("hidden_size", hidden_size, "num_attention_heads", num_attention_heads)
        _check_heads("block_out_channels", block_out_channels, "block_num_heads", block_num_heads)
        self.cond_embed_dim, self.encoder_hidden_size = cond_embed_dim, encoder_hidden_size
        self.hidden_size, self.micro_cond_encode_dim = hidden_size, micro_cond_encode_dim
        self.codebook_size = codebook_size
        self.vocab_size, self.sample_size, self.halves = vocab_size, sample_size, downsample
        norm = (layer_norm_eps, ln_elementwise_affine)
        width, channels = hidden_size, block_out_channels
        level = (channels, width, num_res_blocks, block_num_heads, *norm, use_bias)

        self.encoder_proj = nn.Linear(encoder_hidden_size, width, bias=use_bias)
        self.encoder_proj_layer_norm = RMSNorm(width, *norm)
        self.embed = Embed(vocab_size, in_channels, channels, *norm, use_bias)
        self.cond_embed = ConditionEmbed(micro_cond_embed_dim + cond_embed_dim, width, use_bias)
        self.down_block = Level(*level, down=downsample)
        self.project_to_hidden_norm = RMSNorm(channels, *norm)
        self.project_to_hidden = nn.Linear(channels, width, bias=use_bias)
        self.transformer_layers = nn.ModuleList(
            TransformerBlock(width, num_attention_heads, intermediate_size, *norm, use_bias)
            for _ in range(num_hidden_layers)
        )
        self.project_from_hidden_norm = RMSNorm(width, *norm)
        self.project_from_hidden = nn.Linear(width, channels, bias=use_bias)
        self.up_block = Level(*level, up=upsample)
        self.mlm_layer = Head(channels, in_channels, codebook_size, *norm, use_bias)

    def encoded(self, micro_conds: Tensor) -> Tensor:
        """Micro conditions ``[B, 5]`` → ``[B, 5 · micro_cond_encode_dim]``, cosines then sines of
        each at frequencies 10000^(−i/half)."""
        half = self.micro_cond_encode_dim // 2
        places = torch.arange(half, dtype=torch.float32, device=micro_conds.device)
        angles = micro_conds.float()[:, :, None] * torch.exp(places * (-math.log(10000) / half))
        waves = F.pad(
            torch.cat([angles.cos(), angles.sin()], dim=-1), (0, self.micro_cond_encode_dim % 2)
        )
        return waves.flatten(1)

    def forward(
        self,
        input_ids: Tensor,
        encoder_hidden_states: Tensor,
        pooled_text_emb: Tensor,
        micro_conds: Tensor,
    ) -> Tensor:
        """Logits, as the official class gives them.

        Args:
            input_ids: token ids ``[B, h, w]``, integer.
            encoder_hidden_states: text states ``[B, L, E]``.
            pooled_text_emb: the text as one vector ``[B, P]``.
            micro_conds: ``[B, 5]``: width and height in pixels, top, left, aesthetic score.

        Returns:
            ``[B, V, h, w]``.
        """
        return self.logits(
            input_ids, encoder_hidden_states, pooled_text_emb, self.encoded(micro_conds)
        )

    def logits(self, ids: Tensor, states: Tensor, pooled: Tensor, micro: Tensor) -> Tensor:
        """The same with micro conditions as :meth:`encoded` gives them."""
        text = self.encoder_proj_layer_norm(self.encoder_proj(states))
        condition = self.cond_embed(torch.cat([pooled, micro], dim=1))
        x = self.down_block(self.embed(ids), condition, text)
        channels, height, width = x.shape[1:]
        h = self.project_to_hidden(self.project_to_hidden_norm(x.flatten(2).transpose(1, 2)))
        for layer in self.transformer_layers:
            h = layer(h, condition, text)
        h = self.project_from_hidden(self.project_from_hidden_norm(h))
        x = h.transpose(1, 2).reshape(-1, channels, height, width)
        out: Tensor = self.mlm_layer(self.up_block(x, condition, text))
        return out


class TextToTokens(nn.Module):
    """The transformer as a graph: one condition per image, and a grid of fixed size.

    Args:
        transformer: :class:`UVit2DModel`, with its weights.
        grid: rows and columns of tokens; the square that it is meant for if ``None``.
        image_size: height and width that it is told, in pixels. The pipeline of diffusers tells
            those of the image that it makes.
        crop: top and left that it is told.
        aesthetic_score: the one that it is told; 6 in the pipeline of diffusers.
    """

    def __init__(
        self,
        transformer: UVit2DModel,
        grid: tuple[int, int] | None = None,
        *,
        image_size: tuple[int, int],
        crop: tuple[int, int] = (0, 0),
        aesthetic_score: float = 6.0,
    ) -> None:
        super().__init__()
        self.grid = grid or (transformer.sample_size, transformer.sample_size)
        if transformer.halves and (self.grid[0] % 2 or self.grid[1] % 2):
            raise ValueError(f"the sides of the grid must be even, got {list(self.grid)}")
        self.transformer = transformer
        height, width = image_size
        told = torch.tensor([[width, height, *crop, aesthetic_score]], dtype=torch.float32)
        self.micro: Tensor
        self.register_buffer("micro", transformer.encoded(told), persistent=False)

    @property
    def width(self) -> int:
        """Width W of a condition: that of the wider part."""
        return max(self.transformer.cond_embed_dim, self.transformer.encoder_hidden_size)

    def forward(self, tokens: Tensor, states: Tensor) -> Tensor:
        """Logits of all positions.

        Args:
            tokens: ids ``[B, N]``, row by row, integer.
            states: ``[B, 1 + L, W]``: the pooled text, then the text states, as :func:`packed`
                puts them together.

        Returns:
            ``[B, N, V]``.
        """
        model = self.transformer
        pooled, text = states[:, 0, : model.cond_embed_dim], states[:, 1:]
        micro = self.micro.expand(tokens.shape[0], -1)
        ids = tokens.reshape(-1, *self.grid)
        logits = model.logits(ids, text[:, :, : model.encoder_hidden_size], pooled, micro)
        return logits.flatten(2).transpose(1, 2)


def packed(pooled: Tensor, states: Tensor) -> Tensor:
    """A text's vector ``[B, P]`` and states ``[B, L, E]`` as one tensor ``[B, 1 + L, max(P, E)]``,
    the narrower of both with zeros behind."""
    width = max(pooled.shape[-1], states.shape[-1])
    rows = pooled[:, None], states
    return torch.cat([F.pad(each, (0, width - each.shape[-1])) for each in rows], dim=1)


def _check_heads(width_name: str, width: int, heads_name: str, heads: int) -> None:
    check_whole(**{width_name: width})
    if type(heads) is not int or not 1 <= heads <= width:
        raise ValueError(f"{heads_name} must be 1 … {width_name} {width}, got {heads}")
