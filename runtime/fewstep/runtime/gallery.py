"""From the command line's wishes to a request, and from a result to picture files."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fewstep.runtime.condition import ClassCondition
from fewstep.runtime.errors import OutputError, RequestError, choose
from fewstep.runtime.generator import Generator
from fewstep.runtime.picture import SUFFIXES, grid, save, save_animation, step_frames
from fewstep.runtime.result import Result

_GRID_SIDE = 96


@dataclass(frozen=True)
class Wanted:
    """Conditions of a request, with one label per row of ``count`` images."""

    request: dict[str, Any]
    labels: tuple[str, ...]
    count: int


def conditions(
    generator: Generator, classes: Sequence[str] | None, text: Path | None, count: int
) -> Wanted:
    """Turn class ids or names, or a file of text states, into arguments of ``generate``.

    Raises:
        RequestError: an unknown class name, neither classes nor text, an unreadable file.
    """
    info = generator.bundle.manifest.model.condition
    if text is not None:
        states = read_text(text)
        labels = tuple(f"text {row}" for row in range(len(states)))
        return Wanted({"text": np.repeat(states, count, 0)}, labels, count)
    if not classes:
        kind = "--class" if isinstance(info, ClassCondition) else "--text"
        raise RequestError(f"nothing to generate: give {kind}")
    if not isinstance(info, ClassCondition):
        raise RequestError("this bundle is text-conditional: give --text, not --class")
    ids = [_class_id(info, name) for name in classes]
    labels = tuple(class_label(info, class_id) for class_id in ids)
    return Wanted({"class_ids": [i for i in ids for _ in range(count)]}, labels, count)


def class_label(info: ClassCondition, class_id: int) -> str:
    """The class's name, or ``class 7``."""
    known = info.class_names and 0 <= class_id < len(info.class_names)
    return info.class_names[class_id] if info.class_names and known else f"class {class_id}"


def check_outputs(path: Path, trace: Path | None) -> None:
    """Refuse output names of unknown kinds before any work.

    Raises:
        OutputError: a file suffix that is not a picture's, or a trace that is not a GIF.
    """
    if path.suffix and path.suffix.lower() not in SUFFIXES and not path.is_dir():
        raise OutputError(f"{path}: expected a folder or a file ending in {', '.join(SUFFIXES)}")
    if trace is not None and trace.suffix.lower() != ".gif":
        raise OutputError(f"{trace}: expected a file ending in .gif")


def write(result: Result, wanted: Wanted, path: Path) -> list[Path]:
    """Write one picture, a labelled grid, or one file per image into a folder.

    Raises:
        OutputError: the place is not writable.
    """
    if not path.suffix or path.is_dir():
        names = [f"{label}-seed-{seed}.png" for label, seed in _labelled(result, wanted)]
        for name, image in zip(names, result.images, strict=True):
            save(Image.fromarray(image), path / name.replace("/", "-").replace(" ", "-"))
        return [path]
    if len(result.images) == 1:
        save(Image.fromarray(result.images[0]), path)
        return [path]
    rows = result.images.reshape(len(wanted.labels), wanted.count, *result.images.shape[1:])
    title = f"{len(result.images)} images, {len(result.trace.sampled)} steps"
    save(grid(rows, wanted.labels, title, scale=scale_for(result)), path)
    return [path]


def write_trace(generator: Generator, result: Result, wanted: Wanted, path: Path) -> Path:
    """Write the GIF of tokens being decided.

    Raises:
        OutputError: the place is not writable.
    """
    frames = step_frames(generator, result, wanted.labels, scale=scale_for(result))
    save_animation(frames, path)
    return path


def scale_for(result: Result) -> int:
    """Magnification that brings small images to a size people can see."""
    return max(1, _GRID_SIDE // int(result.images.shape[1]))


def _labelled(result: Result, wanted: Wanted) -> list[tuple[str, int]]:
    labels = [label for label in wanted.labels for _ in range(wanted.count)]
    return [(label, int(seed)) for label, seed in zip(labels, result.seeds, strict=True)]


def _class_id(info: ClassCondition, name: str) -> int:
    with contextlib.suppress(ValueError):
        return int(name)
    names: dict[str, int] = {
        known.lower(): index for index, known in enumerate(info.class_names or ())
    }
    if name.lower() in names:
        return int(names[name.lower()])
    if not names:
        raise RequestError(f"class '{name}' is not a number, and this bundle names no classes")
    raise RequestError(choose("class", name, info.class_names or ()))


def read_text(path: Path) -> np.ndarray[Any, np.dtype[Any]]:
    """Text states ``[B, L, D]`` of a ``.npy`` file.

    Raises:
        RequestError: the file is no such array.
    """
    try:
        states = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise RequestError(f"{path} is not a .npy array: {error}") from error
    if not isinstance(states, np.ndarray) or states.ndim != 3:
        raise RequestError(f"{path}: expected one array [B, L, D]")
    return states
