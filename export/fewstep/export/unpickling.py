"""torch.load without running code: what a pickle may hold beside tensors.

PyTorch's ``weights_only`` unpickler calls nothing but what it knows. Training scripts keep their
settings with the weights, as namespaces, NumPy scalars, paths, or objects of configuration
libraries. The first are let through. The last become inert: nothing of their class runs, nor need
it be installed.
"""

from __future__ import annotations

import argparse
import pathlib
import pickle
import re
import types
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

_INERT_LIBRARIES = re.compile(
    r"(accelerate|addict|box|datetime|easydict|fsspec|hydra|lightning\w*|ml_collections|mmcv"
    r"|mmengine|munch|omegaconf|pytorch_lightning|transformers|typing|wandb|yacs)\."
)
_GLOBAL = re.compile(r"Unsupported global: GLOBAL (\S+) was not an allowed")
_MOST_DEPTH = 8
_LOW_CODES = "?bhilqBHILQefdSU"


class Inert:
    """Stands for an object of a library: it keeps what was pickled, and does nothing."""

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


def load(path: Path) -> object:
    """What ``torch.save`` wrote, on the CPU.

    Raises:
        pickle.UnpicklingError: it needs code, or is no pickle.
        Exception: of any type, if the file is damaged.
    """
    inert: dict[str, Any] = {}
    while True:
        names: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
            (each, name) for name, each in (_known() | inert).items()
        ]
        try:
            with (
                warnings.catch_warnings(),
                torch.serialization.safe_globals(names),
                path.open("rb") as file,
            ):
                warnings.simplefilter("ignore")
                # A path that ends in .safetensors would be read as such, whatever it is.
                return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            name = unknown_global(error)
            if name is None or name in inert or not _INERT_LIBRARIES.match(name):
                raise
            # The unpickler sets items of plain dictionaries only; a DictConfig keeps a state.
            inert[name] = OrderedDict if re.search(r"(Dict|CfgNode|Munch)$", name) else Inert


def unknown_global(error: Exception) -> str | None:
    """The class or function that the unpickler refused."""
    found = _GLOBAL.search(str(error))
    return None if found is None else found[1]


def plain(value: object, depth: int = 0) -> Any:
    """Settings as dictionaries, lists, strings and numbers; ``None`` for anything else."""
    if value is None or isinstance(value, (str, int, float)):
        return value
    if depth > _MOST_DEPTH:
        return None
    if isinstance(value, Inert):
        known = vars(value)
        return plain(known.get("_content", known.get("_val")), depth + 1)
    if isinstance(value, (argparse.Namespace, types.SimpleNamespace)):
        value = vars(value)
    if isinstance(value, Mapping):
        return {str(key): plain(each, depth + 1) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each, depth + 1) for each in value]
    if isinstance(value, pathlib.PurePath):
        return str(value)
    if isinstance(value, np.generic) or (isinstance(value, Tensor) and _is_number(value)):
        return value.item()
    return None


def _is_number(value: Tensor) -> bool:
    whole = value.numel() == 1 and value.layout is torch.strided and not value.is_meta
    return whole and not (value.is_complex() or value.is_quantized)


def _known() -> dict[str, Any]:
    """Harmless globals by the names under which pickles have them."""
    codes: list[Callable[..., Any]] = [type(np.dtype(code)) for code in _LOW_CODES]
    found: dict[str, Any] = {f"{each.__module__}.{each.__qualname__}": each for each in codes}
    rebuild = np.zeros(0).__reduce__()[0]
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        found |= {f"{module}.scalar": _numpy_scalar, f"{module}._reconstruct": rebuild}
    for module in ("pathlib", "pathlib._local"):
        found |= {
            f"{module}.PosixPath": pathlib.PurePosixPath,
            f"{module}.PurePosixPath": pathlib.PurePosixPath,
            f"{module}.WindowsPath": pathlib.PureWindowsPath,
            f"{module}.PureWindowsPath": pathlib.PureWindowsPath,
        }
    types_named = ("bool", "dict", "float", "int", "list", "object", "str", "tuple")
    return found | {
        "argparse.Namespace": argparse.Namespace,
        "types.SimpleNamespace": types.SimpleNamespace,
        "collections.defaultdict": _no_items,
        "numpy.dtype": np.dtype,
        "numpy.ndarray": np.ndarray,
        **{f"builtins.{name}": Inert for name in types_named},
    }


def _numpy_scalar(dtype: np.dtype[Any], content: object = b"") -> object:
    """A NumPy scalar as Python's number; NumPy's own function would also unpickle objects."""
    if dtype.hasobject or not isinstance(content, bytes):
        return None
    return np.frombuffer(content, dtype, count=1)[0].item()


def _no_items(*_: object) -> dict[Any, Any]:
    """A ``defaultdict`` without its factory."""
    return {}
