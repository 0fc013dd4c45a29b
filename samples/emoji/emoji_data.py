"""Emoji in three styles as 64×64 colour images with texts: fetch with npm, name, split with a seed.

Images come from the npm packages ``emoji-datasource-google`` (Noto Emoji, Apache-2.0),
``@lobehub/fluent-emoji-3d`` (Microsoft's Fluent Emoji, MIT) and ``emoji-datasource-twitter``
(Twemoji, © Twitter, Inc. and other contributors, CC-BY 4.0), on white. Names and categories come
from ``emoji.json`` of the first (MIT). Pairs of people with two different skin tones are left out.

A *base* is an emoji less its skin tone, hair and sex: all that remains of "man running, dark skin
tone" is "running". The split made here follows from ``SPLIT_SEED`` alone. It holds out

* ``new_emoji``: every image of ``NEW_EMOJI`` of the bases, and
* ``new_pair``: of the other bases that have all three styles, every image of ``NEW_PAIRS`` of the
  (base, style) pairs, one style of a base at most, so that each is seen in two other styles.

    python samples/emoji/emoji_data.py    # writes samples/emoji/data/emoji.npz (git-ignored)
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

SPLIT_SEED = 20261127
NEW_EMOJI, NEW_PAIRS = 0.06, 0.1
IMAGE_SIZE = 64
SPLITS = ("train", "new_pair", "new_emoji")
DATA = Path(__file__).parent / "data"
DATA_FILE = DATA / "emoji.npz"

PACKAGES = {
    "google": ("emoji-datasource-google@16.0.0", "package/img/google/64/{}.png"),
    "fluent": ("@lobehub/fluent-emoji-3d@1.1.0", "package/assets/{}.webp"),
    "twitter": ("emoji-datasource-twitter@16.0.0", "package/img/twitter/64/{}.png"),
}
STYLES = tuple(PACKAGES)

TONES = {
    "1F3FB": "light skin tone",
    "1F3FC": "medium-light skin tone",
    "1F3FD": "medium skin tone",
    "1F3FE": "medium-dark skin tone",
    "1F3FF": "dark skin tone",
}
_PEOPLE = {"1F468": "1F9D1", "1F469": "1F9D1"}  # man, woman → person
_IGNORED = {"200D", "FE0F", "2640", "2642", *TONES, *(f"1F9B{n}" for n in range(4))}


@dataclass(frozen=True)
class Emoji:
    """An emoji as a style may draw it.

    ``code`` is the name of its file, ``names`` what it is called, the longer first, with its skin
    tone, and ``base`` what it has in common with its variants.
    """

    code: str
    names: tuple[str, str]
    base: str
    category: str
    toned: bool


@dataclass(frozen=True)
class Emojis:
    """Images ``[n, 64, 64, 3]`` uint8 and of each its texts, style, base and category.

    ``texts`` has two of each image ``[n, 2]``: by its long and by its short name. ``toned`` ones
    have a skin tone.
    """

    images: npt.NDArray[np.uint8]
    texts: npt.NDArray[np.str_]
    styles: npt.NDArray[np.str_]
    bases: npt.NDArray[np.str_]
    categories: npt.NDArray[np.str_]
    toned: npt.NDArray[np.bool_]

    def where(self, chosen: npt.NDArray[Any]) -> Emojis:
        """Those that a mask or indices choose."""
        return Emojis(**{name: array[chosen] for name, array in vars(self).items()})


def text_of(name: str, style: str) -> str:
    """What the model is asked for: ``"red apple, google"``."""
    return f"{name}, {style}"


def base_of(unified: str) -> str:
    """What an emoji has in common with its variants, such as ``"1F3C3"`` of all who run.

    Args:
        unified: its code points in hexadecimal, with hyphens between them.
    """
    codes = unified.split("-")
    kept = {_PEOPLE.get(code, code) for code in codes if code not in _IGNORED}
    if len(codes) > 1 and len(kept) > 1:
        kept.discard("27A1")  # "facing right"
    return "-".join(sorted(kept)) or unified


def catalogue(entries: list[dict[str, Any]], style: str) -> Iterator[Emoji]:
    """Every emoji of ``emoji.json`` and its skin tones that a style draws itself.

    The data source's packages have others' images where theirs lack one.
    """
    has = f"has_img_{style}"
    for entry in entries:
        category, base = entry["category"], base_of(entry["unified"])
        if category == "Component":
            continue
        names = entry["name"].lower(), entry["short_name"].replace("_", " ").replace("-", " ")
        if entry.get(has, True):
            yield Emoji(_code(entry), names, base, category, False)
        for tone, variant in entry.get("skin_variations", {}).items():
            if tone in TONES and variant.get(has, True):
                toned = f"{names[0]}, {TONES[tone]}", f"{names[1]}, {TONES[tone]}"
                yield Emoji(_code(variant), toned, base, category, True)


def _code(entry: dict[str, Any]) -> str:
    return str(entry["image"]).removesuffix(".png")


def split(bases: npt.NDArray[np.str_], styles: npt.NDArray[np.str_]) -> npt.NDArray[np.str_]:
    """Which of ``SPLITS`` each image ``[n]`` belongs to, by its base and style alone."""
    rng = np.random.default_rng(SPLIT_SEED)
    found = defaultdict[str, set[str]](set)
    for base, style in zip(bases.tolist(), styles.tolist(), strict=True):
        found[base].add(style)
    order = rng.permutation(sorted(found))
    count = round(NEW_EMOJI * len(order))
    whole = set(order[:count].tolist())
    complete = [base for base in order[count:].tolist() if len(found[base]) == len(STYLES)]
    left_out = {base: STYLES[rng.integers(len(STYLES))] for base in complete}
    pairs = dict(list(left_out.items())[: round(NEW_PAIRS * len(STYLES) * len(complete))])
    return np.array(
        [
            "new_emoji" if base in whole else "new_pair" if pairs.get(base) == style else "train"
            for base, style in zip(bases.tolist(), styles.tolist(), strict=True)
        ]
    )


def load(name: str) -> Emojis:
    """Return a split, one of ``SPLITS``, fetching the data on first use."""
    if name not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {name!r}")
    if not DATA_FILE.exists():
        prepare()
    with np.load(DATA_FILE) as arrays:
        every = Emojis(**{field: arrays[field] for field in Emojis.__dataclass_fields__})
    return every.where(split(every.bases, every.styles) == name)


def prepare() -> None:
    """Fetch, draw on white, name and write ``DATA_FILE``."""
    DATA.mkdir(exist_ok=True)
    entries = json.loads(_files("google", ("package/emoji.json",))["package/emoji.json"])
    images, rows = [], []
    for style in STYLES:
        emojis = list(catalogue(entries, style))
        paths = {each.code: PACKAGES[style][1].format(each.code) for each in emojis}
        files = _files(style, tuple(paths.values()))
        for each in emojis:
            content = files.get(paths[each.code])
            if content is not None:
                images.append(_on_white(content))
                names = [text_of(name, style) for name in each.names]
                rows.append((names, style, each.base, each.category, each.toned))
    texts, styles, bases, categories, toned = (np.array(part) for part in zip(*rows, strict=True))
    temporary = DATA_FILE.with_name("partial.npz")
    np.savez_compressed(
        temporary,
        images=np.stack(images),
        texts=texts,
        styles=styles,
        bases=bases,
        categories=categories,
        toned=toned,
    )
    temporary.rename(DATA_FILE)


def _files(style: str, names: tuple[str, ...]) -> dict[str, bytes]:
    """Contents of those files of a style's package that it has."""
    wanted, found = set(names), dict[str, bytes]()
    with tarfile.open(_archive(PACKAGES[style][0])) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.name in wanted else None
            if file is not None:
                found[member.name] = file.read()
    return found


def _archive(package: str) -> Path:
    """The package's archive in ``data/``, fetched when it is not there."""
    name, version = package.rsplit("@", 1)
    path = DATA / f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz"
    if not path.exists():
        if shutil.which("npm") is None:
            raise SystemExit("npm is needed to fetch the emoji: apt-get install npm")
        subprocess.run(["npm", "pack", package], cwd=DATA, check=True, capture_output=True)
    return path


def _on_white(content: bytes) -> npt.NDArray[np.uint8]:
    """A file's image on white, ``[64, 64, 3]``."""
    image = Image.open(io.BytesIO(content)).convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    flat = Image.alpha_composite(white, image).convert("RGB")
    if flat.size != (IMAGE_SIZE, IMAGE_SIZE):
        flat = flat.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.LANCZOS)
    return np.asarray(flat)


if __name__ == "__main__":
    prepare()
    for name in SPLITS:
        part = load(name)
        counts = ", ".join(f"{style} {np.sum(part.styles == style):,}" for style in STYLES)
        print(f"{name}: {len(part.images):,} images of {len(set(part.bases))} bases ({counts})")
