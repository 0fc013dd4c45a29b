"""Train the KL tokenizer of the MAR sample (32×32 → 8×8 positions of 4 numbers).

Losses as in latent diffusion (Rombach et al., CVPR 2022, section 3.1) less the perceptual one,
which would lean on the feature network that the evaluation uses: absolute and squared error of the
image; a little of the divergence of the latents from a standard normal; and, in the second half,
the patch discriminator of ``train_tokenizer.py``.

    python samples/fashion/train_mar_tokenizer.py        # 25 minutes, by the clock
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from data import load
from torch import Tensor
from torch.nn import functional as F
from train_tokenizer import ADVERSARIAL_WEIGHT, PatchDiscriminator, adversarial_scale
from train_var_tokenizer import CRITIC_RATE, RATE, SAVE_EVERY, schedule
from training import Budget, Log, config, save_weights

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
    model, critic = AutoencoderKL(**config("tokenizer", CONFIG)), PatchDiscriminator()
    optimizer = torch.optim.Adam(model.parameters(), RATE, betas=(0.5, 0.9), fused=True)
    critic_optimizer = torch.optim.Adam(critic.parameters(), CRITIC_RATE, betas=(0.5, 0.9))
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
        loss, critic_loss = pixel + DIVERGENCE_WEIGHT * divergent, torch.zeros(())
        if spent >= 0.5:
            adversarial = -critic(out).mean()
            scale = adversarial_scale(pixel, adversarial, model.decoder.conv_out.weight)
            loss = loss + ADVERSARIAL_WEIGHT * scale * adversarial
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        if spent >= 0.48:
            real, fake = critic(image), critic(out.detach())
            critic_loss = (F.relu(1 - real) + F.relu(1 + fake)).mean()
            critic_optimizer.zero_grad()
            torch.autograd.backward(critic_loss)
            critic_optimizer.step()
        step += 1
        if step % LOG_EVERY == 0:
            figures = {
                "pixel": pixel.item(),
                "divergence": divergent.item(),
                "discriminator": critic_loss.item(),
                "deviation": moments[:, : model.embed_dim].std().item(),
            }
            log.write(step, figures)
        if step % SAVE_EVERY == 0:
            save_weights(model, NAME)
    return model


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    save_weights(train(arguments.minutes, arguments.batch, arguments.seed), NAME)
