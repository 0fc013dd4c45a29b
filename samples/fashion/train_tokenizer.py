"""Train the VQGAN tokenizer of the Fashion-MNIST sample (32×32 → 8×8 tokens of 512 codes).

Losses as in VQGAN (Esser et al., CVPR 2021) less the perceptual one, which would lean on the
feature network that the evaluation uses: absolute error, codebook and commitment terms, and,
in the second half, a patch discriminator (hinge) whose weight balances the gradients at the
last layer. The codebook starts from encoder outputs and codes that fall out of use restart
from current ones.

    python samples/fashion/train_tokenizer.py        # about 20 minutes on 2 cores
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from adversary import Adversary
from data import load
from torch import Tensor
from torch.nn import functional as F
from training import Log, config, cosine_rate, save_weights

from fewstep.export.models import VQModel

COMMITMENT_WEIGHT = 0.25
RESTART_EVERY = 50


def reconstruct(model: VQModel, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return reconstruction, latents, ids and the codebook + commitment loss."""
    with torch.autocast("cpu", torch.bfloat16):
        z = model.encoder(image)
    z = z.float()
    ids = model.quantize(z)
    code = model.quantize.embedding(ids).permute(0, 3, 1, 2)
    loss = F.mse_loss(code, z.detach()) + COMMITMENT_WEIGHT * F.mse_loss(z, code.detach())
    with torch.autocast("cpu", torch.bfloat16):
        out = model.decoder(z + (code - z).detach())  # straight-through gradient
    return out.float(), z, ids, loss


@torch.no_grad()
def restart_codes(model: VQModel, z: Tensor, used: Tensor) -> int:
    """Move codes not used since the last call onto random current latents."""
    dead = (~used).nonzero().squeeze(1)
    flat = z.permute(0, 2, 3, 1).flatten(0, 2)
    chosen = flat[torch.randint(len(flat), (len(dead),))]
    model.quantize.embedding.weight[dead] = chosen
    return len(dead)


def train(steps: int, batch: int, seed: int) -> VQModel:
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    images = load("train").images
    model, adversary = VQModel(**config("tokenizer")), Adversary()
    optimizer = torch.optim.Adam(model.parameters(), 6e-4, betas=(0.5, 0.9))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: cosine_rate(s, steps))
    used = torch.zeros(config("tokenizer")["n_embed"], dtype=torch.bool)
    log, restarted = Log("tokenizer"), 0
    for step in range(steps):
        chosen = images[rng.integers(len(images), size=batch)]
        image = torch.from_numpy(chosen)[:, None].expand(-1, 3, -1, -1).float() / 255
        if step == 0:
            with torch.no_grad():
                restart_codes(model, model.encoder(image), used)
        out, z, ids, codebook_loss = reconstruct(model, image)
        pixel = F.l1_loss(out, image) + F.mse_loss(out, image)
        loss, critic_loss = pixel + codebook_loss, 0.0
        if step >= steps // 2:
            loss = loss + adversary.loss(out, pixel, model.decoder.conv_out.weight)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        if step >= steps // 2 - 100:
            critic_loss = adversary.learn(image, out)
        used[ids.flatten()] = True
        if step % RESTART_EVERY == RESTART_EVERY - 1:
            if step < 0.75 * steps:
                restarted = restart_codes(model, z, used)
            figures = {
                "pixel": pixel.item(),
                "codebook": codebook_loss.item(),
                "discriminator": critic_loss,
                "codes_used": int(used.sum()),
                "restarted": restarted,
            }
            log.write(step + 1, figures)
            used.zero_()
    return model


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    save_weights(train(arguments.steps, arguments.batch, arguments.seed), "tokenizer")
