"""MAR in PyTorch eager, as its authors decode: a baseline for benchmarks.

``sample_tokens`` of the official MAR repository and ``p_sample_loop`` of its diffusion: masks over
all positions, the encoder on what a boolean index leaves, the decoder at full length, and for every
diffusion step a handful of small operations around the head. Written with PyTorch's operators.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fewstep.export.models.kl import AutoencoderKL
from fewstep.export.models.mar import MAR

Floats = npt.NDArray[np.float64]


class Diffusion:
    """The respaced diffusion: ``steps`` of 1,000 timesteps, evenly spaced."""

    def __init__(self, steps: int) -> None:
        at = np.arange(1001) / 1000
        bar = np.cos((at + 0.008) / 1.008 * np.pi / 2) ** 2
        alphas = np.cumprod(1 - np.minimum(1 - bar[1:] / bar[:-1], 0.999))
        stride = 999 / (steps - 1) if steps > 1 else 1.0
        self.timesteps = sorted({round(stride * step) for step in range(steps)})
        kept = alphas[self.timesteps]
        betas = 1 - kept / np.append(1.0, kept[:-1])
        products = np.cumprod(1 - betas)
        before = np.append(1.0, products[:-1])
        variance = betas * (1 - before) / (1 - products)
        self.reciprocal: Floats = np.sqrt(1 / products)
        self.reciprocal_less_one: Floats = np.sqrt(1 / products - 1)
        self.first: Floats = betas * np.sqrt(before) / (1 - products)
        self.second: Floats = (1 - before) * np.sqrt(1 - betas) / (1 - products)
        self.low: Floats = np.log(np.append(variance[min(1, steps - 1)], variance[1:]))
        self.high: Floats = np.log(betas)


def _extracted(values: Floats, index: Tensor, like: Tensor) -> Tensor:
    """A coefficient for every row, as the official code looks it up."""
    return torch.from_numpy(values)[index].float()[:, None].expand(like.shape)


class EagerDecoder:
    """The official procedure.

    Args:
        mar: the transformer, in evaluation mode.
        tokenizer: the autoencoder.
        scale: of the latents.
    """

    def __init__(self, mar: MAR, tokenizer: AutoencoderKL, scale: float) -> None:
        self._mar, self._tokenizer, self._scale = mar, tokenizer, scale

    @torch.no_grad()
    def decode(self, class_ids: Tensor, iterations: int, steps: int, guidance: float) -> Tensor:
        """Images ``[B, 3, H, W]`` in 0…1 of ``class_ids [B]``."""
        mar, batch, count = self._mar, len(class_ids), self._mar.seq_len
        order = torch.stack([torch.randperm(count) for _ in range(batch)])
        mask = torch.ones(batch, count)
        tokens = torch.zeros(batch, count, mar.token_embed_dim)
        diffusion = Diffusion(steps)
        for step in range(iterations):
            classes = mar.class_emb(class_ids)
            both = torch.cat([classes, mar.fake_latent.repeat(batch, 1)])
            twice = torch.cat([mask, mask])
            known = self._encoder(torch.cat([tokens, tokens]), twice, both)
            z = self._decoder(known, twice)
            length = math.floor(count * math.cos(math.pi / 2 * (step + 1) / iterations))
            length = max(1, min(int(mask[0].sum()) - 1, length))
            following = torch.zeros(batch, count)
            following.scatter_(1, order[:, :length], 1.0)
            now = mask.bool()
            if step < iterations - 1:
                now = torch.logical_xor(mask.bool(), following.bool())
            mask = following
            z = z[torch.cat([now, now]).nonzero(as_tuple=True)]
            scale = 1 + (guidance - 1) * (count - length) / count
            sampled = self._sample(diffusion, z, scale)
            tokens[now.nonzero(as_tuple=True)] = sampled[: len(sampled) // 2]
        latents = mar.latents(tokens) / self._scale
        image: Tensor = (self._tokenizer.unclamped(latents).clamp(-1, 1) + 1) / 2
        return image

    def _encoder(self, tokens: Tensor, mask: Tensor, classes: Tensor) -> Tensor:
        mar = self._mar
        rows, width = len(tokens), mar.encoder_width
        x = mar.z_proj(tokens)
        x = torch.cat([torch.zeros(rows, mar.buffer_size, width), x], dim=1)
        buffered = torch.cat([torch.zeros(rows, mar.buffer_size), mask], dim=1)
        x[:, : mar.buffer_size] = classes[:, None]
        x = mar.z_proj_ln(x + mar.encoder_pos_embed_learned)
        x = x[(1 - buffered).nonzero(as_tuple=True)].reshape(rows, -1, width)
        for block in mar.encoder_blocks:
            x = _block(block, x)
        out: Tensor = mar.encoder_norm(x)
        return out

    def _decoder(self, x: Tensor, mask: Tensor) -> Tensor:
        mar = self._mar
        x = mar.decoder_embed(x)
        buffered = torch.cat([torch.zeros(len(x), mar.buffer_size), mask], dim=1)
        every = mar.mask_token.repeat(len(x), buffered.shape[1], 1)
        every[(1 - buffered).nonzero(as_tuple=True)] = x.reshape(-1, x.shape[-1])
        x = every + mar.decoder_pos_embed_learned
        for block in mar.decoder_blocks:
            x = _block(block, x)
        x = mar.decoder_norm(x)[:, mar.buffer_size :]
        return x + mar.diffusion_pos_embed_learned

    def _sample(self, of: Diffusion, z: Tensor, guidance: float) -> Tensor:
        """Tokens of both halves of z."""
        net, channels = self._mar.diffloss.net, self._mar.token_embed_dim
        noise = torch.randn(len(z) // 2, channels)
        x = torch.cat([noise, noise])
        for index in range(len(of.timesteps))[::-1]:
            steps = torch.full((len(x),), index)
            half = x[: len(x) // 2]
            combined = torch.cat([half, half])
            found = net(combined, torch.tensor(of.timesteps)[steps], z)
            eps, values = found[:, :channels], found[:, channels:]
            own, other = torch.split(eps, len(eps) // 2)
            guided = other + guidance * (own - other)
            eps = torch.cat([guided, guided])
            part = (values + 1) / 2
            low, high = _extracted(of.low, steps, x), _extracted(of.high, steps, x)
            log_variance = part * high + (1 - part) * low
            start = _extracted(of.reciprocal, steps, x) * x
            start = start - _extracted(of.reciprocal_less_one, steps, x) * eps
            mean = _extracted(of.first, steps, x) * start + _extracted(of.second, steps, x) * x
            noisy = (steps != 0).float()[:, None]
            x = mean + noisy * torch.exp(0.5 * log_variance) * torch.randn_like(x)
        return x


def _block(block: torch.nn.Module, x: Tensor) -> Tensor:
    """A block of timm's vision transformer, with PyTorch's fused attention as timm has it."""
    attention, heads = block.attn, block.attn.heads  # type: ignore[union-attr]
    rows, count, width = x.shape
    qkv = attention.qkv(block.norm1(x)).reshape(rows, count, 3, heads, -1)  # type: ignore[operator, union-attr]
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    attended = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    x = x + attention.proj(attended.transpose(1, 2).reshape(rows, count, width))  # type: ignore[operator, union-attr]
    out: Tensor = x + block.mlp(block.norm2(x))  # type: ignore[operator]
    return out
