"""Train the multi-scale tokenizer of the VAR sample (32×32 → token maps 1×1 … 8×8 of 512 codes).

Losses as in VAR (Tian et al., NeurIPS 2024, section 3.2) less the perceptual one, which would lean
on the feature network that the evaluation uses: f̂ after every scale is compared with the latents
f, from both sides; absolute and squared error of the image; and, in the second half, the patch
discriminator of ``adversary.py``. The codebook starts from residuals of every scale, and
codes that fall out of use restart from current ones.

    python samples/fashion/train_var_tokenizer.py        # 33 minutes, by the clock
"""

from __future__ import annotations

import numpy as np
import torch
from adversary import Adversary
from data import load
from torch import Tensor
from torch.nn import functional as F
from training import Budget, Log, by_the_clock, config, cosine_rate, save_weights

from fewstep.export.models.var_vae import VQVAE

CONFIG = "var_config.json"
NAME = "var_tokenizer"
RATE = 8e-4
TICKS = 10_000
RESTART_EVERY = 50
SAVE_EVERY = 500
PER_SCALE = 64


def quantized(model: VQVAE, f: Tensor) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    """Latents ``[B, C, G, G]`` through the codebook, scale by scale.

    Returns:
        f̂ with the gradient of f; the mean over the scales of codebook and commitment loss; the
        ids of every scale ``[B, s, s]``; what they stand for, ``[B·s², C]``.
    """
    target, last = f.detach(), len(model.v_patch_nums) - 1
    rest, f_hat = target, torch.zeros_like(target)
    losses, maps, residuals = list[Tensor](), list[Tensor](), list[Tensor]()
    for scale, side in enumerate(model.v_patch_nums):
        z = rest if scale == last else F.interpolate(rest, size=(side, side), mode="area")
        maps.append(model.quantize.nearest(z).detach())
        residuals.append(z.permute(0, 2, 3, 1).flatten(0, 2))
        grown = model.quantize.grown(maps[-1], scale)
        f_hat, rest = f_hat + grown, rest - grown.detach()
        losses.append(F.mse_loss(f_hat, target) + model.beta * F.mse_loss(f, f_hat.detach()))
    return f + (f_hat - f).detach(), torch.stack(losses).mean(), maps, residuals


def reconstruct(model: VQVAE, image: Tensor) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    """The image ``[B, 3, 32, 32]`` again, and what :func:`quantized` says besides."""
    with torch.autocast("cpu", torch.bfloat16):
        f = model.latents(image)
    f_hat, loss, maps, residuals = quantized(model, f.float())
    with torch.autocast("cpu", torch.bfloat16):
        out = model.unclamped(f_hat)
    return out.float(), loss, maps, residuals


@torch.no_grad()
def restart_codes(model: VQVAE, residuals: list[Tensor], used: Tensor) -> int:
    """Move codes not used since the last call onto current residuals, of all scales alike."""
    dead = (~used).nonzero().squeeze(1)
    pool = torch.cat([each[torch.randint(len(each), (PER_SCALE,))] for each in residuals])
    # Rather many codes than residuals can want to move: a little noise keeps them apart.
    chosen = pool[torch.randint(len(pool), (len(dead),))]
    model.quantize.embedding.weight[dead] = chosen + 0.01 * chosen.std() * torch.randn_like(chosen)
    return len(dead)


def schedule(spent: float) -> float:
    """Learning-rate factor after a part of the time: ``cosine_rate``, its warm-up 2 %."""
    return cosine_rate(round(TICKS * spent), TICKS)


def train(minutes: float, batch: int, seed: int) -> VQVAE:
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    images = load("train").images
    model, adversary = VQVAE(**config("tokenizer", CONFIG)), Adversary()
    optimizer = torch.optim.Adam(model.parameters(), RATE, betas=(0.5, 0.9), fused=True)
    used = torch.zeros(model.vocab_size, dtype=torch.bool)
    log, budget, restarted, step = Log(NAME), Budget(minutes), 0, 0
    while (spent := budget.spent()) < 1:
        optimizer.param_groups[0]["lr"] = RATE * schedule(spent)
        chosen = torch.from_numpy(images[rng.integers(len(images), size=batch)])
        image = chosen[:, None].expand(-1, 3, -1, -1).float() / 127.5 - 1
        if step == 0:
            restart_codes(model, reconstruct(model, image)[3], used)
        out, codebook_loss, maps, residuals = reconstruct(model, image)
        pixel = F.l1_loss(out, image) + F.mse_loss(out, image)
        loss, critic_loss = pixel + codebook_loss, 0.0
        if spent >= 0.5:
            loss = loss + adversary.loss(out, pixel, model.decoder.conv_out.weight)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        if spent >= 0.48:
            critic_loss = adversary.learn(image, out)
        used[torch.cat([each.flatten() for each in maps])] = True
        step += 1
        if step % RESTART_EVERY == 0:
            restarted = restart_codes(model, residuals, used) if spent < 0.75 else 0
            figures = {
                "pixel": pixel.item(),
                "codebook": codebook_loss.item(),
                "discriminator": critic_loss,
                "codes_used": int(used.sum()),
                "restarted": restarted,
            }
            log.write(step, figures)
            used.zero_()
        if step % SAVE_EVERY == 0:
            save_weights(model, NAME)
    return model


if __name__ == "__main__":
    save_weights(train(*by_the_clock(__doc__, minutes=33)), NAME)
