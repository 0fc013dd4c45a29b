"""The SIMT emulation: kernels compiled for the host do what CUDA says, or are reported.

Covered: indices, arguments, shared memory, barriers, warps, atomics, orders of threads and blocks,
and what is reported. ``simt/test_numbers.py`` has the functions of single numbers, and
``simt/test_builder.py`` what becomes of the source. The kernels are in ``simt/test_kernels``.
"""

from __future__ import annotations

import shutil
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest

SIMT = Path(__file__).parent / "simt"
sys.path.append(str(SIMT))
if TYPE_CHECKING:
    from tests.emulated_cuda.simt import build_kernels as builder
    from tests.emulated_cuda.simt import kernel_library
else:
    import build_kernels as builder
    import kernel_library

Array = npt.NDArray[Any]
Library = kernel_library.KernelLibrary
FULL = 0xFFFFFFFF

pytestmark = pytest.mark.skipif(
    shutil.which("g++") is None, reason="g++ is not installed: apt-get install g++"
)


@pytest.fixture(autouse=True)
def _forward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EMULATED_CUDA_ORDER", raising=False)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    output = tmp_path_factory.mktemp("simt") / "kernels.so"
    return Library(builder.build_kernels(SIMT / "test_kernels" / "kernels.cu", output))


def _integers(seed: int, count: int) -> Array:
    return np.random.default_rng(seed).integers(-1000, 1000, count, dtype=np.int32)


# ---- indices and arguments -----------------------------------------------------------------------


@pytest.mark.parametrize("order", ["forward", "reverse", "shuffled", "shuffled:12"])
def test_indices(library: Library, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMULATED_CUDA_ORDER", order)
    grid, block = (2, 3, 4), (5, 3, 7)
    out = np.full((24 * 105, 6), -1, np.int32)
    library.launch("write_indices", grid, block, out)
    np.testing.assert_array_equal(out, list(np.ndindex(*grid[::-1], *block[::-1])))


def test_arguments_are_packed_like_a_cubins(library: Library) -> None:
    kernel = library.kernel("take_mixed")
    assert kernel.name == b"take_mixed"
    assert kernel.argument_count == 8
    assert kernel.offsets[:8] == [0, 8, 16, 24, 32, 40, 48, 56]
    assert kernel.sizes[:8] == [8, 1, 8, 4, 8, 4, 8, 2]
    assert kernel.argument_bytes == 58


def test_mixed_arguments(library: Library) -> None:
    out = np.zeros(7)
    values = np.array([1, 2.5], np.float32)
    mixed = (np.uint8(200), np.float64(1 / 3), -7, values, 0.1, np.uint64(1 << 50), np.int16(-3))
    library.launch("take_mixed", (1,), (1,), out, *mixed)
    np.testing.assert_array_equal(out, [200, 1 / 3, -7, 2.5, np.float32(0.1), 1 << 50, -3])


def test_structures_are_aligned(library: Library) -> None:
    out = np.zeros(1)
    pair, four = struct.pack("f4xd", 2.0, 3.0), struct.pack("4f", 4.0, 0, 0, 5.0)
    assert library.kernel("take_structure").offsets[:4] == [0, 8, 32, 48]
    library.launch("take_structure", (1,), (1,), 1, pair, four, out)
    assert out[0] == 15


def test_no_arguments_and_global_variables(library: Library) -> None:
    calls = np.zeros(1, np.int32)
    assert library.kernel("count_call").argument_bytes == 0
    library.launch("count_call", (3,), (2,))
    library.launch("read_calls", (1,), (1,), calls)
    assert calls[0] == 6


# ---- shared memory -------------------------------------------------------------------------------


def test_static_shared_memory(library: Library) -> None:
    values, out = np.arange(200, dtype=np.float32), np.zeros(200, np.float32)
    library.launch("reverse_static", (1,), (200,), values, out)
    np.testing.assert_array_equal(out, values[::-1])
    assert library.kernel("reverse_static").static_shared_bytes >= 256 * 4


def test_dynamic_shared_memory(library: Library) -> None:
    wide, narrow = np.random.default_rng(0).random(100), _integers(1, 100)
    wide_out, narrow_out = np.zeros_like(wide), np.zeros_like(narrow)
    arrays = (wide, narrow, wide_out, narrow_out)
    library.launch("reverse_dynamic", (1,), (100,), *arrays, dynamic_shared_bytes=1200)
    np.testing.assert_array_equal(wide_out, wide[::-1])
    np.testing.assert_array_equal(narrow_out, narrow[::-1])


def test_uninitialised_shared_memory_is_poison(library: Library) -> None:
    out, whole = np.zeros((3, 2), np.float32), np.zeros(3, np.int32)
    library.launch("read_uninitialised", (3,), (1,), out, whole, dynamic_shared_bytes=16)
    assert np.isnan(out).all()
    np.testing.assert_array_equal(whole, [-1, -1, -1])


def test_shared_memory_of_templates_and_inline_functions(library: Library) -> None:
    values, numbers = np.linspace(-2, 3, 64, dtype=np.float32), _integers(2, 64)
    out = np.zeros(4, np.float32)
    library.launch("largest_of_both", (1,), (64,), values, numbers, out)
    np.testing.assert_array_equal(out, [3, numbers.max(), 64, 0])


# ---- barriers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("threads", "count"), [(40, 40), (256, 200), (1024, 1), (1000, 999)])
def test_threads_may_exit_before_a_barrier(library: Library, threads: int, count: int) -> None:
    values = _integers(3, 5 * threads)
    sums = np.zeros(5, np.int32)
    library.launch("sum_without_the_last", (5,), (threads,), values, sums, count)
    np.testing.assert_array_equal(sums, values.reshape(5, threads)[:, :count].sum(axis=1))


def test_exiting_completes_a_barrier(library: Library) -> None:
    counts = np.zeros(50, np.int32)
    library.launch("leave_one_by_one", (1,), (50,), counts)
    np.testing.assert_array_equal(counts[:49], np.arange(49, 0, -1))


@pytest.mark.parametrize("votes", [np.zeros(70), np.ones(70), np.arange(70) % 3, np.arange(70)])
def test_votes_of_a_block(library: Library, votes: Array) -> None:
    out = np.zeros(3, np.int32)
    library.launch("vote_in_block", (1,), (70,), votes.astype(np.int32), out)
    np.testing.assert_array_equal(out, [np.count_nonzero(votes), votes.all(), votes.any()])


# ---- warps ---------------------------------------------------------------------------------------


def _shuffled(values: Array, operand: int, width: int) -> Array:
    """What the four shuffles return, from the text of the CUDA programming guide."""
    lane = np.arange(values.size)
    first, place = lane // width * width, lane % width
    up = np.where(place >= operand, lane - operand, lane)
    down = np.where(place + operand < width, lane + operand, lane)
    other = lane ^ operand
    xor = np.where(other < first + width, other, lane)
    return np.take(values, np.stack([first + operand % width, up, down, xor]))


@pytest.mark.parametrize("width", [1, 2, 4, 8, 16, 32])
def test_shuffles(library: Library, width: int) -> None:
    values = _integers(4, 64)
    for operand in range(32):
        out = np.zeros((4, 64), np.int32)
        library.launch("shuffle_integers", (1,), (64,), values, out, operand, width)
        np.testing.assert_array_equal(out, _shuffled(values, operand, width))


def test_shuffles_of_doubles_from_lanes_of_choice(library: Library) -> None:
    rng = np.random.default_rng(5)
    values, lanes, out = rng.random(96), rng.integers(0, 32, 96, dtype=np.int32), np.zeros(96)
    library.launch("shuffle_from_own_choice", (1,), (96,), values, lanes, out)
    np.testing.assert_array_equal(out, values[np.arange(96) // 32 * 32 + lanes])


def test_votes_of_warps(library: Library) -> None:
    votes = np.zeros((4, 32), np.int32)
    votes[1], votes[2, 7], votes[3, ::3] = 1, -5, 2
    out = np.zeros((3, 4, 32), np.uint32)
    library.launch("vote_in_warp", (1,), (128,), votes, out)
    ballots = ((votes != 0) << np.arange(32, dtype=np.int64)).sum(axis=1)
    expected = [ballots, votes.any(axis=1), votes.all(axis=1)]
    np.testing.assert_array_equal(out, np.repeat(np.array(expected)[:, :, None], 32, axis=2))


def test_disjoint_masks_of_one_warp(library: Library) -> None:
    out = np.zeros((2, 32), np.int32)
    library.launch("work_in_halves", (1,), (64,), out)
    pairs = np.arange(16, 32) // 2 * 4 + 1
    np.testing.assert_array_equal(out, [np.concatenate([pairs, [120] * 16])] * 2)


def test_partial_warps(library: Library) -> None:
    values, out = _integers(6, 40), np.zeros(40, np.int32)
    library.launch("sum_of_partial_warp", (1,), (40,), values, out)
    np.testing.assert_array_equal(out, [values[:32].sum()] * 32 + [values[32:].sum()] * 8)


def test_exited_lanes_are_not_waited_for(library: Library) -> None:
    out = np.zeros(40, np.uint32)
    library.launch("ballot_without_lane_0", (1,), (40,), out)
    np.testing.assert_array_equal(out, [0] + [FULL - 1] * 31 + [0] + [0xFE] * 7)


# ---- atomics -------------------------------------------------------------------------------------


def test_atomics_of_32_bits(library: Library) -> None:
    numbers = np.array([0, 0, -(1 << 31), 1 << 30, 0, 0], np.int32)
    bits = np.array([0, FULL, 0, 0, 0], np.uint32)
    library.launch("update_integers", (2,), (50,), numbers, bits)
    np.testing.assert_array_equal(numbers, [4950, -4950, 49, -49, 7, 100])
    np.testing.assert_array_equal(bits, [FULL, 0xFFFF0000, 0xFFFFFFF0, 0x80000063, 0])


def test_atomics_of_other_types(library: Library) -> None:
    wide = np.array([0, 0, (1 << 64) - 1], np.uint64)
    single, twice = np.zeros(1, np.float32), np.zeros(1)
    library.launch("update_wide", (3,), (10,), wide, single, twice)
    np.testing.assert_array_equal(wide, np.array([30 << 40, 29 << 33, 3 << 33], np.uint64))
    assert (single[0], twice[0]) == (15, 7.5)


# ---- orders --------------------------------------------------------------------------------------


def _in_order(order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMULATED_CUDA_ORDER", order)


@pytest.mark.parametrize("order", ["forward", "reverse", "shuffled", "shuffled:3"])
def test_a_correct_kernel_does_not_depend_on_the_order(
    library: Library, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _in_order(order, monkeypatch)
    values, sums = _integers(12, 4 * 256), np.zeros(4, np.int32)
    library.launch("sum_of_block", (4,), (256,), values, sums)
    np.testing.assert_array_equal(sums, values.reshape(4, 256).sum(axis=1))


def test_orders_expose_a_missing_barrier(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    correct = (np.arange(64) + 1) % 64
    poisoned = {"forward": 63, "reverse": 1}
    for order, count in poisoned.items():
        _in_order(order, monkeypatch)
        out = np.zeros(64, np.int32)
        library.launch("read_neighbour_too_early", (1,), (64,), out)
        assert np.count_nonzero(out != correct) == count
        assert (out[out != correct] == -1).all()


@pytest.mark.parametrize(("order", "thread", "block"), [("forward", 39, 4), ("reverse", 0, 0)])
def test_the_last_writer_wins(
    library: Library, order: str, thread: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _in_order(order, monkeypatch)
    threads, last_block = np.zeros(5, np.int32), np.zeros(1, np.int32)
    library.launch("last_writer", (5,), (40,), threads, last_block)
    np.testing.assert_array_equal(threads, [thread] * 5)
    assert last_block[0] == block


def test_shuffled_orders_repeat_with_their_seed(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {}
    for order in ("shuffled:1", "shuffled:2", "shuffled", "forward"):
        _in_order(order, monkeypatch)
        seen[order] = np.zeros(300, np.int32)
        library.launch("old_values", (3,), (100,), np.zeros(1, np.int32), seen[order])
        np.testing.assert_array_equal(np.sort(seen[order]), np.arange(300))
    np.testing.assert_array_equal(seen["shuffled"], seen["shuffled:1"])
    assert (seen["shuffled:1"] != seen["shuffled:2"]).any()
    np.testing.assert_array_equal(seen["forward"], np.arange(300))


# ---- reports -------------------------------------------------------------------------------------

_REPORTS = [
    ("diverge", 64, (), "deadlock: of 64 threads 32 have exited"),
    ("diverge", 64, (), "10 wait at __syncthreads, the first is (0, 0, 0)"),
    ("diverge", 64, (), "22 wait at __syncwarp with mask 0xffffffff, the first is (10, 0, 0)"),
    ("mix_warp_operations", 32, (), "lane 1 is at __any_sync while others"),
    ("shuffle_with_mask", 32, (np.uint32(0x7FFFFFFF), 0), "lane 31 calls __shfl_sync with mask"),
    ("shuffle_with_mask", 16, (np.uint32(FULL), 20), "that lane has exited or never was"),
    ("shuffle_after_exit", 32, (), "lane 0 reads lane 5 by __shfl_sync with mask 0xffffffff"),
    ("shuffle_with_width", 32, (12,), "__shfl_sync with width 12"),
]


@pytest.mark.parametrize(("kernel", "threads", "arguments", "expected"), _REPORTS)
def test_misuse_is_reported(
    library: Library,
    kernel: str,
    threads: int,
    arguments: tuple[Any, ...],
    expected: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(kernel_library.LaunchError):
        library.launch(kernel, (2,), (threads,), np.zeros(1024, np.int32), *arguments)
    message = capfd.readouterr().err
    assert message.startswith(f"emulated CUDA: kernel {kernel}, block (0, 0, 0): ")
    assert expected in message


def test_mixed_barriers_are_reported(library: Library, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(kernel_library.LaunchError):
        library.launch("mix_barriers", (1,), (64,))
    expected = "thread (32, 0, 0) is at __syncthreads_count while others are at __syncthreads"
    assert expected in capfd.readouterr().err


def test_writes_past_dynamic_shared_memory_are_reported(
    library: Library, capfd: pytest.CaptureFixture[str]
) -> None:
    library.launch("write_dynamic", (2,), (32,), 100, dynamic_shared_bytes=400)
    with pytest.raises(kernel_library.LaunchError):
        library.launch("write_dynamic", (2,), (32,), 101, dynamic_shared_bytes=400)
    assert "past the end of its dynamic shared memory" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("grid", "block", "dynamic_bytes", "order", "expected"),
    [
        ((1,), (32, 33), 0, "", "1056 threads in a block"),
        ((1, 0), (32,), 0, "", "0 blocks in a grid"),
        ((1,), (32,), 300_000, "", "300000 bytes of dynamic shared memory"),
        ((1,), (32,), 0, "sideways", "EMULATED_CUDA_ORDER=sideways; use forward, reverse"),
        ((1,), (32,), 0, "shuffled:x", "EMULATED_CUDA_ORDER=shuffled:x; use forward, reverse"),
    ],
)
def test_impossible_launches_are_reported(
    library: Library,
    grid: tuple[int, ...],
    block: tuple[int, ...],
    dynamic_bytes: int,
    order: str,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    _in_order(order, monkeypatch)
    with pytest.raises(kernel_library.LaunchError):
        library.launch("write_dynamic", grid, block, 0, dynamic_shared_bytes=dynamic_bytes)
    assert expected in capfd.readouterr().err


def test_the_library_works_on_after_a_failed_launch(library: Library) -> None:
    with pytest.raises(kernel_library.LaunchError):
        library.launch("diverge", (1,), (64,), np.zeros(64, np.int32))
    test_a_block_may_meet_often(library)


def test_a_block_may_meet_often(library: Library) -> None:
    out = np.zeros((3, 300), np.int32)
    library.launch("meet_often", (3,), (300,), out, 25)
    assert (out == 25).all()
