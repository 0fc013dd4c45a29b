"""Train the MAR of the Fashion-MNIST sample, transformer and diffusion head, on the KL tokenizer's
latents.

As MAR (Li et al., NeurIPS 2024) does: tokens in a random order, of which a random part, at least
0.7, is masked; the head learns to denoise the masked ones (squared error of the noise, and the
variational bound for the variance, as Nichol and Dhariwal, 2021), each at four random timesteps;
the class is dropped with probability 0.1 for guidance. The weights kept are an exponential moving
average.

    python samples/fashion/train_mar.py        # 58 minutes, by the clock
"""

from __future__ import annotations

import copy
import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from data import load
from safetensors.torch import load_file
from torch import Tensor, nn
from train_mar_tokenizer import CONFIG, sampled
from train_mar_tokenizer import NAME as TOKENIZER
from train_transformer import EMA_DECAY, update_average
from train_var_tokenizer import schedule
from training import WEIGHTS, Budget, Log, by_the_clock, config, save_weights

from fewstep.export.models.kl import AutoencoderKL
from fewstep.export.models.mar import MAR
from fewstep.export.models.mar_head import TIMESTEPS

NAME = "mar_transformer"
RATE = 1.5e-3
WEIGHT_DECAY = 0.02
CLIP = 3.0
DROPPED = 0.1
TIMES_EACH = 4
LEAST_MASKED = 0.7
LOG_EVERY = 50
SAVE_EVERY = 500
_NATS = 1 / math.log(2)


class Noising(NamedTuple):
    """The diffusion that the head learns: everything by timestep, ``[1000]``."""

    root: Tensor
    """√ᾱ"""
    rest: Tensor
    """√(1 − ᾱ)"""
    low: Tensor
    """Logarithm of the least variance, that of the posterior."""
    high: Tensor
    """Logarithm of the largest, β."""
    from_start: Tensor
    """What the posterior's mean has of the clean token."""
    from_noisy: Tensor
    """What it has of the noisy one."""


def noising() -> Noising:
    """Betas from a squared cosine, as the official code has them."""
    at = np.arange(TIMESTEPS + 1) / TIMESTEPS
    bar = np.cos((at + 0.008) / 1.008 * np.pi / 2) ** 2
    betas = np.minimum(1 - bar[1:] / bar[:-1], 0.999)
    alphas = np.cumprod(1 - betas)
    before = np.append(1.0, alphas[:-1])
    variance = betas * (1 - before) / (1 - alphas)
    rows = (
        np.sqrt(alphas),
        np.sqrt(1 - alphas),
        np.log(np.append(variance[1], variance[1:])),
        np.log(betas),
        betas * np.sqrt(before) / (1 - alphas),
        (1 - before) * np.sqrt(1 - betas) / (1 - alphas),
    )
    return Noising(*(torch.from_numpy(row).float() for row in rows))


def tokenizer() -> AutoencoderKL:
    """The trained tokenizer."""
    model = AutoencoderKL(**config("tokenizer", CONFIG)).eval()
    state = load_file(WEIGHTS / f"{TOKENIZER}.safetensors")
    model.load_state_dict({key: value.float() for key, value in state.items()})
    return model


@torch.no_grad()
def encoded(images: npt.NDArray[np.uint8]) -> Tensor:
    """Mean and log variance of ``[n, 32, 32]`` uint8 images: ``[n, 2·C, 8, 8]``."""
    model, found = tokenizer(), list[Tensor]()
    for start in range(0, len(images), 250):
        image = torch.from_numpy(images[start : start + 250])[:, None].float() / 127.5 - 1
        with torch.autocast("cpu", torch.bfloat16):
            found.append(model.moments(image.expand(-1, 3, -1, -1)).float())
    return torch.cat(found)


def latent_scale(moments: Tensor) -> float:
    """What makes latents vary by 1: of ``latent_scale`` in the configuration."""
    return 1 / float(sampled(moments).std())


def initialise(model: MAR) -> None:
    """As the official code does: Xavier in the transformer; in the head what ends a block is 0."""
    for name, value in model.named_parameters():
        if name.startswith("diffloss"):
            continue
        if name.endswith("bias"):
            nn.init.zeros_(value)
        elif "norm" in name or "z_proj_ln" in name:
            nn.init.ones_(value)
        elif value.ndim == 2 and "_emb" not in name and "fake" not in name:
            nn.init.xavier_uniform_(value)
        else:
            nn.init.normal_(value, std=0.02)
    net = model.diffloss.net
    for module in net.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    for name, value in net.named_parameters():
        if name.startswith("time_embed") and name.endswith("weight"):
            nn.init.normal_(value, std=0.02)
        elif "adaLN_modulation" in name or name.startswith("final_layer"):
            nn.init.zeros_(value)


def optimizer_of(model: MAR) -> torch.optim.Optimizer:
    """AdamW, with weight decay of the transformer's matrices alone."""
    decayed, others = list[nn.Parameter](), list[nn.Parameter]()
    for name, value in model.named_parameters():
        matrix = value.ndim == 2 and not name.startswith("diffloss")
        (decayed if matrix else others).append(value)
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, RATE, (0.9, 0.95), weight_decay=WEIGHT_DECAY, fused=True)


def masked_part(rng: np.random.Generator) -> float:
    """A part of the tokens: a normal around 1 with deviation 0.25, cut to 0.7 … 1."""
    while not LEAST_MASKED <= (part := rng.normal(1.0, 0.25)) <= 1:
        pass
    return float(part)


class Losses(NamedTuple):
    """Squared error of the noise; and the bound, in bits of a number."""

    error: Tensor
    bound: Tensor

    @property
    def total(self) -> Tensor:
        """What is minimised, as the official code adds them."""
        return self.error + self.bound


def losses_of(model: MAR, tokens: Tensor, classes: Tensor, part: float, of: Noising) -> Losses:
    """The losses of some images.

    Args:
        model: the transformer.
        tokens: ``[B, L, C]``.
        classes: ``[B]``.
        part: of the tokens that is masked.
        of: the diffusion.
    """
    batch, count, _ = tokens.shape
    order = torch.rand(batch, count).argsort(1)
    ordered = tokens.gather(1, order[..., None].expand_as(tokens))
    known = count - max(1, math.ceil(count * part))
    with torch.autocast("cpu", torch.bfloat16):
        z = model(ordered[:, :known], order, classes)
    z = z.flatten(0, 1).repeat(TIMES_EACH, 1).float()
    clean = ordered[:, known:].flatten(0, 1).repeat(TIMES_EACH, 1)
    t, noise = torch.randint(TIMESTEPS, (len(clean),)), torch.randn_like(clean)
    noisy = of.root[t, None] * clean + of.rest[t, None] * noise
    with torch.autocast("cpu", torch.bfloat16):
        found = model.diffloss.net(noisy, t, z)
    predicted, where = found.float().chunk(2, dim=1)
    bound = _bound(of, t, clean, noisy, predicted.detach(), where)
    return Losses((noise - predicted).square().mean(), bound)


def _bound(
    of: Noising, t: Tensor, clean: Tensor, noisy: Tensor, predicted: Tensor, where: Tensor
) -> Tensor:
    """Divergence of the model's step from the posterior, in bits: it teaches the variance alone.

    At the last step, where the official code takes the likelihood of pixels, this goes on: tokens
    are no pixels, and that step adds no noise.
    """
    part = (where + 1) / 2
    log_variance = part * of.high[t, None] + (1 - part) * of.low[t, None]
    start = (noisy - of.rest[t, None] * predicted) / of.root[t, None]
    apart = of.from_start[t, None] * (clean - start)
    low = of.low[t, None]
    nats = 0.5 * (log_variance - low + (low - log_variance).exp() - 1)
    nats = nats + 0.5 * apart.square() * (-log_variance).exp()
    return nats.mean() * _NATS


def train(minutes: float, batch: int, seed: int) -> MAR:
    torch.manual_seed(seed)
    rng, budget, of = np.random.default_rng(seed), Budget(minutes), noising()
    split, held_out = load("train"), load("held_out")
    data, few = encoded(split.images), encoded(held_out.images[::20])
    scale = config("latent_scale", CONFIG)
    found = latent_scale(data[:5000])
    print(f"latents of {len(data):,} images; latent_scale {found:.4f}", flush=True)
    classes = torch.from_numpy(split.labels)
    few_classes = torch.from_numpy(held_out.labels[::20])
    model = MAR(**config("transformer", CONFIG))
    initialise(model)
    average, optimizer = copy.deepcopy(model).eval(), optimizer_of(model)
    log, recent, step = Log(NAME), list[float](), 0
    while (spent := budget.spent()) < 1:
        for group in optimizer.param_groups:
            group["lr"] = RATE * schedule(spent)
        rows = torch.randint(len(data), (batch,))
        tokens = model.tokens(sampled(data[rows]) * scale)
        ids = classes[rows].masked_fill(torch.rand(batch) < DROPPED, model.class_num)
        losses = losses_of(model, tokens, ids, masked_part(rng), of)
        optimizer.zero_grad()
        torch.autograd.backward(losses.total)
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        step += 1
        update_average(average, model, min(EMA_DECAY, step / (step + 10)))
        recent.append(losses.error.item())
        if step % LOG_EVERY == 0:
            with torch.no_grad(), torch.random.fork_rng():
                torch.manual_seed(seed)
                held = losses_of(average, model.tokens(sampled(few) * scale), few_classes, 0.85, of)
            figures = {
                "loss": float(np.mean(recent)),
                "held_out_loss": held.error.item(),
                "held_out_bound": held.bound.item(),
            }
            log.write(step, figures)
            recent.clear()
        if step % SAVE_EVERY == 0:
            save_weights(average, NAME)
    return average


if __name__ == "__main__":
    save_weights(train(*by_the_clock(__doc__, minutes=58)), NAME)
