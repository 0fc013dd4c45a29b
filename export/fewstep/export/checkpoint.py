"""Reading checkpoints without running their code: files, folders and shards, known by content."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fewstep.export import filekind, unpickling
from fewstep.export.filekind import shown
from fewstep.export.layout import State, some
from fewstep.runtime.errors import CheckpointError

_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".tar")
_INDEX = ".index.json"
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.")
_TRAINING = re.compile(
    r"optim|sched|scaler|sampler|random|rng|training_args|^step\b|discriminator", re.I
)
_EMA = re.compile(r"(?<![a-z])ema(?![a-z])", re.I)
_VARIANT = re.compile(r"\.(fp16|bf16|non_ema)\.")  # of the same weights, in folders of diffusers
_MOST_BYTES_OF_JSON = 1 << 27


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds for one model.

    Args:
        tensors: by the model's own keys, as they are in the file.
        stored: hyper-parameters beside the tensors, by name: what ``args``, ``config``,
            ``hyper_parameters`` and the like hold, at any depth, and plain values next to them.
        notes: what was removed or preferred, in words for the user.
        disputed: names in ``stored`` that the file gives other values too.
    """

    tensors: State
    stored: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    disputed: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Content:
    """What was read: the (possibly nested) dictionary, and what stands beside it.

    Args:
        tree: what the file holds.
        metadata: of a safetensors file, or the ``config.json`` of a folder.
        notes: how it was found, in words for the user.
    """

    tree: dict[str, Any]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read(path: Path) -> dict[str, Any]:
    """The (possibly nested) dictionary of a checkpoint, on the CPU.

    Raises:
        CheckpointError: as :func:`open_checkpoint`.
    """
    return open_checkpoint(path).tree


def open_checkpoint(path: Path) -> Content:
    """Read a file, a folder with one, or the shards that a ``*.index.json`` lists, on the CPU.

    Raises:
        CheckpointError: absent, no checkpoint, truncated, or in need of pickled code.
    """
    try:
        file, notes = _locate(path)
        if file.name.endswith(_INDEX):
            tree, metadata = _read_shards(file), dict[str, Any]()
        else:
            tree, metadata = _read_file(file)
        if (path / "config.json").is_file():
            metadata |= read_json(path / "config.json")
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    return Content(tree, metadata, notes)


def files(path: Path) -> tuple[Path, ...]:
    """The files that :func:`open_checkpoint` reads for a path.

    Raises:
        CheckpointError: it is a folder without one checkpoint, or lists none.
    """
    file, _ = _locate(path)
    if not file.name.endswith(_INDEX):
        return (file,)
    return (file, *(file.parent / name for name in dict.fromkeys(_weight_map(file).values())))


def named_files(given: Mapping[str, Any]) -> dict[str, Path]:
    """Every file of checkpoints that were given, by what it is: ``transformer``.

    Args:
        given: paths, and sequences of them, by name; other values are no files.
    """
    found: dict[str, Path] = {}
    for name, value in given.items():
        if isinstance(value, Path):
            read = files(value)
            several = {f"{name}/{each.name}": each for each in read}
            found |= several if len(read) > 1 else {name: read[0]}
    return found | {f"tuned/{path.name}": path for path in given.get("tuned_policy", ())}


def _locate(path: Path) -> tuple[Path, tuple[str, ...]]:
    """The file to read for a path, and what to say of it."""
    if path.is_dir():
        file = _in_folder(path)
        return file, (f"read {file.name} of the folder",)
    if _SHARD.search(path.name):
        index = path.with_name(_SHARD.sub(".", path.name) + _INDEX)
        if index.is_file():
            return index, (f"read all shards that {index.name} lists",)
    return path, ()


def _in_folder(folder: Path) -> Path:
    """The checkpoint of a folder: its index, or its one file with weights."""
    names = [each for each in sorted(folder.iterdir()) if not each.name.startswith(".")]
    found = [each for each in names if each.name.endswith(_INDEX)] or [
        each
        for each in names
        if each.suffix.lower() in _SUFFIXES
        and each.is_file()
        and not _TRAINING.search(each.name)
        and not _SHARD.search(each.name)
    ]
    for keep in (
        [each for each in found if not _VARIANT.search(each.name)],
        [each for each in found if _EMA.search(each.name)],
        [each for each in found if ".safetensors" in each.name],
    ):
        found = keep if len(found) > 1 and keep else found
    if len(found) == 1:
        return found[0]
    inner = [each.name for each in names if each.is_dir() and _holds_weights(each)]
    if inner and not found:
        raise CheckpointError(
            f"{folder} holds the checkpoints of several models in its folders "
            f"{some([shown(name) for name in inner])}; pass the folder of the one that is asked for"
        )
    listed = some([shown(each.name) for each in found or names]) or "nothing"
    if found:
        raise CheckpointError(f"{folder} holds several checkpoints ({listed}); pass one of them")
    raise CheckpointError(
        f"{folder} holds no checkpoint (it holds {listed}); expected a file ending in "
        f"{', '.join(_SUFFIXES)}"
    )


def _holds_weights(folder: Path) -> bool:
    return any(each.suffix.lower() in _SUFFIXES for each in folder.iterdir())


def _read_shards(index: Path) -> dict[str, Any]:
    weights: dict[str, Any] = {}
    where = _weight_map(index)
    shards = list(dict.fromkeys(where.values()))
    if missing := [name for name in shards if not (index.parent / name).is_file()]:
        raise CheckpointError(
            f"{index} lists {len(shards)} files, of which {len(missing)} are missing beside it: "
            f"{some([shown(name) for name in missing])}; download them into the same folder"
        )
    for name in shards:
        weights |= _read_file(index.parent / name)[0]
    if absent := [shown(key) for key in where if key not in weights]:
        raise CheckpointError(
            f"{index} lists {len(absent)} tensors that its files do not hold: {some(absent)}; "
            "download the index and the files again, from one place"
        )
    return weights


def _weight_map(index: Path) -> dict[str, str]:
    """File by tensor; names of files in the index's own folder only."""
    where = read_json(index).get("weight_map")
    good = isinstance(where, dict) and all(
        isinstance(name, str) and Path(name).name == name for name in where.values()
    )
    if not isinstance(where, dict) or not good or not where:
        raise CheckpointError(
            f"{index} is no index of shards: expected a weight_map from tensors to files beside it"
        )
    return where


def read_json(path: Path) -> dict[str, Any]:
    """The object of a JSON file.

    Raises:
        CheckpointError: it cannot be read, or is no JSON object.
    """
    if not path.exists():
        raise CheckpointError(f"{path}: no such file")
    try:
        if path.stat().st_size > _MOST_BYTES_OF_JSON:
            raise ValueError("too large")
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not readable JSON: {shown(str(error))}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(found).__name__}")
    return found


def _read_file(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The dictionary and the metadata of one file."""
    if not path.exists():
        raise CheckpointError(f"{path}: no such file")
    if not path.is_file():
        raise CheckpointError(f"{path} is no regular file")
    start = filekind.head(path)
    if problem := filekind.problem(path, start):
        raise CheckpointError(f"{path} {problem}")
    # A file cut off within its first bytes shows its kind by its name alone.
    if filekind.is_safetensors(start) or (
        path.suffix.lower() == ".safetensors" and not start.startswith((b"PK", b"\x80"))
    ):
        return _read_safetensors(path)
    return _dictionary(path, _read_torch(path)), {}


def _dictionary(path: Path, content: object) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path}: expected a dictionary of tensors, got {type(content).__name__}; "
            "save model.state_dict() instead of the model"
        )
    return content


def _read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as file:
            tensors: dict[str, Any] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return tensors, dict(_metadata(file.metadata() or {}))
    except Exception as error:  # SafetensorError, or what its kinds of numbers lack in torch
        raise CheckpointError(
            f"{path} is not a whole safetensors file (truncated copy?): {shown(str(error))}"
        ) from error


def _metadata(found: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    """Metadata are strings; settings are often JSON in them."""
    for key, text in found.items():
        try:
            yield key, json.loads(text)
        except (ValueError, RecursionError):
            yield key, text


def _read_torch(path: Path) -> object:
    damaged = f"{path} is not a whole PyTorch checkpoint (truncated copy, another kind of file?)"
    try:
        return unpickling.load(path)
    except MemoryError as error:
        raise CheckpointError(f"{path} does not fit into memory") from error
    except pickle.UnpicklingError as error:
        if "Unsupported operand" in str(error):  # not a pickle of any known kind
            raise CheckpointError(damaged) from error
        name = unpickling.unknown_global(error)
        raise CheckpointError(
            f"{path} needs pickled Python code, which is never run here"
            f"{f' ({shown(name)})' if name else ''}; load it where you trust "
            "it and save the state dict alone: torch.save(model.state_dict(), ...)"
        ) from error
    except Exception as error:  # damage shows as any type, from struct.error to AssertionError
        raise CheckpointError(f"{damaged}: {shown(str(error)) or type(error).__name__}") from error
