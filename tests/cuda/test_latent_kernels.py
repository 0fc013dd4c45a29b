"""The kernels of continuous tokens on the GPU against those of the CPU, bit by bit.

Covered: ``random_order``, ``gather_tokens``, ``scatter_tokens``, ``start_diffusion``,
``diffusion_step``, ``advance``, ``gather_rows``, ``scatter_rows``, ``similarity``,
``select_rows``, ``subtract`` and ``add_half``: one half and two, sizes that are and are not
multiples of blocks and of four numbers, given tokens, with and without noise, equal similarities,
numbers that are not finite, and sizes that the CUDA kernels do not take.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep.runtime.devices.cuda import CudaDevice
from fewstep.runtime.errors import DeviceError
from fewstep.runtime.kernels.cpu import KERNELS

sys.path.append(str(Path(__file__).parent))
if TYPE_CHECKING:
    from tests.cuda import kernel_runs as runs
else:
    import kernel_runs as runs

Array = npt.NDArray[Any]
_HALVES = st.integers(1, 2)
_SEEDS = st.integers(0, 2**32)


def _same(
    device: CudaDevice,
    kernel: str,
    inputs: dict[str, Array],
    outputs: dict[str, Array],
    **numbers: int | float,
) -> dict[str, Array]:
    """Run a kernel on both devices, compare what it wrote, and return that."""
    expected = {name: value.copy() for name, value in outputs.items()}
    KERNELS[kernel](**inputs, **expected, **numbers)
    found = runs.launch(device, kernel, inputs=inputs, outputs=outputs, **numbers)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name, strict=True)
    return expected


def _ids(rng: np.random.Generator, count: int, columns: int, most: int) -> Array:
    """``[count, columns]`` int32, no number twice in a column."""
    chosen = [rng.permutation(most)[:count] for _ in range(columns)]
    return np.stack(chosen, 1).astype(np.int32)


@runs.examples(40)
@given(batch=st.integers(1, 3), count=st.integers(1, 300), halves=_HALVES, seed=_SEEDS)
def test_orders(device: CudaDevice, batch: int, count: int, halves: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    kept = int(rng.integers(0, count + 1))
    given = np.zeros((batch, count), np.uint8)
    for row in given:
        row[rng.permutation(count)[:kept]] = rng.integers(1, 256)
    inputs = {"seeds": rng.integers(0, 2**64, batch, np.uint64), "given": given}
    outputs = {"order": np.zeros((count, halves * batch), np.int32)}
    order = _same(device, "random_order", inputs, outputs)["order"]
    np.testing.assert_array_equal(np.sort(order, 0), np.arange(count)[:, None] + 0 * order)


@runs.examples(30)
@given(
    batch=st.integers(1, 3),
    count=st.integers(1, 40),
    channels=st.integers(1, 70),
    halves=_HALVES,
    seed=_SEEDS,
)
def test_tokens_to_their_order_and_back(
    device: CudaDevice, batch: int, count: int, channels: int, halves: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    source = rng.standard_normal((batch, count, channels)).astype(np.float32)
    index = np.tile(_ids(rng, count, batch, count), (1, halves))
    ordered = np.zeros((count, halves * batch, channels), np.float32)
    inputs = {"source": source, "index": index}
    ordered = _same(device, "gather_tokens", inputs, {"target": ordered})["target"]
    inputs = {"source": ordered, "index": index}
    back = _same(device, "scatter_tokens", inputs, {"target": np.zeros_like(source)})["target"]
    np.testing.assert_array_equal(back, source)


@runs.examples(40)
@given(
    batch=st.integers(1, 3),
    count=st.integers(1, 20),
    channels=st.integers(1, 35),
    halves=_HALVES,
    noisy=st.booleans(),
    seed=_SEEDS,
)
def test_diffusion(
    device: CudaDevice,
    batch: int,
    count: int,
    channels: int,
    halves: int,
    noisy: bool,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    seeds = rng.integers(0, 2**64, batch, np.uint64)
    positions = np.tile(_ids(rng, count, batch, 50), (1, halves))
    timesteps = np.array([950, 400, 7, 0], np.int32)
    state = {"counter": np.zeros(1, np.int32), "timestep": np.zeros(1, np.int32)}
    outputs = {"x": np.zeros((halves * batch, count, channels), np.float32), **state}
    inputs = {"seeds": seeds, "positions": positions, "timesteps": timesteps}
    found = _same(device, "start_diffusion", inputs, outputs, first=1)
    assert (found["counter"][0], found["timestep"][0]) == (1, 400)
    coefficients = rng.standard_normal((4, 5)).astype(np.float32)
    coefficients[:, 4] = noisy
    denoised = rng.standard_normal((halves * batch, count, 2 * channels)).astype(np.float32)
    inputs = {
        "denoised": denoised,
        "coefficients": coefficients,
        "counter": found["counter"],
        "timestep": found["timestep"],
        "seeds": seeds,
        "positions": positions,
        "parameters": rng.random(2).astype(np.float32) * 3,
    }
    _same(device, "diffusion_step", inputs, {"x": found["x"], "error": np.zeros(1, np.int32)})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 1], ids=["noise", "variance"])
def test_what_is_not_finite_is_flagged(device: CudaDevice, place: int, value: float) -> None:
    inputs: dict[str, Array] = {
        "denoised": np.zeros((1, 1, 2), np.float32),
        "coefficients": np.ones((1, 5), np.float32),
        "counter": np.zeros(1, np.int32),
        "timestep": np.zeros(1, np.int32),
        "seeds": np.zeros(1, np.uint64),
        "positions": np.zeros((1, 1), np.int32),
        "parameters": np.ones(2, np.float32),
    }
    inputs["denoised"][0, 0, place] = value
    outputs = {"x": np.zeros((1, 1, 1), np.float32), "error": np.zeros(1, np.int32)}
    assert _same(device, "diffusion_step", inputs, outputs)["error"][0] == 1


@pytest.mark.parametrize(("counter", "after"), [(0, 5), (1, 0), (2, 0)])
def test_the_next_step(device: CudaDevice, counter: int, after: int) -> None:
    inputs = {"timesteps": np.array([9, 5, 0], np.int32)}
    outputs = {"counter": np.array([counter], np.int32), "timestep": np.zeros(1, np.int32)}
    found = _same(device, "advance", inputs, outputs)
    assert (found["counter"][0], found["timestep"][0]) == (counter + 1, after)


@runs.examples(30)
@given(
    groups=st.integers(1, 4),
    rows=st.integers(1, 3),
    count=st.integers(1, 30),
    width=st.integers(1, 300),
    seed=_SEEDS,
)
def test_rows_of_caches(
    device: CudaDevice, groups: int, rows: int, count: int, width: int, seed: int
) -> None:
    """Groups are longer than their rows, as where tensors have to begin at certain places."""
    rng = np.random.default_rng(seed)
    some = int(rng.integers(1, count + 1))
    index = _ids(rng, some, rows, count)
    source = rng.standard_normal((groups, count * rows * width + 3)).astype(np.float32)
    target = np.zeros((groups, some * rows * width + 5), np.float32)
    numbers = {"width": width}
    inputs = {"source": source, "index": index}
    _same(device, "gather_rows", inputs, {"target": target}, **numbers)
    inputs = {"source": rng.standard_normal(target.shape).astype(np.float32), "index": index}
    _same(device, "scatter_rows", inputs, {"target": source}, **numbers)


@pytest.mark.parametrize("kernel", ["gather_rows", "scatter_rows"])
def test_rows_of_ids(device: CudaDevice, kernel: str) -> None:
    rng = np.random.default_rng(3)
    source, target = rng.integers(-(2**31), 2**31, (2, 2, 35), np.int64).astype(np.int32)
    inputs = {"source": source, "index": _ids(rng, 7, 1, 7)}
    _same(device, kernel, inputs, {"target": target}, width=5)


@runs.examples(30)
@given(
    batch=st.integers(1, 2),
    halves=_HALVES,
    heads=st.integers(1, 3),
    own=st.integers(1, 70),
    count=st.integers(4, 60),
    equal=st.booleans(),
    seed=_SEEDS,
)
def test_selection(
    device: CudaDevice,
    batch: int,
    halves: int,
    heads: int,
    own: int,
    count: int,
    equal: bool,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    rows = batch * halves
    values = rng.standard_normal((count, rows, heads * own)).astype(np.float32)
    cached = values.copy() if equal else rng.standard_normal(values.shape).astype(np.float32)
    outputs = {
        "similarity": np.zeros((batch, halves, count), np.float32),
        "error": np.zeros(1, np.int32),
    }
    inputs = {"values": values, "cached": cached}
    alike = _same(device, "similarity", inputs, outputs, heads=heads)["similarity"]
    if equal:  # to the last bits: what decides are positions and those bits
        np.testing.assert_allclose(alike, 1, rtol=1e-5)
    known = int(rng.integers(1, count - 1))
    previous = int(rng.integers(1, known + 1))
    following = int(rng.integers(1, count - known + 1))
    most = int(rng.integers(previous + following, count + 1))
    outputs = {
        "selected": np.full((most, rows), -1, np.int32),
        "rest": np.full((count - most, rows), -1, np.int32),
    }
    numbers = {"known": known, "previous": previous, "following": following}
    found = _same(device, "select_rows", {"similarity": alike}, outputs, **numbers)
    every = np.sort(np.concatenate([found["selected"], found["rest"]]), 0)
    np.testing.assert_array_equal(every, np.arange(count)[:, None] + 0 * every)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_count_as_changed(device: CudaDevice, value: float) -> None:
    values = np.ones((4, 1, 8), np.float32)
    values[2, 0, 3] = value
    outputs = {"similarity": np.zeros((1, 1, 4), np.float32), "error": np.zeros(1, np.int32)}
    inputs = {"values": values, "cached": np.ones_like(values)}
    found = _same(device, "similarity", inputs, outputs, heads=2)
    assert found["error"][0] == 1
    assert found["similarity"][0, 0, 2] == 0


def test_squares_that_overflow_against_zeros_are_not_alike(device: CudaDevice) -> None:
    """Infinity times zero is no number on either device, and no error."""
    values = np.full((1, 1, 40), 1e25, np.float32)
    outputs = {"similarity": np.ones((1, 1, 1), np.float32), "error": np.zeros(1, np.int32)}
    inputs = {"values": values, "cached": np.zeros_like(values)}
    found = _same(device, "similarity", inputs, outputs, heads=1)
    assert (found["similarity"][0, 0, 0], found["error"][0]) == (0, 0)


@runs.examples(20)
@given(count=st.integers(1, 9), batch=st.integers(1, 3), width=st.integers(1, 200), seed=_SEEDS)
def test_halves_and_their_difference(
    device: CudaDevice, count: int, batch: int, width: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    own, other = rng.standard_normal((2, count, batch, width)).astype(np.float32)
    inputs = {"a": other, "b": own}
    difference = _same(device, "subtract", inputs, {"out": np.zeros_like(own)})["out"]
    both = np.zeros((count, 2 * batch, width), np.float32)
    inputs = {"own": own, "difference": difference}
    found = _same(device, "add_half", inputs, {"both": both})["both"]
    np.testing.assert_allclose(found, np.concatenate([own, other], 1), atol=1e-6)


def test_more_tokens_and_positions_than_a_block_holds_are_refused(device: CudaDevice) -> None:
    inputs: dict[str, Array] = {
        "seeds": np.zeros(1, np.uint64),
        "given": np.zeros((1, 4097), np.uint8),
    }
    with pytest.raises(DeviceError, match="at most 4,096 tokens, got 4,097"):
        runs.launch(
            device,
            "random_order",
            inputs=inputs,
            outputs={"order": np.zeros((4097, 1), np.int32)},
        )
    with pytest.raises(DeviceError, match="at most 8,192 positions, got 8,193"):
        runs.launch(
            device,
            "select_rows",
            inputs={"similarity": np.zeros((1, 1, 8193), np.float32)},
            outputs={
                "selected": np.zeros((9, 1), np.int32),
                "rest": np.zeros((8184, 1), np.int32),
            },
            known=3,
            previous=1,
            following=2,
        )
