"""Train the VQGAN tokenizer of the emoji sample (64×64 → 8×8 tokens of 1,024 codes).

The network first learns as an autoencoder without codes, which takes fewest steps; k-means of its
latents gives the codebook, and both go on together with the codebook and commitment losses of VQGAN
(Esser et al., CVPR 2021). The loss of the image is absolute and squared error, and the absolute
error of differences between neighbouring pixels, since emoji are made of edges. There is no
discriminator. Images with a skin tone, five of each emoji, are drawn a third as often as others.

    python samples/emoji/emoji_tokenizer.py    # 24 minutes on 2 cores
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import parallel
import torch
from emoji_data import Emojis, load
from torch import Tensor
from torch.nn import functional as F

sys.path.append(str(Path(__file__).parents[1] / "fashion"))
from train_tokenizer import reconstruct, restart_codes  # noqa: E402
from training import Budget, Log, by_the_clock, config, cosine_rate, save_weights  # noqa: E402

from fewstep.export.models import VQModel  # noqa: E402

FOLDER = Path(__file__).parent
PROCESSES, BATCH = 2, 16
RATE = 1e-3
WARM_UP = 50
CODES_FROM, RESTARTS_UNTIL = 0.4, 0.8
EDGE_WEIGHT = 0.5
TONED_WEIGHT = 1 / 3
AVERAGE_EVERY, LOG_EVERY = 10, 30


def chances(emojis: Emojis) -> npt.NDArray[np.float64]:
    """How probable each image is to be drawn for a batch, ``[n]``."""
    weights = np.where(emojis.toned, TONED_WEIGHT, 1.0)
    found: npt.NDArray[np.float64] = weights / weights.sum()
    return found


def pixels(images: npt.NDArray[np.uint8]) -> Tensor:
    """Images ``[n, H, W, 3]`` as the network takes them, ``[n, 3, H, W]`` in 0 … 1."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def pixel_loss(out: Tensor, image: Tensor) -> Tensor:
    """Absolute, squared and edges' error of images ``[B, 3, H, W]`` in 0 … 1."""
    across = F.l1_loss(out.diff(dim=3), image.diff(dim=3))
    down = F.l1_loss(out.diff(dim=2), image.diff(dim=2))
    return F.l1_loss(out, image) + F.mse_loss(out, image) + EDGE_WEIGHT * (across + down)


def rate(spent: float, step: int) -> float:
    """Learning-rate factor: linear warm-up in steps, then a cosine over the time."""
    return min((step + 1) / WARM_UP, cosine_rate(round(spent * 1e6), 10**6, 0))


@torch.no_grad()
def encoded(model: VQModel, images: npt.NDArray[np.uint8], batch: int) -> Iterator[Tensor]:
    """What the encoder makes of so many images at a time, ``[batch, z_channels, h, w]``."""
    for start in range(0, len(images), batch):
        with torch.autocast("cpu", torch.bfloat16):
            z = model.encoder(pixels(images[start : start + batch]))
        yield z.float()


def latents(model: VQModel, images: npt.NDArray[np.uint8]) -> Tensor:
    """What the encoder makes of images, ``[positions, z_channels]``."""
    return torch.cat([z.permute(0, 2, 3, 1).flatten(0, 2) for z in encoded(model, images, 16)])


@torch.no_grad()
def k_means(points: Tensor, count: int, rounds: int = 10) -> Tensor:
    """So many centres ``[count, d]`` of points ``[n, d]``; empty ones move to random points."""
    centres = points[torch.randperm(len(points))[:count]]
    for _ in range(rounds):
        nearest = torch.cdist(points, centres).argmin(1)
        sizes = torch.bincount(nearest, minlength=count)
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        centres = sums / sizes.clamp(min=1)[:, None]
        empty = (sizes == 0).nonzero().squeeze(1)
        centres[empty] = points[torch.randint(len(points), (len(empty),))]
    return centres


def start_codes(model: VQModel, images: npt.NDArray[np.uint8]) -> None:
    """Give every process the codebook that the first one finds in its latents of images."""
    codes = model.quantize.embedding.weight.data
    if parallel.rank() == 0:
        codes.copy_(k_means(latents(model, images), len(codes)))
    parallel.take_first(codes)


def restart(model: VQModel, z: Tensor, used: Tensor) -> int:
    """Move codes not used anywhere onto the first process's latents: how many."""
    count = restart_codes(model, z, used)
    parallel.take_first(model.quantize.embedding.weight.data)
    return count


def train(minutes: float, batch: int, seed: int) -> None:
    torch.manual_seed(seed)
    model = VQModel(**config("tokenizer", folder=FOLDER))
    optimizer = torch.optim.Adam(model.parameters(), RATE, betas=(0.9, 0.99))
    emojis, rng = load("train"), np.random.default_rng((seed, parallel.rank()))
    torch.manual_seed(seed + parallel.rank())
    chosen_by, used = chances(emojis), torch.zeros(len(model.quantize.embedding.weight)).bool()
    log, budget = Log("tokenizer", FOLDER), Budget(minutes)
    recent, spent, step, coded, restarted = list[float](), 0.0, 0, False, 0
    while spent < 1:
        if spent >= CODES_FROM and not coded:
            coded = True
            start_codes(model, emojis.images[rng.choice(len(chosen_by), 256, p=chosen_by)])
        for group in optimizer.param_groups:
            group["lr"] = RATE * rate(spent, step)
        image = pixels(emojis.images[rng.choice(len(chosen_by), batch // PROCESSES, p=chosen_by)])
        if coded:
            out, z, ids, codebook_loss = reconstruct(model, image)
            used[ids.flatten()] = True
        else:
            with torch.autocast("cpu", torch.bfloat16):
                out = model.decoder(model.encoder(image)).float()
            codebook_loss = torch.zeros(())
        pixel = pixel_loss(out, image)
        optimizer.zero_grad()
        torch.autograd.backward(pixel + codebook_loss)
        optimizer.step()
        recent.append(pixel.item())
        step += 1
        if step % AVERAGE_EVERY == 0:
            parallel.average(model)
            spent = parallel.from_first(budget.spent())
        if step % LOG_EVERY == 0:
            figures = {"pixel": float(np.mean(recent)), "codebook": codebook_loss.item()}
            used = parallel.anywhere(used)
            figures |= {"codes_used": int(used.sum()), "restarted": restarted}
            restarted = restart(model, z, used) if coded and spent < RESTARTS_UNTIL else 0
            recent, used = [], torch.zeros_like(used)
            if parallel.rank() == 0:
                log.write(step, figures)
                save_weights(model, "tokenizer", FOLDER)
    if parallel.rank() == 0:
        save_weights(model, "tokenizer", FOLDER)


if __name__ == "__main__":
    parallel.run(train, PROCESSES, *by_the_clock(__doc__, 24, BATCH))
