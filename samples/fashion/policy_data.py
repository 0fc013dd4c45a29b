"""Real images as the tokenizer shows them, for the policy's discriminator: ``data/policy.npz``.

600 training images of each class through the tokenizer and back, in the three channels that the
decoder gives. Against untouched images the discriminator would learn what no policy can change:
the tokenizer's smoothness, and that real images are exactly grey while decoded ones are nearly so.

    python samples/fashion/policy_data.py
"""

from __future__ import annotations

import numpy as np
import torch
from data import DATA_FILE, load
from evaluate import per_class
from features import Images
from train_transformer import tokenize, tokenizer

PER_CLASS = 600
POLICY_DATA = DATA_FILE.with_name("policy.npz")


@torch.no_grad()
def decoded(images: Images) -> Images:
    """Grey images ``[n, 32, 32]`` through the tokenizer: ``[n, 32, 32, 3]``."""
    model, tokens, parts = tokenizer(), tokenize(images), []
    for start in range(0, len(images), 250):
        ids = tokens[start : start + 250].reshape(-1, 8, 8)
        codes = model.quantize.embedding(ids).permute(0, 3, 1, 2)
        parts.append(model.decoder(codes).permute(0, 2, 3, 1).clamp(0, 1))
    colour: Images = (torch.cat(parts) * 255).round().to(torch.uint8).numpy()
    return colour


if __name__ == "__main__":
    split = per_class(load("train"), slice(PER_CLASS))
    np.savez(POLICY_DATA, images=decoded(split.images), labels=split.labels)
    print(POLICY_DATA)
