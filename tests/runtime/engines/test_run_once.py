"""Running an engine once on host arrays: shapes, types, and memory that is given back.

With an engine of two lines, ``y = x + ids`` per row, that may fail.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from fewstep.runtime.devices import Buffer, BufferSpec
from fewstep.runtime.devices.cpu import CpuDevice, CpuWorkspace, host_array
from fewstep.runtime.engines import BoundEngine, Engine, run_once
from fewstep.runtime.errors import DeviceError, EngineError
from fewstep.runtime.records import TensorInfo


class _Adding:
    """``y [B, 3] = x [B, 3] + ids [B]``, and their sums ``total [B]``."""

    name, capturable, warm_up = "adding", True, 1

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error
        self.inputs: Mapping[str, TensorInfo] = {
            "x": TensorInfo(dtype="float32", shape=("batch", 3)),
            "ids": TensorInfo(dtype="int32", shape=("batch",)),
        }
        self.outputs: Mapping[str, TensorInfo] = {
            "y": TensorInfo(dtype="float32", shape=("batch", 3)),
            "total": TensorInfo(dtype="float32", shape=("batch",)),
        }

    def bind(self, bindings: Mapping[str, Buffer]) -> BoundEngine:
        return BoundEngine(self.name, lambda: self._add(bindings))

    def close(self) -> None:
        """Nothing to release."""

    def _add(self, bindings: Mapping[str, Buffer]) -> None:
        if self.error is not None:
            raise self.error
        for name, info in {**self.inputs, **self.outputs}.items():
            assert bindings[name].dtype == np.dtype(info.dtype)
        arrays = {name: host_array(buffer) for name, buffer in bindings.items()}
        arrays["y"][:] = arrays["x"] + arrays["ids"][:, None]
        arrays["total"][:] = arrays["y"].sum(axis=1)


class _Counting(CpuDevice):
    """Counts the workspaces that are open."""

    def __init__(self) -> None:
        super().__init__()
        self.opened = self.open = 0

    def workspace(self, specs: Mapping[str, BufferSpec]) -> CpuWorkspace:
        device = self
        device.opened += 1
        device.open += 1

        class Counted(CpuWorkspace):
            def close(self) -> None:
                device.open -= 1
                super().close()

        return Counted(specs)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_outputs_have_the_batch_of_the_inputs(batch: int) -> None:
    engine: Engine = _Adding()
    x = np.arange(3 * batch, dtype=np.float32).reshape(batch, 3)
    ids = np.arange(batch, dtype=np.int32)
    found = run_once(CpuDevice(), engine, {"ids": ids, "x": x})  # in any order
    np.testing.assert_array_equal(found["y"], x + ids[:, None])
    np.testing.assert_array_equal(found["total"], (x + ids[:, None]).sum(axis=1))


def test_other_types_become_those_of_the_graph_and_the_inputs_stay() -> None:
    inputs = {"x": np.ones((2, 3), np.float64), "ids": np.array([3, 4], np.int64)}
    copies = {name: value.copy() for name, value in inputs.items()}
    found = run_once(CpuDevice(), _Adding(), inputs)
    assert found["y"].tolist() == [[4, 4, 4], [5, 5, 5]]
    for name, value in copies.items():
        assert inputs[name].dtype == value.dtype
        np.testing.assert_array_equal(inputs[name], value)


def test_results_outlive_the_memory_they_came_from() -> None:
    device = _Counting()
    inputs = {"x": np.ones((1, 3), np.float32), "ids": np.zeros(1, np.int32)}
    first = run_once(device, _Adding(), inputs)
    second = run_once(device, _Adding(), {**inputs, "x": np.full((1, 3), 2, np.float32)})
    assert first["y"].tolist() == [[1, 1, 1]]
    assert second["y"].tolist() == [[2, 2, 2]]
    assert (device.opened, device.open) == (2, 0)


@pytest.mark.parametrize("error", [EngineError("broken"), KeyboardInterrupt()])
def test_an_engine_that_fails_leaves_no_memory_behind(error: BaseException) -> None:
    device = _Counting()
    inputs = {"x": np.ones((1, 3), np.float32), "ids": np.zeros(1, np.int32)}
    with pytest.raises(type(error)):
        run_once(device, _Adding(error), inputs)
    assert (device.opened, device.open) == (1, 0)


def test_a_closed_device_is_refused() -> None:
    device = CpuDevice()
    device.close()
    with pytest.raises(DeviceError, match="closed"):
        run_once(device, _Adding(), {"x": np.ones((1, 3)), "ids": np.zeros(1)})
