"""Sets of images, read batch by batch: a folder of pictures, or ``arr_0`` of an ``.npz``.

Archives are those of ADM's evaluator (openai/guided-diffusion): uint8 ``[n, H, W, 3]``. They are
read as a stream, since 50,000 images need not fit into memory.
"""

from __future__ import annotations

import contextlib
import itertools
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from fewstep.runtime.errors import CalibrationError
from fewstep.runtime.machine import cores

Pixels = npt.NDArray[np.uint8]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
ARRAYS = ("arr_0", "images")
"""Names under which an archive may hold images."""

_NAMED = 10  # pictures that an error lists
_THREADS = min(8, cores())
_PICTURE_ERRORS = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)
_ARCHIVE_ERRORS = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Images:
    """A set of images: ``count`` of them, ``size`` (height, width) as they are read.

    ``files`` of a folder, or none for an archive, whose array is ``array``. ``resize``: side that
    the middle square of each is brought to, or ``None``.
    """

    path: Path
    count: int
    size: tuple[int, int]
    resize: int | None = None
    files: tuple[Path, ...] = ()
    array: str = ""

    def batches(self, batch: int) -> Iterator[Pixels]:
        """All images, ``[b, H, W, 3]`` uint8 with b ≤ ``batch``, in their order.

        Raises:
            CalibrationError: a picture cannot be decoded (all of its batch are named), or an
                archive is cut short.
        """
        found = self._pictures(batch) if self.files else self._rows(batch)
        for images in found:
            yield images if self.resize is None else _resized(images, self.resize)

    def _pictures(self, batch: int) -> Iterator[Pixels]:
        with ThreadPoolExecutor(_THREADS) as pool:
            for first in range(0, self.count, batch):
                files = self.files[first : first + batch]
                read = list(pool.map(lambda file: _decoded(file, self.resize), files))
                bad = {
                    file: error
                    for file, error in zip(files, read, strict=True)
                    if isinstance(error, Exception)
                }
                if bad:
                    raise _unreadable(self.path, bad)
                yield np.stack([each for each in read if not isinstance(each, Exception)])

    def _rows(self, batch: int) -> Iterator[Pixels]:
        try:
            with _array(self.path, self.array) as (file, shape):
                row = int(np.prod(shape[1:]))
                for first in range(0, shape[0], batch):
                    count = min(batch, shape[0] - first)
                    data = file.read(count * row)
                    if len(data) != count * row:
                        raise ValueError(f"ends at image {first + len(data) // row}")
                    rows = np.frombuffer(bytearray(data), np.uint8)  # writable, as PyTorch wants it
                    yield _in_colour(rows.reshape(count, *shape[1:]))
        except _ARCHIVE_ERRORS as error:
            raise _no_archive(self.path, error) from error


def open_images(path: Path, resize: int | None = None) -> Images:
    """The images at ``path``; every picture's header is read, and no pixels.

    Args:
        path: a folder (searched with all folders in it), or an ``.npz`` with ``arr_0``, uint8
            ``[n, H, W, 3]``.
        resize: cut the middle square out of each and bring it to this side, antialiased.

    Raises:
        CalibrationError: nothing there, unreadable pictures, or pictures of several sizes without
            ``resize``.
    """
    if path.is_dir():
        return _folder(path, resize)
    if path.suffix == ".npz" and path.is_file():
        return _archive(path, resize)
    raise CalibrationError(
        f"{path} {_instead(path)}: expected a folder of pictures ({', '.join(SUFFIXES)}) or an "
        ".npz with arr_0, uint8 [n, H, W, 3]"
    )


def _instead(path: Path) -> str:
    """What is where a folder or an archive was expected."""
    if not path.exists():
        return "is not there"
    if path.suffix.lower() in SUFFIXES:
        return "is a single picture"
    return "is no folder and no .npz file"


def names_of(path: Path) -> set[str]:
    """Names of an archive's arrays.

    Raises:
        CalibrationError: it is none.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except _ARCHIVE_ERRORS as error:
        raise _no_archive(path, error) from error


def _folder(path: Path, resize: int | None) -> Images:
    files = sorted(
        file
        for file in path.rglob("*")
        if file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()
    )
    if not files:
        raise CalibrationError(f"{path} holds no pictures ({', '.join(SUFFIXES)})")
    with ThreadPoolExecutor(_THREADS) as pool:
        read = dict(zip(files, pool.map(_size, files), strict=True))
    if bad := {file: error for file, error in read.items() if isinstance(error, Exception)}:
        raise _unreadable(path, bad)
    sizes = {file: size for file, size in read.items() if not isinstance(size, Exception)}
    if resize is not None:
        return Images(path, len(files), (resize, resize), resize, tuple(files))
    if len(counts := Counter(sizes.values())) > 1:
        shown = [
            f"{height}×{width} ({count}, such as {_example(path, sizes, (height, width))})"
            for (height, width), count in counts.most_common(3)
        ]
        raise CalibrationError(
            f"{path}: pictures have {len(counts)} sizes: {', '.join(shown)}; give --resize SIDE to "
            "cut the middle square out of each and bring it to one size"
        )
    return Images(path, len(files), next(iter(counts)), None, tuple(files))


def _example(path: Path, sizes: dict[Path, tuple[int, int]], size: tuple[int, int]) -> Path:
    return next(file for file, each in sizes.items() if each == size).relative_to(path)


def _archive(path: Path, resize: int | None) -> Images:
    name = next((each for each in ARRAYS if each in names_of(path)), None)
    if name is None:
        raise CalibrationError(f"{path} lacks arr_0: it holds {', '.join(sorted(names_of(path)))}")
    try:
        with _array(path, name) as (_, shape):
            size = (resize, resize) if resize else (shape[1], shape[2])
            return Images(path, shape[0], size, resize, array=name)
    except _ARCHIVE_ERRORS as error:
        raise _no_archive(path, error) from error


@contextlib.contextmanager
def _array(path: Path, name: str) -> Iterator[tuple[IO[bytes], tuple[int, ...]]]:
    """The bytes of a uint8 array in an archive, without loading it, and its shape."""
    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
        version = np.lib.format.read_magic(file)
        read: Any = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read is None:
            raise ValueError(f"{name} is of the unknown format {version}")
        shape, by_columns, dtype = read(file)
        grey = len(shape) == 3
        if dtype != np.uint8 or not (grey or len(shape) == 4 and shape[3] in (1, 3)):
            raise ValueError(f"{name} is {dtype} {list(shape)}, expected uint8 [n, H, W, 3]")
        if by_columns or 0 in shape:
            raise ValueError(f"{name} is empty, or stored by columns")
        yield file, shape


def _in_colour(images: Pixels) -> Pixels:
    images = images[..., None] if images.ndim == 3 else images
    return images if images.shape[3] == 3 else np.repeat(images, 3, axis=3)


def _size(file: Path) -> tuple[int, int] | Exception:
    try:
        with Image.open(file) as image:
            return image.height, image.width
    except _PICTURE_ERRORS as error:
        return error


def _decoded(file: Path, resize: int | None) -> Pixels | Exception:
    try:
        with Image.open(file) as image:
            colour = image.convert("RGB")
        return np.asarray(colour if resize is None else _fitted(colour, resize))
    except _PICTURE_ERRORS as error:
        return error


def _resized(images: Pixels, side: int) -> Pixels:
    if images.shape[1:3] == (side, side):
        return images
    return np.stack([np.asarray(_fitted(Image.fromarray(each), side)) for each in images])


def _fitted(image: Image.Image, side: int) -> Image.Image:
    return ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC)  # antialiased


def _unreadable(path: Path, bad: dict[Path, Exception]) -> CalibrationError:
    named = [
        f"{file.relative_to(path)} ({_short(error, file)})"
        for file, error in itertools.islice(bad.items(), _NAMED)
    ]
    more = f" and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
    return CalibrationError(
        f"{path}: pictures that cannot be read: {', '.join(named)}{more}; remove or replace them"
    )


def _short(error: Exception, file: Path) -> str:
    """What Pillow said, without the path that is named anyway."""
    return str(error).replace(f" {str(file)!r}", "")[:100] or type(error).__name__


def _no_archive(path: Path, error: Exception) -> CalibrationError:
    text: Sequence[str] = str(error).split()
    return CalibrationError(f"{path} is no archive of images or statistics: {' '.join(text)[:200]}")
