"""Real images as the tokenizer shows them, for the policy's discriminator: ``data/policy.npz``.

600 training images of each class through the tokenizer and back, in the three channels that the
decoder gives. Against untouched images the discriminator would learn what no policy can change:
the tokenizer's smoothness, and that real images are exactly grey while decoded ones are nearly so.

    python samples/fashion/policy_data.py
"""

from __future__ import annotations

import numpy as np
from data import DATA_FILE, load
from evaluate import decoded, per_class, pixels

PER_CLASS = 600
POLICY_DATA = DATA_FILE.with_name("policy.npz")


if __name__ == "__main__":
    split = per_class(load("train"), slice(PER_CLASS))
    colour = pixels(decoded(split.images).permute(0, 2, 3, 1))
    np.savez(POLICY_DATA, images=colour, labels=split.labels)
    print(POLICY_DATA)
