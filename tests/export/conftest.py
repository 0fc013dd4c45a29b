"""Recorded outputs of the official implementation, and the models that they belong to.

``tests/data/README.md`` says what the files hold.
"""

from __future__ import annotations

import functools
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from fewstep.export import presets
from fewstep.export.models import PolicyNet, UViT, VQModel
from fewstep.export.source import Graph
from fewstep.runtime.records import GraphInfo, TensorInfo

_DATA = Path(__file__).parents[1] / "data"

Recorded = dict[str, npt.NDArray[Any]]


@functools.cache
def _recorded(name: str) -> Recorded:
    with np.load(_DATA / f"{name}.npz", allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}


def _arguments(recorded: Recorded) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(str(recorded["cfg"]))
    return found


def _state(recorded: Recorded) -> dict[str, Tensor]:
    return {
        key.removeprefix("sd/"): torch.from_numpy(value)
        for key, value in recorded.items()
        if key.startswith("sd/")
    }


@pytest.fixture(scope="session")
def recorded() -> Callable[[str], Recorded]:
    """The arrays of a recording by its name: ``cfg``, ``sd/…``, ``in/…`` and ``out/…``."""
    return _recorded


@pytest.fixture(scope="session")
def class_uvit() -> UViT:
    """The class-conditional U-ViT: 16×16 tokens of 48 codes, 10 classes and the unconditional."""
    data = _recorded("adanat_uvit_class")
    return presets.load(UViT, _state(data), Path("class.pth"), _arguments(data))


@pytest.fixture(scope="session")
def text_uvit() -> UViT:
    """The text-conditional U-ViT: 8×8 tokens of 48 codes, text states ``[7, 20]``."""
    data = _recorded("adanat_text")
    return presets.load(UViT, _state(data), Path("text.pth"), _arguments(data)["uvit"])


@pytest.fixture(scope="session")
def policy_net() -> PolicyNet:
    """The policy network that reads the class-conditional U-ViT's features."""
    data = _recorded("adanat_policy")
    return presets.load(PolicyNet, _state(data), Path("policy.pth"), _arguments(data)["policy"])


@pytest.fixture(scope="session")
def vqgan() -> VQModel:
    """The tokenizer: 48 codes, 16 pixels per token."""
    data = _recorded("adanat_vqgan")
    return presets.load(VQModel, _state(data), Path("vqgan.ckpt"), _arguments(data))


@pytest.fixture(scope="session")
def layouts() -> dict[str, dict[str, torch.Size]]:
    """Key → shape of every tensor of the published checkpoints, by checkpoint."""
    tables: dict[str, Any] = {}
    for table in ("ckpt_layouts", "ckpt_layouts_new"):
        with gzip.open(_DATA / f"{table}.json.gz") as file:
            tables |= json.load(file)
    return {
        name: {key: torch.Size(shape) for key, (shape, _) in table["keys"].items()}
        for name, table in tables.items()
    }


def _describe_only(name: str, graph: Graph, folder: Path) -> GraphInfo:
    """Stand in for ``export_graph``: the right description of a file that is no graph."""
    (folder / f"{name}.onnx").write_text(f"not really a graph: {name}")
    with torch.no_grad():
        result: Any = graph.module(*graph.inputs.values())
    results = result if isinstance(result, tuple) else (result,)
    return GraphInfo(
        file=f"{name}.onnx",
        inputs={key: _tensor_info(value) for key, value in graph.inputs.items()},
        outputs={
            key: _tensor_info(value) for key, value in zip(graph.outputs, results, strict=True)
        },
    )


def _tensor_info(tensor: Tensor) -> TensorInfo:
    dtype: Any = str(tensor.dtype).removeprefix("torch.")
    return TensorInfo(dtype=dtype, shape=("batch", *tensor.shape[1:]))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the step to ONNX."""
    monkeypatch.setattr("fewstep.export.flow.export_graph", _describe_only)
