"""A small convolutional classifier of Fashion-MNIST, the judge of the requested class.

Trained on the real training split only, with random shifts and mirror images; its weights are
kept in ``data/`` (git-ignored) and made again when absent.

    python samples/fashion/classifier.py        # about 2 minutes on 2 cores
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from data import CLASS_NAMES, DATA_FILE, load
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from training import cosine_rate

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

CLASSIFIER_FILE = DATA_FILE.with_name("classifier.safetensors")
EPOCHS = 5
BATCH = 128
SHIFT = 2


def network() -> nn.Sequential:
    """Three convolutions, each normalised and halved: ``[B, 1, 32, 32] → [B, 10]``."""
    layers: list[nn.Module] = []
    for source, width in ((1, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(source, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)]
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Flatten(), nn.Dropout(0.4), nn.Linear(128 * 4 * 4, len(CLASS_NAMES))]
    return nn.Sequential(*layers)


def open_classifier() -> nn.Sequential:
    """The trained classifier, training it on first use."""
    if not CLASSIFIER_FILE.exists():
        temporary = CLASSIFIER_FILE.with_suffix(".partial")
        save_file(train(seed=0).state_dict(), temporary)
        temporary.rename(CLASSIFIER_FILE)
    model = network()
    model.load_state_dict(load_file(CLASSIFIER_FILE))
    return model.eval()


@torch.no_grad()
def classify(model: nn.Module, images: Images) -> Labels:
    """The most likely class of each grey image ``[n, 32, 32]``."""
    parts = [
        model(_pixels(part)).argmax(1) for part in np.split(images, range(500, len(images), 500))
    ]
    labels: Labels = torch.cat(parts).numpy()
    return labels


def train(seed: int) -> nn.Sequential:
    """Train on the real training split."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    split, model = load("train"), network()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.01)
    per_epoch = len(split.labels) // BATCH
    total = EPOCHS * per_epoch
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: cosine_rate(s, total))
    for epoch in range(EPOCHS):
        order = rng.permutation(len(split.labels))[: per_epoch * BATCH].reshape(-1, BATCH)
        for chosen in order:
            image = _moved(_pixels(split.images[chosen]), rng)
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(image)
            loss = F.cross_entropy(logits.float(), torch.from_numpy(split.labels[chosen]))
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
        print(f"classifier: epoch {epoch + 1} of {EPOCHS}, loss {loss.item():.3f}", flush=True)
    return model.eval()


def _pixels(images: Images) -> Tensor:
    return torch.from_numpy(images)[:, None].float() / 255


def _moved(image: Tensor, rng: np.random.Generator) -> Tensor:
    """The batch, shifted by up to ``SHIFT`` pixels and half of the times mirrored."""
    down, right = (int(n) for n in rng.integers(-SHIFT, SHIFT + 1, 2))
    shifted = image.roll((down, right), (2, 3))  # the outermost two pixels are padding
    return shifted.flip(3) if rng.random() < 0.5 else shifted


if __name__ == "__main__":
    held_out = load("held_out")
    right = classify(open_classifier(), held_out.images) == held_out.labels
    print(f"held-out accuracy {right.mean():.4f}")
