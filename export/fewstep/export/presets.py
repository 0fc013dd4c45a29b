"""Networks from files: published sizes by their keys and shapes, others by a configuration."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from fewstep.export import foreign, tuned, wrappers
from fewstep.export.checkpoint import Checkpoint, Content, open_checkpoint
from fewstep.export.filekind import shown
from fewstep.export.layout import State, adopt, fitting, mismatches, some
from fewstep.export.parts import others, part_of, siblings
from fewstep.runtime.errors import CheckpointError

Model = TypeVar("Model", bound=nn.Module)

_CHANCE = 10  # keys that networks of different forms share
_WITHOUT_EFFECT = {"dropout", "attn_resolutions", "double_z"}


def read(
    kind: Callable[..., Model],
    path: Path,
    arguments: Mapping[str, Any] | None,
    *,
    whole: bool = False,
) -> tuple[Model, Checkpoint]:
    """A model from a file, as :func:`load` makes it, and what else the file says.

    Args:
        kind: its class.
        path: the checkpoint, in any wrapping.
        arguments: the constructor's; ``None`` for a published size.
        whole: a tokenizer with its encoder, which is left out otherwise.

    Raises:
        CheckpointError: unreadable, unknown arguments, no published size fits, keys, shapes or
            stored settings differ, values are not finite numbers, or there is no encoder.
    """
    content = open_checkpoint(path)
    if tuned.KEY in content.metadata:
        raise CheckpointError(
            f"{path} is a policy that fewstep calibrate policy wrote; instead of --policy pass "
            f"--untrained-policy --tuned-policy {path}"
        )
    keys = _keys(kind, path, arguments)
    found = wrappers.find(path, content, part_of(kind).wanted(keys, whole=whole))
    if found is not None and whole:
        _require_encoder(kind, path, keys, found)
    size, problem = _size(kind, {} if found is None else found.tensors, path, arguments)
    if found is None or size is None:
        _refuse_another(kind, path, content, found)
        raise CheckpointError(problem)
    _check_stored(kind, path, size, found)
    return load(kind, found.tensors, path, size), found


def load(
    kind: Callable[..., Model], state: State, path: Path, arguments: Mapping[str, Any] | None
) -> Model:
    """A model with the tensors of a checkpoint, frozen and in evaluation mode.

    What is seldom exported may be missing: a tokenizer then has no encoder.

    Args:
        kind: its class.
        state: the checkpoint's tensors, which the model adopts.
        path: of the checkpoint, for messages.
        arguments: the constructor's; ``None`` for a published size.

    Raises:
        CheckpointError: unknown arguments, no published size fits, keys or shapes differ, or
            values are not finite numbers.
    """
    size, problem = _size(kind, state, path, arguments)
    if size is None:
        raise CheckpointError(problem)
    model = _model(kind, state, path, size)
    adopt(model, state, path)
    return model


def _model(
    kind: Callable[..., Model], state: State, path: Path, arguments: Mapping[str, Any]
) -> Model:
    """A model on the meta device, without its encoder if ``state`` has not all of that."""
    model = build(kind, arguments, path)
    for name in (each.removesuffix(".") for each in part_of(kind).rules.unused):
        needed = [key for key in model.state_dict() if key.startswith(f"{name}.")]
        if needed and not all(key in state for key in needed):
            delattr(model, name)
    return model


def _size(
    kind: Callable[..., Model], state: State, path: Path, arguments: Mapping[str, Any] | None
) -> tuple[Mapping[str, Any] | None, str]:
    """Arguments with which ``state`` fits, or what is wrong."""
    if arguments is not None:
        model = _model(kind, state, path, arguments)
        problems = mismatches(model, state)
        return None if problems else arguments, f"{path} does not fit {type(model).__name__}: " + (
            problems
        )
    nearest, best, problems = "", (-len(state) - 1, 0), ""
    for preset in part_of(kind).sizes:
        model = _model(kind, state, path, preset.arguments)
        if not (found := mismatches(model, state)):
            return preset.arguments, ""
        if (fit := fitting(model, state)) > best:
            of = len(model.state_dict())
            count = max(0, fit[0])
            nearest, best, problems = f"{preset.name} ({count} of {of} tensors fit)", fit, found
    names = "; ".join(preset.name for preset in part_of(kind).sizes)
    return None, (
        f"{path} is none of the published sizes ({names}); describe yours with --config. "
        f"Against the nearest, {nearest}: {problems}"
    )


def _require_encoder(
    kind: Callable[..., nn.Module], path: Path, keys: frozenset[str], found: Checkpoint
) -> None:
    """Raise a :class:`CheckpointError` if a tokenizer's file has nothing of its encoder."""
    for start in part_of(kind).rules.unused:
        needed = any(key.startswith(start) for key in keys)
        if needed and not any(key.startswith(start) for key in found.tensors):
            raise CheckpointError(
                f"{path} has no weights of the tokenizer's encoder ({start}*): pass the whole "
                "file, or leave --encoder out"
            )


def _keys(
    kind: Callable[..., nn.Module], path: Path, arguments: Mapping[str, Any] | None
) -> frozenset[str]:
    """Keys that a state dict of the class may have."""
    if arguments is None:
        return _published_keys(kind)
    return frozenset(build(kind, arguments, path).state_dict())


@functools.cache
def _published_keys(kind: Callable[..., nn.Module]) -> frozenset[str]:
    """Keys that those of the published sizes have."""
    models = [build(kind, each.arguments, each.name) for each in part_of(kind).sizes]
    return frozenset(key for model in models for key in model.state_dict())


def _refuse_another(
    kind: Callable[..., nn.Module], path: Path, content: Content, found: Checkpoint | None
) -> None:
    """Raise a :class:`CheckpointError` if the file is another network's or another system's."""
    keys = wrappers.tensor_keys(content)
    part = part_of(kind)
    if name := foreign.recognise(keys, part.form):
        raise CheckpointError(f"{path} is {name}; expected {part.one}")
    own = wrappers.most_keys(content, part.wanted(_published_keys(kind)))
    for other, its in siblings(kind).items():
        wanted = its.wanted(_published_keys(other))
        count = wrappers.most_keys(content, wanted)
        if other is not kind and count > max(own, len(wanted.keys) // 20):
            raise CheckpointError(f"{path} is {its.one}, not {part.one}; pass it as {its.option}")
    if found is None:
        for other, its in others(kind).items():
            if wrappers.most_keys(content, its.wanted(_published_keys(other))) > max(own, _CHANCE):
                raise CheckpointError(f"{path} is {its.one} of another form; expected {part.one}")
        names = some([shown(key) for key in keys])
        raise CheckpointError(
            f"{path} holds no {part.title}: "
            + (f"its tensors have other names ({names})" if keys else "no tensors")
        )


def _check_stored(
    kind: Callable[..., nn.Module],
    path: Path,
    arguments: Mapping[str, Any],
    found: Checkpoint,
) -> None:
    """Raise a :class:`CheckpointError` if the file states another size than it is read with."""
    part = part_of(kind)
    if part.settings_beside not in ("", *found.stored):
        return
    defaults = {
        name: each.default
        for name, each in inspect.signature(kind).parameters.items()
        if each.default is not each.empty
    }
    used = {**defaults, **arguments}
    wrong = [
        difference
        for name in part.settings
        if name in used and name not in found.disputed  # such as a size of each of two networks
        for difference in _differences(name, found.stored.get(name), used[name])
    ]
    if wrong:
        raise CheckpointError(
            f"{path} says {'; '.join(wrong[:3])}; correct --config, or the checkpoint"
        )


def _differences(name: str, stored: object, used: object) -> Iterator[str]:
    if isinstance(stored, dict) and isinstance(used, dict):
        for key in stored.keys() & used.keys() - _WITHOUT_EFFECT:
            yield from _differences(f"{name}.{key}", stored[key], used[key])
        return
    used = list(used) if isinstance(used, tuple) else used
    if stored is not None and used is not None and stored != used:
        yield f"{name} {shown(str(stored))}, but is read with {shown(str(used))}"


def build(
    kind: Callable[..., Model],
    arguments: Mapping[str, Any],
    what: Path | str,
    *,
    device: str = "meta",
) -> Model:
    """A model with new weights; on the meta device with none.

    Raises:
        CheckpointError: arguments that the class does not take.
    """
    try:
        with torch.device(device):
            return kind(**arguments)
    except (TypeError, ValueError, ArithmeticError, LookupError, RuntimeError) as error:
        raise CheckpointError(
            f"{what}: the configuration does not build: {shown(str(error), 300)}"
        ) from error
