"""PyTorch behind the engine protocol: names, order, buffers in place, evaluation mode."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fewstep.export.torch_engine import TorchEngine
from fewstep.runtime.devices.cpu import CpuBuffer, CpuDevice
from fewstep.runtime.engines import Engine, run_once
from fewstep.runtime.records import GraphInfo, TensorInfo


class Split(nn.Module):
    """Two inputs that may not be exchanged, two outputs, and a random layer in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.dropout = nn.Dropout(0.9)

    def forward(self, ids: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        difference = self.dropout(self.scale * x - ids)
        return difference, difference.sum(dim=1)


class Double(nn.Module):
    """One output, not in a tuple."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def info(inputs: dict[str, TensorInfo], outputs: dict[str, TensorInfo]) -> GraphInfo:
    return GraphInfo(file="x.onnx", inputs=inputs, outputs=outputs)


VECTOR = TensorInfo(dtype="float32", shape=("batch", 3))
IDS = TensorInfo(dtype="int32", shape=("batch", 3))
NUMBER = TensorInfo(dtype="float32", shape=("batch",))


@pytest.fixture
def split() -> TorchEngine:
    return TorchEngine(
        "split", Split().train(), info({"ids": IDS, "x": VECTOR}, {"rows": VECTOR, "sums": NUMBER})
    )


def test_is_an_engine_with_the_graphs_names(split: TorchEngine) -> None:
    engine: Engine = split
    assert engine.name == "split"
    assert dict(engine.inputs) == {"ids": IDS, "x": VECTOR}
    assert dict(engine.outputs) == {"rows": VECTOR, "sums": NUMBER}


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_runs_any_batch_with_inputs_by_name(split: TorchEngine, batch: int) -> None:
    ids = np.arange(3 * batch, dtype=np.int32).reshape(batch, 3)
    x = np.linspace(-1, 1, 3 * batch, dtype=np.float32).reshape(batch, 3)
    out = run_once(CpuDevice(), split, {"x": x, "ids": ids})  # not in the graph's order
    np.testing.assert_allclose(out["rows"], 2 * x - ids, rtol=1e-6)
    np.testing.assert_allclose(out["sums"], (2 * x - ids).sum(axis=1), rtol=1e-6)


def test_writes_into_the_bound_buffers(split: TorchEngine) -> None:
    rows, sums = np.full((2, 3), np.nan, np.float32), np.full(2, np.nan, np.float32)
    inputs = {"ids": np.ones((2, 3), np.int32), "x": np.ones((2, 3), np.float32)}
    bound = {name: CpuBuffer(value) for name, value in (inputs | {"rows": rows}).items()}
    split.bind(bound | {"sums": CpuBuffer(sums)}).run()
    np.testing.assert_array_equal(rows, np.ones((2, 3)))
    np.testing.assert_array_equal(sums, [3, 3])


def test_a_single_output_needs_no_tuple() -> None:
    engine = TorchEngine("double", Double(), info({"x": VECTOR}, {"y": VECTOR}))
    x = np.array([[1, 2, 3]], np.float32)
    np.testing.assert_array_equal(run_once(CpuDevice(), engine, {"x": x})["y"], 2 * x)


def test_outputs_that_do_not_match_the_graph_are_refused() -> None:
    two = TorchEngine("double", Double(), info({"x": VECTOR}, {"y": VECTOR, "z": VECTOR}))
    with pytest.raises(ValueError, match="zip"):
        run_once(CpuDevice(), two, {"x": np.ones((1, 3), np.float32)})


def test_the_module_is_put_in_evaluation_mode_and_keeps_no_graph() -> None:
    module = Split().train()
    engine = TorchEngine("s", module, info({"ids": IDS, "x": VECTOR}, {"a": VECTOR, "b": NUMBER}))
    assert not module.training
    inputs = {"ids": np.zeros((1, 3), np.int32), "x": np.ones((1, 3), np.float32)}
    first, second = (run_once(CpuDevice(), engine, inputs) for _ in range(2))
    np.testing.assert_array_equal(first["a"], second["a"])
    assert module.scale.grad is None


def test_closing_twice_is_fine(split: TorchEngine) -> None:
    split.close()
    split.close()
