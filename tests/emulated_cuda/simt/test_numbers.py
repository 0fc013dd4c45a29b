"""The SIMT emulation's functions of single numbers, and its half precision.

Covered: bits, saturating conversions, minimum and maximum with NaN, arithmetic without fused
multiply-add, every half to float, rounding of floats and doubles to half, half arithmetic.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest

SIMT = Path(__file__).parent
sys.path.append(str(SIMT))
if TYPE_CHECKING:
    from tests.emulated_cuda.simt import build_kernels as builder
    from tests.emulated_cuda.simt import kernel_library
else:
    import build_kernels as builder
    import kernel_library

Array = npt.NDArray[Any]
Library = kernel_library.KernelLibrary

pytestmark = pytest.mark.skipif(
    shutil.which("g++") is None, reason="g++ is not installed: apt-get install g++"
)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    output = tmp_path_factory.mktemp("simt") / "numbers.so"
    return Library(builder.build_kernels(SIMT / "test_kernels" / "number_kernels.cu", output))


def _per_thread(values: Array) -> tuple[tuple[int], tuple[int]]:
    """A grid and blocks with a thread for each value."""
    return (-(-values.size // 256),), (256,)


# ---- numbers -------------------------------------------------------------------------------------


def test_functions_of_bits(library: Library) -> None:
    values = np.random.default_rng(7).integers(0, 1 << 32, 500, dtype=np.uint32)
    values[:4] = 0, 1, 1 << 31, 0xFFFFFFFF
    out = np.zeros((7, 500), np.uint32)
    library.launch("count_bits", *_per_thread(values), values, out, values.size)
    texts = [f"{int(value):032b}" for value in values]
    wide = values.astype(np.uint64)
    expected = [
        [text.count("1") for text in texts],
        [32 - text.rindex("1") if "1" in text else 0 for text in texts],
        [(text + "1").index("1") for text in texts],
        [int(text[::-1], 2) for text in texts],
        wide * np.uint64(0x9E3779B9) >> np.uint64(32),
        values,
        [0x12345678 << 7 & 0xFFFFFFFF | int(value) >> 25 for value in values],
    ]
    np.testing.assert_array_equal(out, np.array(expected, np.uint32))


def test_conversions_to_integers_saturate(library: Library) -> None:
    values = np.random.default_rng(8).normal(0, 1e9, 500).astype(np.float32)
    values[:9] = 0.5, 1.5, -2.5, -0.7, 3e9, -3e9, np.inf, -np.inf, np.nan
    out = np.zeros((6, 500), np.int64)
    library.launch("to_integers", *_per_thread(values), values, out, values.size)
    wide = np.nan_to_num(values.astype(np.float64), nan=0, posinf=1e30, neginf=-1e30)
    limits = -(2.0**31), 2.0**31 - 1
    expected = [
        *(np.clip(round_(wide), *limits) for round_ in (np.rint, np.trunc, np.floor, np.ceil)),
        np.clip(np.rint(wide), 0, 2.0**32 - 1),
        np.clip(np.rint(wide), *limits),
    ]
    np.testing.assert_array_equal(out, expected)


def test_limits_ignore_nan(library: Library) -> None:
    values = np.array([np.nan, -1, 0.25, 0.5, 2, np.inf, -np.inf], np.float32)
    out = np.zeros((4, 7), np.float32)
    library.launch("limit", (1,), (7,), values, out, 7)
    inside = np.clip(np.nan_to_num(values, nan=0), 0, 1)
    expected = [np.fmin(values, 0.5), np.fmax(values, 0.5), inside, np.ones(7)]
    np.testing.assert_array_equal(out, np.array(expected, np.float32))


def test_arithmetic_is_not_contracted(library: Library) -> None:
    values = np.random.default_rng(9).uniform(0.5, 1.5, 1000).astype(np.float32)
    out = np.zeros((5, 1000), np.float32)
    library.launch("multiply_and_add", *_per_thread(values), values, out, values.size)
    fused = (values.astype(np.float64) ** 2 - 1).astype(np.float32)
    one = np.float32(1)
    np.testing.assert_array_equal(out[:4], [values**2 - one] * 2 + [fused, one / values])
    assert (out[0] != fused).any()
    functions = np.exp(values) + np.log(values) + one / np.sqrt(values)
    np.testing.assert_allclose(out[4], functions, rtol=1e-6)


# ---- half precision ------------------------------------------------------------------------------


def _all_halves() -> Array:
    return np.arange(1 << 16, dtype=np.uint16).view(np.float16)


def _assert_same_halves(got: Array, expected: Array) -> None:
    bits = np.where(np.isnan(expected), np.uint16(0x7FFF), expected.view(np.uint16))
    np.testing.assert_array_equal(got.view(np.uint16), bits)


def test_every_half_to_float(library: Library) -> None:
    halves, out = _all_halves(), np.zeros(1 << 16, np.float32)
    library.launch("to_float", *_per_thread(halves), halves, out, halves.size)
    expected = halves.astype(np.float32).view(np.uint32)
    bits = np.where(np.isnan(halves), np.uint32(0x7FFFFFFF), expected)
    np.testing.assert_array_equal(out.view(np.uint32), bits)


def _floats_around_halves() -> Array:
    """Every half, every tie between two, the floats beside those, and any bits at all."""
    halves = np.sort(_all_halves()[np.isfinite(_all_halves())]).astype(np.float32)
    ties = np.append((halves[1:] + halves[:-1]) / 2, np.array([65520, -65520], np.float32))
    exact = np.concatenate([halves, ties])
    beside = [np.nextafter(exact, np.float32(limit)) for limit in (-np.inf, np.inf)]
    bits = np.random.default_rng(10).integers(0, 1 << 32, 100_000, dtype=np.uint32)
    return np.concatenate([exact, *beside, bits.view(np.float32)])


@pytest.mark.parametrize(("kernel", "dtype"), [("to_half", "f4"), ("double_to_half", "f8")])
@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
def test_to_half_rounds_ties_to_even(library: Library, kernel: str, dtype: str) -> None:
    values = _floats_around_halves().astype(dtype)
    out = np.zeros(values.size, np.float16)
    library.launch(kernel, *_per_thread(values), values, out, values.size)
    _assert_same_halves(out, values.astype(np.float16))


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value", "ignore:divide by zero")
def test_half_arithmetic_rounds_once(library: Library) -> None:
    rng = np.random.default_rng(11)
    left, right = (rng.permutation(_all_halves()) for _ in range(2))
    out = np.zeros((5, left.size), np.float16)
    library.launch("half_arithmetic", *_per_thread(left), left, right, out, left.size)
    a, b = left.astype(np.float64), right.astype(np.float64)
    expected = np.stack([a + b, a - b, a * b, a / b, a < b]).astype(np.float16)
    _assert_same_halves(out, expected)


def test_uninitialised_shared_halves_are_nan(library: Library) -> None:
    for _ in range(2):
        out = np.zeros(1, np.float16)
        library.launch("read_uninitialised_halves", (2,), (1,), out)
        assert np.isnan(out).all()


def test_pairs_and_shuffles_of_halves(library: Library) -> None:
    pairs = np.arange(64, dtype=np.float16).reshape(32, 2)
    swapped, wide = np.zeros_like(pairs), np.zeros((32, 2), np.float32)
    library.launch("swap_pairs", (1,), (32,), pairs, swapped, wide)
    np.testing.assert_array_equal(wide, pairs)
    np.testing.assert_array_equal(swapped, pairs[:, ::-1])
    out = np.zeros(32, np.float16)
    library.launch("shuffle_halves", (1,), (32,), pairs.reshape(-1)[:32].copy(), out)
    np.testing.assert_array_equal(out, np.arange(32) ^ 1)
