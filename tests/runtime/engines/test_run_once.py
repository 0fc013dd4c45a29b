"""Buffers that an engine is bound to, and running it once on host arrays.

Covered: dimensions that vary, by their names; shapes and types; what does not fit; memory that is
given back. Mostly with an engine of two lines, ``y = x + ids`` per row, that may fail.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from tests.runtime.programs import NumpyEngine, tensors

from fewstep.runtime.devices import Buffer, BufferSpec
from fewstep.runtime.devices.cpu import CpuBuffer, CpuDevice, CpuWorkspace, host_array
from fewstep.runtime.engines import BoundEngine, Engine, require_all, run_once
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


# --- dimensions by name


def _attending() -> NumpyEngine:
    """``y [new, batch, 4] = Σ past + x``: the cache of a transformer, as its graph sees it."""
    return NumpyEngine(
        "attending",
        tensors(x=("batch", "new", 4), past=("past", "batch", 4)),
        tensors(y=("new", "batch", 4), last=("batch", 4)),
        lambda x, past: (x.swapaxes(0, 1) + past.sum(0), x[:, -1]),
    )


@pytest.mark.parametrize(("batch", "new", "past"), [(1, 1, 1), (2, 3, 5), (5, 2, 0), (2, 2, 2)])
def test_every_dimension_has_a_size_of_its_own(batch: int, new: int, past: int) -> None:
    random = np.random.default_rng(0)
    x = random.random((batch, new, 4), np.float32)
    seen = random.random((past, batch, 4), np.float32)
    found = run_once(CpuDevice(), _attending(), {"x": x, "past": seen})
    np.testing.assert_allclose(found["y"], x.transpose(1, 0, 2) + seen.sum(0), rtol=1e-6)
    np.testing.assert_array_equal(found["last"], x[:, -1])


def test_sizes_are_told_by_name() -> None:
    assert require_all(_attending(), _buffers()) == {"batch": 2, "new": 3, "past": 5}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"past": (5, 3, 4)}, r"'past': expected float32 \[past, batch, 4\] with batch 2, new 3"),
        ({"y": (2, 2, 4)}, r"'y': expected float32 \[new, batch, 4\] with .*new 3, past 5"),
        ({"last": (3, 4)}, r"'last': expected float32 \[batch, 4\] with batch 2"),
        ({"x": (2, 3, 5)}, r"'x': expected float32 \[batch, new, 4\] with batch 2, new 3, got"),
        ({"x": (2, 3)}, r"'x': expected float32 \[batch, new, 4\], got float32 \[2, 3\]"),
        ({"more": (1,)}, "'attending' has no input or output 'more'"),
    ],
)
def test_sizes_that_contradict_each_other_are_refused(
    changed: dict[str, tuple[int, ...]], message: str
) -> None:
    with pytest.raises(EngineError, match=message):
        require_all(_attending(), _buffers(**changed))


def test_other_types_and_what_is_not_bound_are_refused() -> None:
    with pytest.raises(EngineError, match=r"'y': expected float32 .*, got float64 \[3, 2, 4\]"):
        require_all(_attending(), _buffers() | {"y": CpuBuffer(np.empty((3, 2, 4)))})
    bound = _buffers()
    for name in ("last", "past"):
        del bound[name]
    with pytest.raises(EngineError, match="graph 'attending': no buffer bound to last, past"):
        require_all(_attending(), bound)


def _buffers(**changed: tuple[int, ...]) -> dict[str, CpuBuffer]:
    shapes = {"x": (2, 3, 4), "past": (5, 2, 4), "y": (3, 2, 4), "last": (2, 4)} | changed
    return {name: CpuBuffer(np.empty(shape, np.float32)) for name, shape in shapes.items()}


def test_an_output_with_a_dimension_that_no_input_has_cannot_be_run_once() -> None:
    engine = NumpyEngine(
        "finding", tensors(x=("batch", 3)), tensors(found=("count", 2)), lambda x: x
    )
    with pytest.raises(EngineError, match="'finding', output 'found': no input has the dimension"):
        run_once(CpuDevice(), engine, {"x": np.zeros((2, 3), np.float32)})


@pytest.mark.parametrize("inputs", [{"z": (2, 3)}, {"x": (2, 3, 1)}, {"x": ()}])
def test_inputs_that_a_graph_does_not_have_are_refused(inputs: dict[str, tuple[int, ...]]) -> None:
    device = _Counting()
    arrays = {name: np.zeros(shape, np.float32) for name, shape in inputs.items()}
    with pytest.raises(EngineError, match="has no input '[xz]' of shape"):
        run_once(device, _Adding(), arrays)
    assert device.opened == 0


def test_inputs_that_contradict_each_other_are_refused_and_leave_no_memory() -> None:
    device = _Counting()
    x, past = np.zeros((2, 3, 4), np.float32), np.zeros((5, 3, 4), np.float32)
    with pytest.raises(EngineError, match="with batch"):
        run_once(device, _attending(), {"x": x, "past": past})
    assert device.open == 0


def test_a_missing_input_is_named() -> None:
    with pytest.raises(EngineError, match="no buffer bound to past"):
        run_once(CpuDevice(), _attending(), {"x": np.zeros((2, 3, 4), np.float32)})
