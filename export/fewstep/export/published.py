"""Checkpoints that authors published, by name: what ``fewstep models`` lists and export fetches.

``published.json`` holds what the authors' pages say of them, and nothing where they say nothing.
This needs no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError

from fewstep.runtime.errors import CheckpointError, choose
from fewstep.runtime.files import sha256

DATA = files("fewstep.export").joinpath("published.json")

_FOLDERS = ("folder", "text_encoder")  # options that take one


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PublishedFile(_Record):
    """A file of a published model, or a folder.

    ``names``: as its authors or their programs name it, or patterns (``ckpt_*.pth``). ``hub``: its
    ``hf://`` address. ``page``: where a person can download it. ``megabytes``: of its weights in
    float32. ``required``: whether the export asks for it; ``unless``: not if this option is given,
    or the file of it found.
    ``note``: how to come by it.
    """

    names: tuple[str, ...] = Field(min_length=1)
    hub: str | None = None
    page: str | None = None
    megabytes: PositiveFloat | None = None
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    required: bool = True
    unless: str | None = None
    note: str | None = None


class PublishedModel(_Record):
    """A model that its authors published.

    ``form``: what ``fewstep export`` reads it as. ``page``, ``paper``: of the authors. ``licence``:
    of their repository. ``parameters``: of the network that predicts tokens. ``steps``, ``fid``:
    the FID that the authors state, and for how many steps. ``files``: by option of the form.
    """

    name: str
    form: str
    summary: str
    page: str
    paper: str | None = None
    licence: str | None = None
    parameters: PositiveInt | None = None
    steps: PositiveInt | None = None
    fid: PositiveFloat | None = None
    files: dict[str, PublishedFile]


class _Catalogue(_Record):
    models: tuple[PublishedModel, ...]


def published() -> dict[str, PublishedModel]:
    """All published models, by name.

    Raises:
        CheckpointError: the list is damaged.
    """
    try:
        catalogue = _Catalogue.model_validate_json(DATA.read_bytes())
    except (OSError, ValidationError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else error
        raise CheckpointError(f"{DATA} is no list of published models: {first}") from error
    return {model.name: model for model in catalogue.models}


def published_model(name: str) -> PublishedModel:
    """The published model of a name.

    Raises:
        CheckpointError: there is none.
    """
    known = published()
    if name not in known:
        raise CheckpointError(choose("model", name, known))
    return known[name]


def sources_of(
    model: PublishedModel, folder: Path | None, given: Mapping[str, Any]
) -> dict[str, Path | str]:
    """Where each file of a model is: a path in ``folder``, or an ``hf://`` address.

    Args:
        model: the model.
        folder: where downloaded files lie, at any depth; ``None`` for no such folder.
        given: what the user names, by option; such files are not looked for.

    Raises:
        CheckpointError: required files that no program can fetch are not there, or several files
            have a name that is looked for.
    """
    if folder is not None and not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder; --from takes one with the model's files")
    found: dict[str, Path | str] = {}
    absent: list[str] = []
    for option, file in model.files.items():
        if given.get(option) or given.get(file.unless or "") or file.unless in found:
            continue
        path = None if folder is None else _find(folder, file.names, option)
        if path is not None:
            found[option] = path
        elif file.hub is not None:
            found[option] = file.hub
        elif file.required:
            absent.append(_where(file))
    if absent:
        place = "they cannot be fetched" if folder is None else f"{folder} does not hold them"
        raise CheckpointError(
            f"{model.name} needs {'; '.join(absent)}: {place}; download them by hand to one folder "
            f"and pass --from FOLDER (the authors' page is {model.page})"
        )
    return found


def check(model: PublishedModel, paths: Mapping[str, Path]) -> None:
    """Refuse files of a model whose SHA-256 its authors published and that have another.

    Raises:
        CheckpointError: such a file.
    """
    for option, path in paths.items():
        expected = model.files[option].sha256
        if expected is not None and path.is_file() and sha256(path) != expected:
            raise CheckpointError(
                f"{path} is not the file of {model.name}: its SHA-256 is not {expected}; download "
                f"it again, or name another with --{option.replace('_', '-')}"
            )


def _find(folder: Path, names: Iterable[str], option: str) -> Path | None:
    """The file or folder of one of the names: the folder itself, in it, or anywhere below it."""
    if option in _FOLDERS and folder.resolve().name in names:
        return folder
    for search in (folder.glob, folder.rglob):
        matches = sorted({path for name in names for path in search(name)})
        if len(matches) > 1:
            listed = ", ".join(map(str, matches[:4])) + (", …" if len(matches) > 4 else "")
            flag = f"--{option.replace('_', '-')}"
            raise CheckpointError(f"several files could be the {option}: {listed}; pass {flag}")
        if matches:
            return matches[0]
    return None


def _where(file: PublishedFile) -> str:
    """Its names, and how to come by it."""
    hints = [each for each in (file.page, file.note) if each]
    names = " or ".join(file.names)
    return f"{names} ({', '.join(hints)})" if hints else names
