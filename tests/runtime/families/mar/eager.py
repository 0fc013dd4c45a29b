"""MAR's decode as its authors write it: eager PyTorch, masks over positions in the image.

Independent of the program: the encoder gets the visible tokens by a boolean gather, the decoder
runs at full length, both halves of guidance always run, and the diffusion is that of
``gaussian.py``. ``sample_tokens``, ``forward_mae_encoder`` and ``forward_mae_decoder`` of
``models/mar.py`` of LTH14/mar are the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from tests.runtime.families.mar.gaussian import Spaced
from torch import Tensor
from torch.nn import functional as F

from fewstep.export.models.kl import AutoencoderKL
from fewstep.export.models.mar import MAR

Guidance = Callable[[int, int], float]
"""The scale of an iteration, from its number and the tokens that are masked after it."""

Noise = Callable[[int], Tensor]
"""Normal numbers ``[B, L, C]`` of a step: 0 at the start, t + 1 at timestep t."""


def linear(scale: float, tokens: int) -> Guidance:
    """``cfg_schedule="linear"``."""
    return lambda step, masked: 1 + (scale - 1) * (tokens - masked) / tokens


def constant(scale: float) -> Guidance:
    """``cfg_schedule="constant"``."""
    return lambda step, masked: scale


def listed(*scales: float) -> Guidance:
    """A scale for every iteration."""
    return lambda step, masked: scales[step]


class Transformer(Protocol):
    """What gives z of all tokens in an iteration."""

    def __call__(
        self, step: int, tokens: Tensor, mask: Tensor, now: Tensor, classes: Tensor
    ) -> Tensor:
        """Both halves of z.

        Args:
            step: number of the iteration.
            tokens: ``[2·B, L, C]``, 0 where masked.
            mask: ``[2·B, L]`` bool, true where a token is not known.
            now: ``[2·B, L]`` bool, the tokens of this iteration.
            classes: embedded, ``[2·B, W]``.

        Returns:
            ``[2·B, L, D]``.
        """


@dataclass
class Decoded:
    """Tokens ``[B, L, C]`` after every iteration, NaN where masked, which ones each decided
    ``[B, L]``, and the scales of guidance."""

    tokens: list[Tensor] = field(default_factory=list)
    decided: list[Tensor] = field(default_factory=list)
    guidance: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Given:
    """Tokens ``[B, L, C]`` that are known from the start, where ``where [B, L]`` is true."""

    tokens: Tensor
    where: Tensor


@torch.no_grad()
def decode(
    mar: MAR,
    classes: Sequence[int],
    orders: Tensor,
    noise: Noise,
    diffusions: Sequence[Spaced],
    guidance: Guidance,
    temperature: Sequence[float] | None = None,
    given: Given | None = None,
    transformer: Transformer | None = None,
) -> Decoded:
    """Decode the tokens of some images.

    Args:
        mar: the networks.
        classes: of the images; ``class_num`` for none.
        orders: ``[B, L]``, as the official code has them.
        noise: of the diffusion.
        diffusions: of every iteration.
        guidance: of every iteration.
        temperature: of every iteration; 1 if ``None``.
        given: tokens that stay.
        transformer: how z is computed; everything anew in every iteration if ``None``.
    """
    batch, length = orders.shape
    computed = Whole(mar) if transformer is None else transformer
    tokens = torch.zeros(batch, length, mar.token_embed_dim, dtype=torch.float64)
    mask = torch.ones(batch, length, dtype=torch.bool)
    if given is not None:
        mask = ~given.where
        tokens[given.where] = given.tokens[given.where].double()
    free, iterations, found = int(mask[0].sum()), len(diffusions), Decoded()
    noisy = [1.0] * iterations if temperature is None else temperature
    embedded = torch.cat([mar.class_emb.weight, mar.fake_latent])
    condition = torch.cat([embedded[[*classes]], mar.fake_latent.repeat(batch, 1)])
    for step, diffusion in enumerate(diffusions):
        masked = math.floor(free * math.cos(math.pi / 2 * (step + 1) / iterations))
        masked = max(1, min(int(mask[0].sum()) - 1, masked))
        after = torch.zeros(batch, length, dtype=torch.bool)
        after.scatter_(1, orders[:, :masked], torch.ones(batch, length, dtype=torch.bool))
        now = mask if step == iterations - 1 else torch.logical_xor(mask, after)
        z = computed(
            step, tokens.float().repeat(2, 1, 1), mask.repeat(2, 1), now.repeat(2, 1), condition
        )
        scale = guidance(step, masked)
        drawn = _sampled(mar, z, now, noise, diffusion, scale, noisy[step])
        tokens[now] = drawn
        mask = torch.zeros_like(mask) if step == iterations - 1 else after
        found.tokens.append(tokens.masked_fill(mask[..., None], math.nan))
        found.decided.append(now)
        found.guidance.append(scale)
    return found


def _sampled(
    mar: MAR,
    z: Tensor,
    now: Tensor,
    noise: Noise,
    diffusion: Spaced,
    scale: float,
    temperature: float,
) -> Tensor:
    """``DiffLoss.sample`` with ``forward_with_cfg``: the tokens that are decided now."""
    c, channels = z[now.repeat(2, 1)], mar.token_embed_dim

    def model(x: Tensor, timesteps: Tensor) -> Tensor:
        out = mar.diffloss.net(x.repeat(2, 1), timesteps.repeat(2), c)
        own, other = out[:, :channels].double().chunk(2)
        return torch.cat([other + scale * (own - other), out[: len(x), channels:]], dim=1)

    return diffusion.sample(model, lambda step: noise(step)[now].double(), temperature)


class Whole:
    """The transformer, with nothing kept between iterations."""

    def __init__(self, mar: MAR) -> None:
        self._mar = mar

    def __call__(
        self, step: int, tokens: Tensor, mask: Tensor, now: Tensor, classes: Tensor
    ) -> Tensor:
        mar = self._mar
        x = encoder_input(mar, tokens, classes)
        visible = with_buffer(mar, ~mask, True)
        x = x[visible].reshape(len(x), -1, mar.encoder_width)
        for block in mar.encoder_blocks:
            x = whole_block(block, x)
        x = decoder_input(mar, mar.decoder_embed(mar.encoder_norm(x)), visible)
        x = x + mar.decoder_pos_embed_learned
        for block in mar.decoder_blocks:
            x = whole_block(block, x)
        return read_out(mar, x)


def with_buffer(mar: MAR, chosen: Tensor, buffer: bool) -> Tensor:
    """``[R, L]`` bool with the buffer in front, ``[R, buffer + L]``."""
    return torch.cat([torch.full((len(chosen), mar.buffer_size), buffer), chosen], dim=1)


def encoder_input(mar: MAR, tokens: Tensor, classes: Tensor) -> Tensor:
    """Of all positions, whether visible or not, ``[R, buffer + L, W]``."""
    x = mar.z_proj(tokens)
    x = torch.cat([torch.zeros(len(x), mar.buffer_size, x.shape[2]), x], dim=1)
    x[:, : mar.buffer_size] = classes[:, None]
    out: Tensor = mar.z_proj_ln(x + mar.encoder_pos_embed_learned)
    return out


def decoder_input(mar: MAR, x: Tensor, visible: Tensor) -> Tensor:
    """Visible positions ``[R, n, D]`` among mask tokens, ``[R, buffer + L, D]``."""
    padded = mar.mask_token.repeat(*visible.shape, 1)
    padded[visible] = x.reshape(-1, x.shape[2])
    return padded


def read_out(mar: MAR, x: Tensor) -> Tensor:
    """z of the tokens from all positions, ``[R, L, D]``."""
    out: Tensor = mar.decoder_norm(x)[:, mar.buffer_size :] + mar.diffusion_pos_embed_learned
    return out


def attended(block: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention as timm has it: ``[R, n, W]``, keys and values ``[R, m, W]``."""
    heads = block.attn.heads
    q, k, v = (each.reshape(*each.shape[:2], heads, -1).transpose(1, 2) for each in (q, k, v))
    out: Tensor = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    return block.attn.proj(out)  # type: ignore[no-any-return]


def fed_forward(block: Any, x: Tensor) -> Tensor:
    """The second half of a block."""
    hidden = F.gelu(block.mlp.fc1(block.norm2(x)))
    return x + block.mlp.fc2(hidden)  # type: ignore[no-any-return]


def whole_block(block: Any, x: Tensor) -> Tensor:
    """A block of timm's vision transformer."""
    q, k, v = block.attn.qkv(block.norm1(x)).chunk(3, dim=2)
    return fed_forward(block, x + attended(block, q, k, v))


@torch.no_grad()
def image(mar: MAR, tokenizer: AutoencoderKL, tokens: Tensor, scale: float) -> Tensor:
    """Tokens ``[B, L, C]`` → images ``[B, 3, H, W]`` in 0…1, with the official ``unpatchify``."""
    side, p = math.isqrt(tokens.shape[1]), mar.patch_size
    x = tokens.float().reshape(-1, side, side, mar.vae_embed_dim, p, p)
    x = torch.einsum("nhwcpq->nchpwq", x)
    latents = x.reshape(-1, mar.vae_embed_dim, side * p, side * p) / scale
    return (tokenizer.unclamped(latents).clamp(-1, 1) + 1) / 2
