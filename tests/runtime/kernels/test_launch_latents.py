"""How the kernels of continuous tokens are launched: sizes, grids and bytes against arithmetic.

Covered: sizes that are passed from shapes, grids that cover every number, token, position or row of
one half and two, the bytes that must move counted by hand, and what the CUDA kernels do not take.
Entries and arguments are in ``test_launch.py``.
"""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.runtime.kernels import shapes
from tests.runtime.kernels.launches import KERNELS, by_name, bytes_of, covers

from fewstep.runtime.errors import DeviceError
from fewstep.runtime.kernels.diffusion_step import COEFFICIENTS
from fewstep.runtime.kernels.launch import (
    MAX_POSITIONS,
    MAX_TOKENS,
    Argument,
    Launch,
    launch_of,
)

_BATCH, _HALVES = st.integers(1, 9), st.integers(1, 2)
_MAX_ROWS = 65_535


def _passed(launch: Launch, *names: str) -> tuple[int | float, ...]:
    packed = by_name(launch)
    return tuple(packed[name] for name in names)


# --- sizes


def test_sizes_of_tokens_are_passed_from_the_shapes() -> None:
    launch = launch_of("random_order", shapes.order(batch=3, halves=2, count=77))
    assert _passed(launch, "batch", "count", "rows") == (3, 77, 6)
    names = "batch", "count", "channels", "rows", "numbers"
    launch = launch_of("gather_tokens", shapes.gathered(3, 2, 77, decided=5, channels=7))
    assert _passed(launch, *names) == (3, 77, 7, 6, 5 * 6 * 7)
    launch = launch_of("scatter_tokens", shapes.scattered(3, 2, 77, channels=7))
    assert _passed(launch, *names) == (3, 77, 7, 6, 3 * 77 * 7)


def test_sizes_of_a_diffusion_are_passed_from_the_shapes() -> None:
    names = "batch", "rows", "count", "channels"
    launch = launch_of("start_diffusion", shapes.start(3, 2, decided=5, channels=7))
    assert _passed(launch, *names, "first") == (3, 6, 5, 7, 40)
    launch = launch_of("diffusion_step", shapes.diffusion(3, 2, decided=5, channels=7))
    assert _passed(launch, *names) == (3, 6, 5, 7)
    assert _passed(launch_of("advance", shapes.next_step(33)), "count") == (33,)


@pytest.mark.parametrize("more", [0, 5])
def test_groups_of_rows_are_as_far_apart_as_they_are_long(more: int) -> None:
    arguments = {"groups": 4, "count": 20, "some": 6, "rows": 3, "width": 8, "more": more}
    whole, some = 20 * 3 * 8 + more, 6 * 3 * 8 + 2 * more
    names = "rows", "width", "source_stride", "target_stride"
    launch = launch_of("gather_rows", shapes.cached(**arguments))
    assert _passed(launch, *names) == (3, 8, whole, some)
    launch = launch_of("scatter_rows", shapes.put_back(**arguments))
    assert _passed(launch, *names) == (3, 8, some, whole)


def test_sizes_of_a_selection_are_passed_from_the_shapes() -> None:
    launch = launch_of("similarity", shapes.alike(batch=3, halves=2, heads=6, own=20))
    assert _passed(launch, "heads", "own", "batch") == (6, 20, 3)
    launch = launch_of("select_rows", shapes.selection(batch=3, halves=2, count=99, most=40))
    names = "batch", "count", "most", "known", "previous", "following"
    assert _passed(launch, *names) == (3, 99, 40, 100, 4, 5)


def test_sizes_of_halves_are_passed_from_the_shapes() -> None:
    launch = launch_of("add_half", shapes.halves(count=5, batch=3, width=7))
    assert _passed(launch, "half", "numbers") == (3 * 7, 5 * 3 * 7)
    assert _passed(launch_of("subtract", shapes.difference(5, 3, 7)), "numbers") == (5 * 3 * 7,)


# --- grids


@given(batch=_BATCH, halves=_HALVES, count=st.integers(1, MAX_TOKENS))
def test_random_order_has_a_full_block_for_every_image(batch: int, halves: int, count: int) -> None:
    launch = launch_of("random_order", shapes.order(batch, halves, count))
    assert (launch.grid, launch.block) == ((batch, 1), (256, 1, 1))


@given(
    batch=_BATCH,
    halves=_HALVES,
    count=st.integers(1, 300),
    decided=st.integers(1, 300),
    channels=st.integers(1, 70),
)
def test_tokens_and_diffusions_have_a_thread_for_every_number(
    batch: int, halves: int, count: int, decided: int, channels: int
) -> None:
    """That is written; of a step's only one half, whose thread writes both."""
    tokens, sizes = halves * batch * decided, (batch, halves, decided, channels)
    gathered = shapes.gathered(batch, halves, count, decided, channels)
    scattered = shapes.scattered(batch, halves, count, channels)
    for kernel, arguments, numbers in (
        ("gather_tokens", gathered, tokens * channels),
        ("scatter_tokens", scattered, batch * count * channels),
        ("start_diffusion", shapes.start(*sizes), tokens * channels),
        ("diffusion_step", shapes.diffusion(*sizes), batch * decided * channels),
    ):
        launch = launch_of(kernel, arguments)
        assert launch.grid[1] == 1
        covers(launch, numbers)


@given(steps=st.integers(1, 1000))
def test_advance_is_one_warp(steps: int) -> None:
    launch = launch_of("advance", shapes.next_step(steps))
    assert (launch.grid, launch.block) == ((1, 1), (32, 1, 1))


@given(groups=st.integers(1, 40), rows=st.integers(1, 16), some=st.integers(1, 300))
@pytest.mark.parametrize("kernel", ["gather_rows", "scatter_rows"])
def test_rows_have_a_block_for_every_position_of_every_group(
    kernel: str, groups: int, rows: int, some: int
) -> None:
    arguments = _moved(kernel, groups=groups, rows=rows, some=some)
    assert launch_of(kernel, arguments).grid == (some * rows, groups)


@given(batch=_BATCH, halves=_HALVES, count=st.integers(1, 5000))
def test_similarity_has_a_warp_for_every_position_of_every_row(
    batch: int, halves: int, count: int
) -> None:
    launch = launch_of("similarity", shapes.alike(batch, halves, count))
    assert (launch.grid, launch.block) == ((count, halves * batch), (32, 1, 1))


@given(batch=_BATCH, halves=_HALVES, count=st.integers(9, MAX_POSITIONS))
def test_select_rows_has_a_full_block_for_every_row(batch: int, halves: int, count: int) -> None:
    launch = launch_of("select_rows", shapes.selection(batch, halves, count, most=9))
    assert (launch.grid, launch.block) == ((halves * batch, 1), (256, 1, 1))


@given(count=st.integers(1, 300), batch=_BATCH, width=st.integers(1, 800))
def test_halves_have_a_thread_for_every_number_of_one(count: int, batch: int, width: int) -> None:
    for kernel, arguments in (
        ("subtract", shapes.difference(count, batch, width)),
        ("add_half", shapes.halves(count, batch, width)),
    ):
        launch = launch_of(kernel, arguments)
        assert launch.grid[1] == 1
        covers(launch, count * batch * width)


def _moved(kernel: str, **sizes: int) -> dict[str, Argument]:
    return (shapes.cached if kernel == "gather_rows" else shapes.put_back)(**sizes)


# --- bytes that must move


@pytest.mark.parametrize("halves", [1, 2])
def test_bytes_of_the_order(halves: int) -> None:
    """Read: a seed of 8, and a flag for every token. Written: a position for each and half."""
    expected = 2 * (8 + 256 + halves * 256 * 4)
    assert bytes_of("random_order", shapes.order(2, halves, 256)) == expected


@pytest.mark.parametrize("halves", [1, 2])
def test_bytes_of_the_tokens_in_order(halves: int) -> None:
    """Every number is read and written, and a position read for every token."""
    gathered = shapes.gathered(2, halves, 256, decided=5, channels=16)
    assert bytes_of("gather_tokens", gathered) == halves * 2 * 5 * (16 * (4 + 4) + 4)


@pytest.mark.parametrize("halves", [1, 2])
def test_bytes_of_the_tokens_in_their_places(halves: int) -> None:
    """Those of one half, whatever there is."""
    scattered = shapes.scattered(2, halves, 256, 16)
    assert bytes_of("scatter_tokens", scattered) == 2 * 256 * (16 * (4 + 4) + 4)


@pytest.mark.parametrize("halves", [1, 2])
def test_bytes_of_the_noise(halves: int) -> None:
    """Written: every number. Read: a position for every token."""
    assert bytes_of("start_diffusion", shapes.start(2, halves, 5, 16)) == halves * 2 * 5 * (
        16 * 4 + 4
    )


@pytest.mark.parametrize(("halves", "noises"), [(1, 1), (2, 2)])
def test_bytes_of_a_step(halves: int, noises: int) -> None:
    """Read: x and a variance of one half, noise of each, a position for every token. Written: x of
    each."""
    number = 4 + 4 + 4 * noises + 4 * halves
    expected = 2 * 5 * (16 * number + 4)
    assert bytes_of("diffusion_step", shapes.diffusion(2, halves, 5, 16)) == expected


def test_bytes_of_the_next_step() -> None:
    """A counter and a timestep are read and written."""
    assert bytes_of("advance", shapes.next_step()) == 2 * (4 + 4)


@pytest.mark.parametrize("kernel", ["gather_rows", "scatter_rows"])
@pytest.mark.parametrize("more", [0, 32])
def test_bytes_of_the_rows(kernel: str, more: int) -> None:
    """Every number of a row that moves is read and written; a place is read for each once."""
    arguments = _moved(kernel, groups=3, count=320, some=48, rows=2, width=768, more=more)
    assert bytes_of(kernel, arguments) == 48 * 2 * (3 * 768 * (4 + 4) + 4)


@pytest.mark.parametrize("halves", [1, 2])
def test_bytes_of_the_selection(halves: int) -> None:
    """Both values of a position are read and a number is written, then that read and a position
    written."""
    rows = halves * 2
    assert bytes_of("similarity", shapes.alike(2, halves, 320, 12, 64)) == rows * 320 * (
        12 * 64 * (4 + 4) + 4
    )
    assert bytes_of("select_rows", shapes.selection(2, halves, 320)) == rows * 320 * (4 + 4)


def test_bytes_of_the_halves() -> None:
    """Two numbers are read, and one is written or two."""
    numbers = math.prod((36, 2, 768))
    assert bytes_of("subtract", shapes.difference(36, 2, 768)) == numbers * (4 + 4 + 4)
    assert bytes_of("add_half", shapes.halves(36, 2, 768)) == numbers * (4 + 4 + 4 + 4)


# --- what the kernels do not take


def test_limits_are_those_of_the_sources() -> None:
    sources = {
        each: (KERNELS / f"{each}.cu").read_text() for each in ("random_order", "select_rows")
    }
    assert f"kMostOrdered = {MAX_TOKENS};" in sources["random_order"]
    assert f"kMostPositions = {MAX_POSITIONS};" in sources["select_rows"]
    step = (KERNELS / "diffusion_step.cu").read_text()
    assert f"kCoefficients = {COEFFICIENTS};" in step


def test_the_largest_sizes_are_taken() -> None:
    assert launch_of("random_order", shapes.order(count=MAX_TOKENS)).grid == (2, 1)
    assert launch_of("select_rows", shapes.selection(count=MAX_POSITIONS)).grid == (4, 1)


def test_too_many_tokens_and_positions_are_refused() -> None:
    with pytest.raises(DeviceError, match="at most 4,096 tokens, got 4,097"):
        launch_of("random_order", shapes.order(count=MAX_TOKENS + 1))
    with pytest.raises(DeviceError, match="at most 8,192 positions, got 8,193"):
        launch_of("select_rows", shapes.selection(count=MAX_POSITIONS + 1))


@pytest.mark.parametrize("kernel", ["gather_rows", "scatter_rows"])
def test_rows_between_other_numbers_of_groups_are_refused(kernel: str) -> None:
    arguments = _moved(kernel, groups=3) | {"target": shapes.Memory(0, (1_000, 9))}
    with pytest.raises(DeviceError, match=f"{kernel} .* as many groups, got 3 and 1,000"):
        launch_of(kernel, arguments)


@pytest.mark.parametrize(
    ("kernel", "arguments"),
    [
        ("gather_rows", shapes.cached(groups=_MAX_ROWS + 1)),
        ("scatter_rows", shapes.put_back(groups=_MAX_ROWS + 1)),
        ("similarity", shapes.alike(batch=_MAX_ROWS + 1, halves=1)),
    ],
)
def test_more_rows_than_a_grid_has_are_refused(kernel: str, arguments: dict[str, Argument]) -> None:
    with pytest.raises(DeviceError, match=f"{kernel} takes at most 65,535 rows, got 65,536"):
        launch_of(kernel, arguments)
