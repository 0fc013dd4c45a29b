"""Real images to tune a policy against: a folder with a subfolder per class, or an ``.npz``."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from fewstep.runtime.condition import ClassCondition
from fewstep.runtime.devices import Array
from fewstep.runtime.errors import CalibrationError
from fewstep.runtime.families import ModelInfo

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_NAMED = 20  # files that an error lists


@dataclass(frozen=True)
class RealImages:
    """Real images with what they are of.

    ``images [n, H, W, 3]`` uint8; ``condition``: class ids ``[n]`` int32 or text states
    ``[n, L, D]`` float32. ``sha256`` is of both.
    """

    images: npt.NDArray[np.uint8]
    condition: Array
    sha256: str

    @cached_property
    def classes(self) -> dict[int, npt.NDArray[np.int64]]:
        """Rows of every class id; empty for text."""
        if self.condition.ndim > 1:
            return {}
        return {
            int(each): np.flatnonzero(self.condition == each) for each in np.unique(self.condition)
        }

    def only(self, rows: npt.NDArray[np.int64]) -> RealImages:
        """Some of them."""
        return RealImages(self.images[rows], self.condition[rows], self.sha256)

    def conditions(self, first: int, count: int) -> Array:
        """Conditions of ``count`` generations from the ``first`` on: classes or texts in turn."""
        order = np.arange(first, first + count)
        if self.classes:
            return np.array(sorted(self.classes), np.int32)[order % len(self.classes)]
        return self.condition[order % len(self.condition)]

    def like(self, condition: Array, rng: np.random.Generator) -> npt.NDArray[np.int64]:
        """Rows of as many real images, drawn at random, for text, or from the same classes."""
        if not self.classes:
            return rng.integers(len(self.images), size=len(condition))
        return np.array([rng.choice(self.classes[int(each)]) for each in condition])

    def part(self, count: int) -> npt.NDArray[np.int64]:
        """Rows of at most ``count`` images spread evenly over classes, or over all."""
        if not self.classes:
            return np.linspace(0, len(self.images) - 1, min(count, len(self.images))).astype(int)
        each = max(1, count // len(self.classes))
        return np.concatenate([rows[:each] for rows in self.classes.values()])


def read_images(path: Path, model: ModelInfo, least: int) -> RealImages:
    """Read and check real images.

    Args:
        path: a folder with a subfolder of images per class (named as the class, or by its id), or
            an ``.npz`` with ``images`` (``[n, H, W, 3]`` or grey ``[n, H, W]``, uint8) and
            ``labels [n]`` or ``text [n, L, D]``.
        model: of the bundle: image size and condition.
        least: images needed.

    Raises:
        CalibrationError: nothing there, unreadable files (all are named), images of another size,
            other classes, or too few images.
    """
    if path.is_dir():
        images, condition = _read_folder(path, model)
    elif path.suffix == ".npz" and path.is_file():
        images, condition = _read_archive(path, model)
    else:
        if not path.exists():
            came = f"no such folder or file: {path}"
        elif path.suffix.lower() in SUFFIXES:
            came = f"{path} is a single picture"
        else:
            came = f"{path} is no folder and no .npz file"
        raise CalibrationError(
            f"{came}; expected a folder with a subfolder of images per class, or an .npz file "
            "with 'images' and 'labels' (or 'text')"
        )
    _check(path, images, condition, model, least)
    condition = condition.astype(np.int32 if condition.ndim == 1 else np.float32)
    digest = hashlib.sha256(np.ascontiguousarray(images).tobytes())
    digest.update(np.ascontiguousarray(condition).tobytes())
    return RealImages(images, condition, digest.hexdigest())


def _read_folder(path: Path, model: ModelInfo) -> tuple[npt.NDArray[np.uint8], Array]:
    if not isinstance(model.condition, ClassCondition):
        raise CalibrationError(
            f"{path}: this bundle is text-conditional: give an .npz with 'images' and the text "
            "states of each, 'text'"
        )
    ids = _class_folders(path, model.condition)
    files = [
        (file, class_id)
        for folder, class_id in ids.items()
        for file in sorted(folder.rglob("*"))
        if file.suffix.lower() in SUFFIXES
    ]
    if not files:
        raise CalibrationError(f"{path} holds no images ({', '.join(SUFFIXES)})")
    height, width = model.image_size
    images = np.empty((len(files), height, width, 3), np.uint8)
    problems = {}
    for row, (file, _) in enumerate(files):
        try:
            images[row] = _read_image(file, (height, width))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            problems[file] = str(error)
    if problems:
        raise CalibrationError(_listed(path, "images cannot be used", problems))
    return images, np.array([class_id for _, class_id in files], np.int32)


def _class_folders(path: Path, condition: ClassCondition) -> dict[Path, int]:
    folders = sorted(each for each in path.iterdir() if each.is_dir())
    if not folders:
        raise CalibrationError(f"{path} has no subfolders: expected one per class, with images")
    found = {each: condition.matches(each.name) for each in folders}
    if several := [each.name for each, ids in found.items() if len(ids) > 1]:
        raise CalibrationError(
            f"{path}: several classes are called {_some(several)}; name these subfolders by number"
        )
    known = {*condition.ids}
    if unknown := [each.name for each, ids in found.items() if not known.issuperset(ids or (-1,))]:
        raise CalibrationError(
            f"{path}: no class of the bundle is called {_some(unknown)}; name the subfolders "
            f"0 … {condition.num_classes - 1}"
            + (" or as the classes that fewstep inspect lists" if condition.class_names else "")
        )
    return {each: ids[0] for each, ids in found.items()}


def _read_image(file: Path, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    with Image.open(file) as image:
        if (image.height, image.width) != size:
            raise ValueError(
                f"is {image.height}×{image.width}, the bundle's images are {size[0]}×{size[1]}"
            )
        return np.asarray(image.convert("RGB"))


def _read_archive(path: Path, model: ModelInfo) -> tuple[npt.NDArray[np.uint8], Array]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise CalibrationError(f"{path} is not an array archive: {error}") from error
    condition = "labels" if isinstance(model.condition, ClassCondition) else "text"
    if absent := [name for name in ("images", condition) if name not in arrays]:
        raise CalibrationError(
            f"{path} lacks {' and '.join(absent)}; it has {_some(sorted(arrays)) or 'nothing'}"
        )
    images = arrays["images"]
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise CalibrationError(
            f"{path}: images must be uint8 [n, H, W, 3] or [n, H, W], got {images.dtype} "
            f"{list(images.shape)}"
        )
    if images.ndim == 3:
        images = np.repeat(images[..., None], 3, axis=3)
    kept = np.int32 if condition == "labels" else np.float32
    given = arrays[condition]
    if given.dtype.kind not in ("iu" if condition == "labels" else "f"):
        raise CalibrationError(f"{path}: {condition} are {given.dtype}, expected {kept.__name__}")
    # Class ids keep their type until they are known to fit a smaller one.
    return images, given if condition == "labels" else given.astype(kept)


def _check(
    path: Path,
    images: npt.NDArray[np.uint8],
    condition: Array,
    model: ModelInfo,
    least: int,
) -> None:
    info, count = model.condition, len(images)
    if images.shape[1:] != (*model.image_size, 3):
        raise CalibrationError(
            f"{path}: images are {list(images.shape[1:])}, the bundle's are "
            f"{[*model.image_size, 3]}; resize them before"
        )
    shape = (count,) if isinstance(info, ClassCondition) else (count, info.length, info.width)
    if condition.shape != shape:
        raise CalibrationError(
            f"{path}: {count} images need conditions {list(shape)}, got {list(condition.shape)}"
        )
    if count < least:
        raise CalibrationError(
            f"{path} holds {count} images, at least {least} are needed (as many as rollouts per "
            "update); add images or lower --rollouts"
        )
    if isinstance(info, ClassCondition):
        if wrong := sorted({int(each) for each in condition} - {*info.ids}):
            nothing = info.unconditional_id
            hint = f" ({nothing} stands for no class)" if nothing in wrong else ""
            raise CalibrationError(
                f"{path}: labels must be 0 … {info.num_classes - 1}, got {_some(wrong)}{hint}"
            )
        if absent := sorted({*info.ids} - {int(each) for each in condition}):
            raise CalibrationError(
                f"{path} has no images of {len(absent)} of the bundle's {len(info.ids)} classes "
                f"({_some(absent)}); a policy tuned without them would be for the others only"
            )
    elif not np.isfinite(condition).all():
        raise CalibrationError(f"{path}: text states must be finite")


def _listed(path: Path, what: str, problems: dict[Path, str]) -> str:
    lines = [f"{file.relative_to(path)} ({why})" for file, why in list(problems.items())]
    more = f" and {len(lines) - _NAMED} more" if len(lines) > _NAMED else ""
    return f"{path}: {len(lines)} {what}: {', '.join(lines[:_NAMED])}{more}"


def _some(names: Sequence[object]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(str(each) for each in names[:_NAMED]) + more
