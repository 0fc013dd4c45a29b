"""What a transformer is conditioned on: classes, or texts as in the AdaNAT repository."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from fewstep.export.config import ExportConfig
from fewstep.export.models import UViT
from fewstep.runtime.condition import ClassCondition, TextCondition
from fewstep.runtime.devices import Array
from fewstep.runtime.errors import CheckpointError

UNCONDITIONAL_FILE = "unconditional.npz"
"""File of a bundle with the states of the empty text."""

_IMAGENET_CLASSES = 1000


def condition_of(
    transformer: UViT, config: ExportConfig, unconditional_text: Array | None
) -> tuple[ClassCondition | TextCondition, tuple[str, ...]]:
    """The condition as the manifest describes it, and what to say of it to the user.

    The authors' class models have a last row that stands for no class. Another row, or none, is
    what ``unconditional`` of the configuration says.

    Args:
        transformer: the model.
        config: contents of the ``--config`` file.
        unconditional_text: states of the empty text ``[L, D]``, if there are any.

    Raises:
        CheckpointError: class names or the class of no condition do not fit.
    """
    if transformer.class_conditional:
        return class_condition(transformer.num_classes, config, config.transformer is None)
    refuse_classes(config)
    file = None if unconditional_text is None else UNCONDITIONAL_FILE
    length, width = transformer.extras, transformer.context_width
    return TextCondition(length=length, width=width, unconditional_file=file), ()


def refuse_classes(config: ExportConfig) -> None:
    """Refuse what a configuration says of classes.

    Raises:
        CheckpointError: it says something.
    """
    if config.unconditional is not None or config.class_names is not None:
        wrong = "unconditional" if config.unconditional is not None else "class_names"
        raise CheckpointError(f"{wrong} in --config is for class-conditional models; leave it out")


def class_condition(
    rows: int, config: ExportConfig, certain: bool, *, nothing: bool = True
) -> tuple[ClassCondition, tuple[str, ...]]:
    """The condition of a transformer with an embedding of class ids.

    Args:
        rows: of the embedding.
        config: contents of the ``--config`` file.
        certain: whether it is known that the last row stands for no class.
        nothing: whether a row stands for no class, where the configuration does not say it.

    Raises:
        CheckpointError: class names or the class of no condition do not fit.
    """
    unconditional, notes = (
        _unconditional(rows, config, certain)
        if nothing or config.unconditional is not None
        else (None, ())
    )
    count = rows - 1 if unconditional == rows - 1 else rows
    names = config.class_names
    if names is None and count == _IMAGENET_CLASSES:
        from fewstep.export.imagenet import class_names

        names = class_names()
        notes += ("class names are ImageNet's; class_names in --config gives others",)
    if names is not None and len(names) != count:
        hint = ""
        if len(names) == rows:
            hint = (
                f"; the last of {rows} classes stands for no class: if it does not, put "
                '"unconditional": "none" into --config'
            )
        raise CheckpointError(f"class_names: expected {count} names, got {len(names)}{hint}")
    condition = ClassCondition(num_classes=count, unconditional_id=unconditional, class_names=names)
    return condition, notes


def _unconditional(
    rows: int, config: ExportConfig, certain: bool
) -> tuple[int | None, tuple[str, ...]]:
    """The row that stands for no class."""
    said = config.unconditional
    if said == "none":
        return None, ()
    if said is not None:
        if said >= rows:
            raise CheckpointError(
                f"unconditional in --config must be one of the transformer's {rows} class ids, "
                f'0 … {rows - 1}, or "none", got {said}'
            )
        return said, ()
    if rows == 1:
        return None, ("the transformer has one class, so none stands for no class: no guidance",)
    if certain:
        return rows - 1, ()
    return rows - 1, (
        f"the last of the transformer's {rows} class ids, {rows - 1}, is taken for no class, as in "
        'the authors\' models; if yours has none, put "unconditional": "none" into --config',
    )


def read_unconditional_text(path: Path | None, transformer: UViT) -> Array | None:
    """States of the empty text ``[L, D]``, float32, of a ``.npy`` file, if there is one.

    Raises:
        CheckpointError: it cannot be read, has another shape, or the transformer reads no texts.
    """
    if path is None:
        return None
    if transformer.class_conditional:
        raise CheckpointError("a class-conditional transformer takes no --unconditional-text")
    shape = (transformer.extras, transformer.context_width)
    try:
        text = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} is not a .npy array: {error}") from error
    if not isinstance(text, np.ndarray):
        raise CheckpointError(f"{path}: expected one .npy array, got an .npz archive")
    if text.shape != shape:
        raise CheckpointError(f"{path}: expected shape {list(shape)}, got {list(text.shape)}")
    return np.asarray(text, np.float32)
