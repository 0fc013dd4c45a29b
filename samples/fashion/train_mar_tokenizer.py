"""Train the KL tokenizer of the MAR sample (32×32 → 8×8 positions of 4 numbers).

Losses as in latent diffusion (Rombach et al., CVPR 2022, section 3.1) less the perceptual one,
which would lean on the feature network that the evaluation uses: absolute and squared error of the
image; a little of the divergence of the latents from a standard normal; and, in the second half,
the patch discriminator of ``adversary.py``.

    python samples/fashion/train_mar_tokenizer.py        # 25 minutes, by the clock
"""

from __future__ import annotations

import numpy as np
import torch
from adversary import Adversary
from data import load
from torch import Tensor
from torch.nn import functional as F
from train_var_tokenizer import RATE, SAVE_EVERY, schedule
from training import Budget, Log, by_the_clock, config, save_weights

from fewstep.export.models.kl import AutoencoderKL

CONFIG = "mar_config.json"
NAME = "mar_tokenizer"
DIVERGENCE_WEIGHT = 1e-3
LOG_EVERY = 50
_LEAST, _MOST = -30.0, 20.0  # of a log variance, as in the official code


def sampled(moments: Tensor) -> Tensor:
    """Latents ``[B, C, h, w]`` from mean and log variance ``[B, 2·C, h, w]``."""
    mean, log_variance = moments.chunk(2, dim=1)
    deviation = (0.5 * log_variance.clamp(_LEAST, _MOST)).exp()
    return mean + deviation * torch.randn_like(mean)


def divergence(moments: Tensor) -> Tensor:
    """From a standard normal, the mean over all numbers, in nats."""
    mean, log_variance = moments.chunk(2, dim=1)
    log_variance = log_variance.clamp(_LEAST, _MOST)
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()


def train(minutes: float, batch: int, seed: int) -> AutoencoderKL:
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    images = load("train").images
    model, adversary = AutoencoderKL(**config("tokenizer", CONFIG)), Adversary()
    optimizer = torch.optim.Adam(model.parameters(), RATE, betas=(0.5, 0.9), fused=True)
    log, budget, step = Log(NAME), Budget(minutes), 0
    while (spent := budget.spent()) < 1:
        optimizer.param_groups[0]["lr"] = RATE * schedule(spent)
        chosen = torch.from_numpy(images[rng.integers(len(images), size=batch)])
        image = chosen[:, None].expand(-1, 3, -1, -1).float() / 127.5 - 1
        with torch.autocast("cpu", torch.bfloat16):
            moments = model.moments(image)
        moments = moments.float()
        with torch.autocast("cpu", torch.bfloat16):
            out = model.unclamped(sampled(moments))
        out, divergent = out.float(), divergence(moments)
        pixel = F.l1_loss(out, image) + F.mse_loss(out, image)
        loss, critic_loss = pixel + DIVERGENCE_WEIGHT * divergent, 0.0
        if spent >= 0.5:
            loss = loss + adversary.loss(out, pixel, model.decoder.conv_out.weight)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        if spent >= 0.48:
            critic_loss = adversary.learn(image, out)
        step += 1
        if step % LOG_EVERY == 0:
            figures = {
                "pixel": pixel.item(),
                "divergence": divergent.item(),
                "discriminator": critic_loss,
                "deviation": moments[:, : model.embed_dim].std().item(),
            }
            log.write(step, figures)
        if step % SAVE_EVERY == 0:
            save_weights(model, NAME)
    return model


if __name__ == "__main__":
    save_weights(train(*by_the_clock(__doc__, minutes=25)), NAME)
