"""The models that a server has, and what it says of each."""

from __future__ import annotations

import datetime
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Union, get_args, get_origin

from fewstep.runtime.condition import ClassCondition, TextCondition
from fewstep.runtime.errors import RequestError
from fewstep.runtime.examples import complete_settings
from fewstep.runtime.families import family_of
from fewstep.server.errors import UnknownModelError
from fewstep.server.worker import Opening, Worker

_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string"}
_RAMP = "ramp"
"""A number, a pair [start, end], or text: START:END, or a number for every step with commas."""


class Models(Mapping[str, Worker]):
    """Workers by the names of their models; the first is the one that is meant by no name."""

    def __init__(self, workers: Iterable[Worker]) -> None:
        self._workers = {worker.name: worker for worker in workers}

    def __getitem__(self, name: str) -> Worker:
        return self._workers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._workers)

    def __len__(self) -> int:
        return len(self._workers)

    @property
    def first(self) -> Worker:
        """The model of requests that name none."""
        return next(iter(self._workers.values()))

    def named(self, name: str | None) -> Worker:
        """A model by its name.

        Raises:
            UnknownModelError: there is none.
        """
        if not name:
            return self.first
        if name not in self._workers:
            known = ", ".join(self._workers)
            raise UnknownModelError(f"the model '{name}' does not exist; there is: {known}")
        return self._workers[name]


def named_openings(openings: Iterable[Opening]) -> dict[str, Opening]:
    """Names for models: their bundles' names, with the precision where a bundle is served in
    several; those of the folders where two bundles have one name.

    Raises:
        RequestError: two of them cannot be told apart.
    """
    every = list(openings)
    places = {each.bundle.path.resolve(): each.bundle for each in every}
    names = [bundle.manifest.name for bundle in places.values()]
    found: dict[str, Opening] = {}
    for each in every:
        name = each.bundle.manifest.name
        if names.count(name) > 1:
            name = each.bundle.path.resolve().name
        if sum(other.bundle.path == each.bundle.path for other in every) > 1:
            name = f"{name}:{each.precision}"
        if name in found:
            raise RequestError(f"two models would be called {name}: rename a bundle's folder")
        found[name] = each
    return found


def described(worker: Worker) -> dict[str, Any]:
    """A model as OpenAI lists it, and what a client may ask of it."""
    manifest = worker.bundle.manifest
    return {
        "id": worker.name,
        "object": "model",
        "created": _seconds(manifest.provenance.created),
        "owned_by": "fewstep",
        "fewstep": _described(worker),
    }


def _described(worker: Worker) -> dict[str, Any]:
    model, generator = worker.model, worker.generator
    family, info = family_of(model.info.kind), model.info
    condition, choices = info.condition, family.choices(model)
    is_class = isinstance(condition, ClassCondition)
    return {
        "kind": info.kind,
        "image_size": list(info.image_size),
        "classes": [condition.label(each) for each in condition.ids]
        if is_class and condition.class_names
        else None,
        "class_ids": condition.ids if is_class else None,
        "text": isinstance(condition, TextCondition),
        "editable": is_editable(worker),
        "precision": generator and generator.precision,
        "backend": generator and generator.backend,
        "device": generator and generator.device.name,
        "max_batch": generator and generator.max_batch,
        "settings": settings_described(info.defaults, choices),
        "schedules": list(choices.get("schedule", ())),
        "presets": list(choices.get("preset", ())),
        "defaults": complete_settings(model, {}),
    }


def is_editable(worker: Worker) -> bool:
    """Whether its bundle has what edits need."""
    return bool(getattr(worker.model.info, "editable", False))


def settings_described(
    defaults: Any, choices: Mapping[str, tuple[str, ...]]
) -> dict[str, dict[str, Any]]:
    """Every setting of a family: its type, default and description, and what it may be."""
    found, values = {}, defaults.model_dump(mode="json")
    for name, field in type(defaults).model_fields.items():
        found[name] = {
            "type": _type_of(field.annotation),
            "default": values[name],
            "description": field.description or "",
            **({"choices": list(choices[name])} if name in choices else {}),
        }
    return found


def _type_of(annotation: Any) -> str:
    """The name of a type; what is not plain is a ramp."""
    kinds = [each for each in _parts(annotation) if each is not type(None)]
    return _TYPES.get(kinds[0], _RAMP) if len(kinds) == 1 else _RAMP


def _parts(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Annotated:
        return _parts(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [part for each in get_args(annotation) for part in _parts(each)]
    return [annotation]


def _seconds(created: str) -> int:
    try:
        return int(datetime.datetime.fromisoformat(created).timestamp())
    except ValueError:
        return 0
