"""Reading checkpoints without running their code, and comparing them with a model's layout."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.runtime.errors import CheckpointError

SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")
_SHOWN = 12

State = dict[str, Tensor]


def read(path: Path) -> dict[str, Any]:
    """Load a checkpoint file on the CPU as the (possibly nested) dictionary it holds.

    Raises:
        CheckpointError: absent, of an unknown kind, truncated, or in need of pickled code.
    """
    if path.suffix not in SUFFIXES:
        raise CheckpointError(f"{path}: expected a file ending in {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    return _dictionary(path, content)


def tensors(path: Path, content: object) -> State:
    """The tensors of a flat dictionary, as float32 where they are floating point.

    Raises:
        CheckpointError: not a dictionary, or an entry is not a named tensor.
    """
    content = _dictionary(path, content)
    if others := [
        str(key)
        for key, value in content.items()
        if not (isinstance(key, str) and isinstance(value, Tensor))
    ]:
        raise CheckpointError(
            f"{path}: expected tensors only, but {_some(others)} hold other objects; "
            "is this another system's checkpoint?"
        )
    return {
        key: value.float() if value.is_floating_point() else value for key, value in content.items()
    }


def mismatches(model: nn.Module, state: Mapping[str, Tensor]) -> str:
    """What keeps ``state`` from loading strictly: missing, unexpected and mis-shaped keys."""
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    actual = {key: tuple(value.shape) for key, value in state.items()}
    wrong = [
        f"{key} {list(actual[key])} instead of {list(expected[key])}"
        for key in expected.keys() & actual.keys()
        if expected[key] != actual[key]
    ]
    parts = {
        "missing": sorted(expected.keys() - actual.keys()),
        "unexpected": sorted(actual.keys() - expected.keys()),
        "mis-shaped": sorted(wrong),
    }
    return "; ".join(f"{len(keys)} {kind}: {_some(keys)}" for kind, keys in parts.items() if keys)


def load_into(model: nn.Module, state: State, path: Path) -> None:
    """Load ``state`` strictly into ``model`` (which may live on the meta device).

    Raises:
        CheckpointError: keys or shapes differ; the message lists them.
    """
    if problems := mismatches(model, state):
        raise CheckpointError(f"{path} does not fit {type(model).__name__}: {problems}")
    adopt(model, state)


def adopt(model: nn.Module, state: State) -> None:
    """Make the tensors of ``state``, which fit, those of ``model``, and freeze it."""
    model.load_state_dict(state, strict=True, assign=True)
    model.eval().requires_grad_(False)


def _dictionary(path: Path, content: object) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path}: expected a dictionary of tensors, got {type(content).__name__}; "
            "save model.state_dict() instead of the model"
        )
    return content


def _read_safetensors(path: Path) -> object:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from error


def _read_torch(path: Path) -> object:
    damaged = f"{path} is not a whole PyTorch checkpoint (truncated copy, another kind of file?)"
    try:
        # The official training scripts keep their command line, a plain namespace, with the model.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported operand" in str(error):  # not a pickle of any known kind
            raise CheckpointError(damaged) from error
        raise CheckpointError(
            f"{path} needs pickled Python code, which is never run here; load it where you trust "
            "it and save the state dict alone: torch.save(model.state_dict(), ...)"
        ) from error
    except Exception as error:  # damage shows as any type, from struct.error to AssertionError
        raise CheckpointError(f"{damaged}: {str(error) or type(error).__name__}") from error


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
