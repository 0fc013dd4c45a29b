"""Comparing tensors with a model's layout: keys, shapes, kinds of numbers, and values."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from fewstep.export.filekind import shown
from fewstep.runtime.errors import CheckpointError

State = dict[str, Tensor]

_SHOWN = 3
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def mismatches(model: nn.Module, state: Mapping[str, Tensor]) -> str:
    """What keeps ``state`` from loading strictly: missing, unexpected and mis-shaped keys."""
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    actual = {key: tuple(value.shape) for key, value in state.items()}
    wrong = [
        f"{shown(key)} {list(actual[key])} instead of {list(expected[key])}"
        for key in sorted(expected.keys() & actual.keys())
        if expected[key] != actual[key]
    ]
    parts = {
        "missing": [shown(key) for key in sorted(expected.keys() - actual.keys())],
        "unexpected": [shown(key) for key in sorted(actual.keys() - expected.keys())],
        "mis-shaped": wrong,
    }
    return "; ".join(f"{len(keys)} {kind}: {some(keys)}" for kind, keys in parts.items() if keys)


def fitting(model: nn.Module, state: Mapping[str, Tensor]) -> tuple[int, int]:
    """How many of the model's tensors ``state`` has in their shape; how many keys it has of them.

    Both fall by one for each surplus key, so that the larger pair is the nearer model.
    """
    expected = {key: value.shape for key, value in model.state_dict().items()}
    common = expected.keys() & state.keys()
    surplus = len(state) - len(common)
    return sum(expected[key] == state[key].shape for key in common) - surplus, len(common) - surplus


def require_agreement(pairs: Iterable[tuple[str, object, object, str]]) -> None:
    """Refuse networks that do not belong together.

    Args:
        pairs: what has to be equal, as the transformer and as another has it, and which other.

    Raises:
        CheckpointError: some differ; the message lists them.
    """
    wrong = [f"{what} {a} but the {who}'s is {b}" for what, a, b, who in pairs if a != b]
    if wrong:
        raise CheckpointError(
            f"the checkpoints do not belong together: the transformer expects {'; '.join(wrong)}"
        )


def load_into(model: nn.Module, state: State, path: Path) -> None:
    """Load ``state`` strictly into ``model`` (which may live on the meta device).

    Raises:
        CheckpointError: keys or shapes differ, or values are no numbers; the message lists them.
    """
    if problems := mismatches(model, state):
        raise CheckpointError(f"{path} does not fit {type(model).__name__}: {problems}")
    adopt(model, state, path)


def adopt(model: nn.Module, state: State, path: Path) -> None:
    """Make the tensors of ``state``, which fit, those of ``model``, and freeze it.

    Raises:
        CheckpointError: values are no numbers that can be computed with.
    """
    buffers = frozenset(name for name, _ in model.named_buffers())
    found = usable(path, state, model.state_dict(), buffers)
    model.load_state_dict(found, strict=True, assign=True)
    model.eval().requires_grad_(False)


def usable(
    path: Path,
    state: State,
    like: Mapping[str, Tensor],
    buffers: Collection[str] = (),
) -> State:
    """The tensors as float32 where they are floating point, without copies where they were.

    Args:
        path: of the checkpoint, for messages.
        state: tensors by name.
        like: the model's tensors of these names, whose kinds of numbers they must have.
        buffers: names of tensors that are no weights and may hold −∞, as attention masks do.

    Raises:
        CheckpointError: NaN, infinite, or no numbers of the expected kind, named by key.
    """
    found: State = {}
    wrong: dict[str, list[str]] = {}
    for key, value in state.items():
        if problem := _kind_problem(value, floating=like[key].is_floating_point()):
            wrong.setdefault(problem, []).append(shown(key))
            continue
        found[key] = value.detach()
        if not like[key].is_floating_point():
            found[key] = found[key].to(like[key].dtype)
        elif value.is_floating_point():
            found[key] = found[key].float()
            if problem := _value_problem(value, found[key], masking=key in buffers):
                wrong.setdefault(problem, []).append(shown(key))
    if wrong:
        listed = "; ".join(
            f"{what} in {len(keys)} of {len(state)} tensors ({some(keys)})"
            for what, keys in wrong.items()
        )
        raise CheckpointError(
            f"{path} holds {listed}; expected finite numbers in float32, float16, bfloat16 or "
            "float64: take another checkpoint, or save this one anew"
        )
    return found


def _kind_problem(value: Tensor, *, floating: bool) -> str:
    if value.is_meta:
        return "no values but shapes alone (meta device)"
    if value.is_quantized:
        return "quantized numbers"
    if value.layout is not torch.strided:
        return f"sparse storage ({str(value.layout).removeprefix('torch.')})"
    if not floating and value.dtype in _FLOATS:  # as ``state.half()`` leaves indices
        return "" if bool((value == value.round()).all()) else "fractions in the place of indices"
    if value.dtype in _FLOATS or not (floating or value.is_floating_point() or value.is_complex()):
        return ""
    return f"numbers in {str(value.dtype).removeprefix('torch.')}"


def _value_problem(value: Tensor, converted: Tensor, *, masking: bool) -> str:
    """Looked at through the extremes, which need no memory and are NaN if any value is."""
    if not converted.numel():
        return ""
    low, high = (float(each) for each in converted.aminmax())
    if low != low or high != high:
        return "NaN"
    if max(0.0 if masking else abs(low), abs(high)) < float("inf"):
        return ""
    if value.dtype == torch.float16:
        return "infinity (float16 ends at 65504)"
    if value.dtype == torch.float64 and bool(value.isfinite().all()):
        return "numbers too large for float32"
    return "infinity"


def some(names: list[str], most: int = _SHOWN) -> str:
    """The first few of a list, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
