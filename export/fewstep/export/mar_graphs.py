"""MAR's networks as the graphs that a decode runs, iteration by iteration.

Rows of tokens are positions, then images: what is known and what comes next are then parts of
buffers. Inside the graphs images come first.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.export.image_encoder import encoder_graphs
from fewstep.export.models.kl import AutoencoderKL
from fewstep.export.models.mar import MAR, Block
from fewstep.export.models.mar_head import TIMESTEPS, DiffLoss
from fewstep.export.source import Graph
from fewstep.runtime.families.mar.model import MarModel


def _blocks(found: nn.ModuleList) -> list[Block]:
    return [each for each in found if isinstance(each, Block)]


class Encoder(nn.Module):
    """The buffer and some tokens, which also look at others whose keys and values are cached."""

    def __init__(self, mar: MAR, cache_width: int) -> None:
        super().__init__()
        self.mar, self.width = mar, mar.encoder_width
        self.padding = cache_width - mar.encoder_width

    def forward(
        self, tokens: Tensor, positions: Tensor, condition: Tensor, *past: Tensor
    ) -> tuple[Tensor, ...]:
        """Tokens ``[n, R, C]`` at ``positions [n, R]``, class ids ``[R]``, per block keys and
        values ``[p, R, W]`` → buffer ``[b, R, D]``, embeds ``[n, R, D]``, per block ``[n, R, W]``.
        """
        mar, found, count = self.mar, list[Tensor](), self.mar.buffer_size
        # Embedded first: in fp16 ONNX Runtime 1.24 … 1.32 crashes on a matmul of an input that is
        # transposed (its issue 28392).
        embedded = mar.z_proj(tokens).transpose(0, 1)
        x = mar.encoder_input(embedded, positions.transpose(0, 1), condition)
        for index, block in enumerate(_blocks(mar.encoder_blocks)):
            keys, values = past[2 * index], past[2 * index + 1]
            if self.padding:
                keys, values = keys[..., : self.width], values[..., : self.width]
            x, *new = block.attention(x, (keys, values))
            x = block.feed_forward(x)
            own = [each[count:] for each in new]  # the buffer is computed every time
            found += [F.pad(each, (0, self.padding)) for each in own] if self.padding else own
        out = mar.encoder_output(x).transpose(0, 1)
        return out[:count], out[count:], *found


class DecoderStart(nn.Module):
    """The decoder's first blocks, and the attention of the next, for all positions."""

    def __init__(self, mar: MAR, full_blocks: int) -> None:
        super().__init__()
        self.mar, self.full_blocks = mar, full_blocks

    def forward(self, buffer: Tensor, embeds: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
        """Buffer ``[b, R, D]``, embeds of the known tokens ``[V, R, D]``, ``order [L, R]`` → hidden
        states and values ``[L + b, R, D]``."""
        x = self.mar.decoder_input(*(each.transpose(0, 1) for each in (buffer, embeds, order)))
        first = _blocks(self.mar.decoder_blocks)[: self.full_blocks + 1]
        for block in first[:-1]:
            x = block(x)
        x, _, values = first[-1].attention(x)
        return x.transpose(0, 1), values


class DecoderRest(nn.Module):
    """The rest of the decoder for some positions, which also look at others that are cached."""

    def __init__(self, mar: MAR, full_blocks: int) -> None:
        super().__init__()
        blocks = _blocks(mar.decoder_blocks)
        self.first, self.blocks = blocks[full_blocks], nn.ModuleList(blocks[full_blocks + 1 :])

    def forward(self, hidden: Tensor, wanted: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        """Hidden states ``[m, R, D]``, which of them are ``wanted [w]``, per block keys and values
        ``[p, R, D]`` → output ``[w, R, D]``, per block ``[m, R, D]``.

        The last block computes what is wanted alone.
        """
        x, found, blocks = hidden.transpose(0, 1), list[Tensor](), _blocks(self.blocks)
        if not blocks:
            x = x.index_select(1, wanted)
        x = self.first.feed_forward(x)
        for index, block in enumerate(blocks):
            cached = past[2 * index], past[2 * index + 1]
            only = wanted if index == len(blocks) - 1 else None
            x, *new = block.attention(x, cached, only)
            x = block.feed_forward(x)
            found += new
        return x.transpose(0, 1), *found


class Readout(nn.Module):
    """What the head is told of tokens: z, and z as it embeds it, the same for all timesteps."""

    def __init__(self, mar: MAR) -> None:
        super().__init__()
        self.mar, self.cond_embed = mar, mar.diffloss.net.cond_embed

    def forward(self, output: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """``[w, R, D]`` at ``positions [w, R]`` → ``[R, w, D]`` and ``[R, w, head]``."""
        z = self.mar.z(output.transpose(0, 1), positions.transpose(0, 1))
        return z, self.cond_embed(z)


class Head(nn.Module):
    """One step of the diffusion head.

    The timesteps are embedded here and now: that takes less memory than the layers that do it, and
    sines of angles up to 999, which backends compute differently, are PyTorch's.
    """

    def __init__(self, head: DiffLoss) -> None:
        super().__init__()
        self.net = head.net
        with torch.no_grad():
            self.register_buffer("times", head.net.time_embed(torch.arange(TIMESTEPS)))

    def forward(self, x: Tensor, timestep: Tensor, embedded: Tensor) -> Tensor:
        """Tokens ``[R, K, C]``, their timestep ``[1]``, and z ``[R, K, w]`` → noise and where its
        variance lies, ``[R, K, 2·C]``."""
        assert isinstance(self.times, Tensor)
        out: Tensor = self.net.denoise(x, F.embedding(timestep, self.times) + embedded)
        return out


class ImageEncoder(nn.Module):
    """Image ``[B, 3, H, W]`` in 0…1 → tokens ``[B, L, C]``, row by row: the mean of its latents."""

    def __init__(self, mar: MAR, tokenizer: AutoencoderKL, scale: float) -> None:
        super().__init__()
        self.mar, self.tokenizer, self.scale = mar, tokenizer, scale

    def forward(self, image: Tensor) -> Tensor:
        return self.mar.tokens(self.scale * self.tokenizer.mean(2 * image - 1))


class Decoder(nn.Module):
    """Tokens ``[B, L, C]``, row by row → image ``[B, 3, H, W]`` in 0…1."""

    def __init__(self, mar: MAR, tokenizer: AutoencoderKL, scale: float) -> None:
        super().__init__()
        self.mar, self.scale = mar, scale
        self.decoder, self.post_quant_conv = tokenizer.decoder, tokenizer.post_quant_conv

    def unclamped(self, tokens: Tensor) -> Tensor:
        """The same, not clamped."""
        latents = self.mar.latents(tokens) / self.scale
        out: Tensor = self.decoder(self.post_quant_conv(latents))
        return (out + 1) / 2

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.clamp(self.unclamped(tokens), 0.0, 1.0)


def graphs(model: MarModel, mar: MAR, tokenizer: AutoencoderKL) -> dict[str, Graph]:
    """Every graph of a model, with examples of batch 2.

    Args:
        model: what the manifest says of it.
        mar: the transformer, with its head.
        tokenizer: the autoencoder.
    """
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random)

    def ids(most: int, *shape: int) -> Tensor:
        return torch.randint(most, shape, generator=random, dtype=torch.int32)

    tokens, past, wanted = model.num_tokens, 5, 3
    length = min(4, tokens - 1)  # where all are known an export would take their number for fixed
    width, channels, head = model.decoder_width, model.channels, mar.diffloss
    classes, rows = mar.class_num, {0: "length", 1: "batch"}
    encoder = {
        "tokens": normal(length, 2, channels),
        "positions": ids(tokens, length, 2),
        "condition": ids(classes, 2),
    }
    encoder_dims = {"tokens": rows, "positions": rows, "condition": {0: "batch"}}
    rest = {"hidden": normal(length, 2, width), "wanted": torch.arange(wanted, dtype=torch.int32)}
    rest_dims: dict[str, dict[int, str]] = {"hidden": rows, "wanted": {0: "wanted"}}
    cached = {0: "past", 1: "batch"}
    for name in model.encoder_names:
        encoder[f"past_{name}"] = normal(past, 2, model.cache_width)
        encoder_dims[f"past_{name}"] = cached
    for name in model.decoder_names:
        rest[f"past_{name}"] = normal(past, 2, width)
        rest_dims[f"past_{name}"] = cached
    output = {0: "wanted", 1: "batch"}
    x = {0: "batch", 1: "count"}
    decoder = Decoder(mar, tokenizer, model.latent_scale)
    return {
        "encoder": Graph(
            Encoder(mar, model.cache_width),
            encoder,
            ("buffer", "embeds", *(f"new_{name}" for name in model.encoder_names)),
            encoder_dims,
        ),
        "decoder_start": Graph(
            DecoderStart(mar, model.full_blocks),
            {
                "buffer": normal(model.buffer_size, 2, width),
                "embeds": normal(length, 2, width),
                "order": torch.stack([torch.randperm(tokens, generator=random)] * 2, 1).int(),
            },
            ("hidden", "value"),
            {"buffer": {1: "batch"}, "embeds": rows, "order": {1: "batch"}},
        ),
        "decoder_rest": Graph(
            DecoderRest(mar, model.full_blocks),
            rest,
            ("output", *(f"new_{name}" for name in model.decoder_names)),
            rest_dims,
        ),
        "readout": Graph(
            Readout(mar),
            {"output": normal(wanted, 2, width), "positions": ids(tokens, wanted, 2)},
            ("z", "embedded"),
            {"output": output, "positions": output},
        ),
        "head": Graph(
            Head(head),
            {
                "x": normal(2, wanted, channels),
                "timestep": ids(TIMESTEPS, 1),
                "embedded": normal(2, wanted, model.head_width),
            },
            ("denoised",),
            {"x": x, "embedded": x},
        ),
        "decoder": Graph(
            decoder,
            {"tokens": normal(2, tokens, channels)},
            ("image",),
            unclamped=decoder.unclamped,
        ),
        **encoder_graphs(model, ImageEncoder(mar, tokenizer, model.latent_scale)),
    }
