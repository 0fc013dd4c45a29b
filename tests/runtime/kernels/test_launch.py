"""How kernels are launched: arguments against the CUDA sources, grids and bytes against arithmetic.

Covered: every kernel's entry by dtype, its arguments in the order and of the types that the source
declares, grids that cover every element and blocks within the source's bounds, the bytes that must
move counted by hand, and sizes and types that the CUDA kernels do not take. Grids, bytes and sizes
of the kernels of continuous tokens are in ``test_launch_latents.py``.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.runtime.kernels import shapes
from tests.runtime.kernels.launches import KERNELS, SOURCES, by_name, bytes_of, covers

from fewstep.runtime.errors import DeviceError
from fewstep.runtime.kernels.launch import MAX_CODES, MAX_TOKENS, Argument, launch_of

_FLOATS = st.sampled_from(["float32", "float16"])


_EVERY: dict[str, tuple[str, dict[str, Argument]]] = {
    "add_half": ("add_half", shapes.halves()),
    "advance": ("advance", shapes.next_step()),
    "choose_tokens": ("choose_tokens", shapes.chosen()),
    "copy_rows": ("copy_rows", shapes.rows()),
    "diffusion_step": ("diffusion_step", shapes.diffusion()),
    "gather_rows": ("gather_rows", shapes.cached()),
    "gather_tokens": ("gather_tokens", shapes.gathered()),
    "initial_tokens": ("initial_tokens", shapes.initial()),
    "policy_parameters": ("policy_parameters", shapes.policy()),
    "random_order": ("random_order", shapes.order()),
    "remask": ("remask", shapes.remask()),
    "sample_tokens_float": ("sample_tokens", shapes.sample()),
    "sample_tokens_half": ("sample_tokens", shapes.sample(dtype="float16")),
    "sample_top_k_top_p_float": ("sample_top_k_top_p", shapes.filtered()),
    "sample_top_k_top_p_half": ("sample_top_k_top_p", shapes.filtered(dtype="float16")),
    "sampling_parameters": ("sampling_parameters", shapes.of_a_scale()),
    "scatter_rows": ("scatter_rows", shapes.put_back()),
    "scatter_tokens": ("scatter_tokens", shapes.scattered()),
    "select_rows": ("select_rows", shapes.selection()),
    "similarity": ("similarity", shapes.alike()),
    "smooth_actions": ("smooth_actions", shapes.actions()),
    "start_diffusion": ("start_diffusion", shapes.start()),
    "subtract": ("subtract", shapes.difference()),
    "to_pixels_float": ("to_pixels", shapes.pixels()),
    "to_pixels_half": ("to_pixels", shapes.pixels(dtype="float16")),
}


# --- arguments


def test_every_kernel_of_the_sources_is_launched() -> None:
    assert set(SOURCES) == set(_EVERY)


@pytest.mark.parametrize("entry", _EVERY)
def test_entry_signature_and_number_of_arguments_are_those_of_the_source(entry: str) -> None:
    launch = launch_of(*_EVERY[entry])
    assert launch.entry == entry
    assert launch.signature == SOURCES[entry].letters
    assert len(launch.arguments) == len(launch.signature)


@pytest.mark.parametrize("entry", _EVERY)
def test_every_argument_of_the_caller_arrives_under_its_name(entry: str) -> None:
    kernel, arguments = _EVERY[entry]
    packed = by_name(launch_of(kernel, arguments))
    renamed = {"pixels": "out"} if kernel == "to_pixels" else {}
    for name, value in arguments.items():
        expected = value.pointer if isinstance(value, shapes.Memory) else value
        assert packed[renamed.get(name, name)] == expected


@pytest.mark.parametrize("entry", _EVERY)
def test_integers_are_python_integers_that_fit_the_declared_type(entry: str) -> None:
    launch = launch_of(*_EVERY[entry])
    for letter, value in zip(launch.signature, launch.arguments, strict=True):
        assert isinstance(value, float if letter == "d" else int)
        assert letter == "d" or 0 <= value < (2**31 if letter == "i" else 2**64)


def test_sizes_are_passed_from_the_shapes() -> None:
    initial = by_name(launch_of("initial_tokens", shapes.initial(batch=2, rows=4, count=300)))
    assert (initial["batch"], initial["count"]) == (2, 300)
    remask = by_name(launch_of("remask", shapes.remask(batch=2, rows=4, count=256)))
    assert (remask["count"], remask["rows"]) == (256, 4)
    assert by_name(launch_of("policy_parameters", shapes.policy(batch=5)))["batch"] == 5
    assert by_name(launch_of("sample_tokens", shapes.sample(codes=777)))["codes"] == 777
    assert by_name(launch_of("sample_top_k_top_p", shapes.filtered(codes=777)))["codes"] == 777
    assert by_name(launch_of("sampling_parameters", shapes.of_a_scale(batch=5)))["batch"] == 5
    assert by_name(launch_of("to_pixels", shapes.pixels(height=20, width=30)))["pixels"] == 600
    copied = by_name(launch_of("copy_rows", shapes.rows(period=3, rows=7)))
    assert (copied["period"], copied["rows"]) == (3, 7)


@pytest.mark.parametrize(("batch", "shared", "flag"), [(3, False, 0), (3, True, 1), (1, True, 1)])
def test_one_row_of_unconditional_logits_is_shared(batch: int, shared: bool, flag: int) -> None:
    launch = launch_of("sample_tokens", shapes.sample(batch=batch, shared=shared))
    assert by_name(launch)["shared"] == flag
    launch = launch_of("sample_top_k_top_p", shapes.filtered(batch=batch, shared=shared))
    assert by_name(launch)["shared"] == flag


@pytest.mark.parametrize(
    ("width", "source", "dtype", "words", "wide"),
    [
        (128, 512, "float32", 32, 1),
        (128, 512, "float16", 16, 1),
        (127, 512, "float32", 254, 0),
        (3, 512, "float16", 3, 0),
        (128, 516, "float32", 256, 0),
    ],
)
def test_rows_are_copied_by_16_bytes_where_everything_is_aligned(
    width: int, source: int, dtype: str, words: int, wide: int
) -> None:
    arguments = shapes.rows(width=width, dtype=dtype)
    arguments["source"] = shapes.Memory(source, (2, 1, width), dtype)
    packed = by_name(launch_of("copy_rows", arguments))
    assert (packed["words"], packed["wide"]) == (words, wide)


def test_whole_numbers_are_offsets_too() -> None:
    launch = launch_of("policy_parameters", shapes.policy() | {"ratio_offset": 0})
    assert launch.signature == SOURCES["policy_parameters"].letters


# --- grids and blocks


@pytest.mark.parametrize("entry", _EVERY)
def test_block_is_whole_warps_within_the_bounds_of_the_source(entry: str) -> None:
    threads, *rest = launch_of(*_EVERY[entry]).block
    assert rest == [1, 1]
    assert threads % 32 == 0
    assert 32 <= threads <= SOURCES[entry].threads


@given(batch=st.integers(1, 9), guided=st.booleans(), count=st.integers(1, 4096))
def test_initial_tokens_has_a_thread_for_every_token(batch: int, guided: bool, count: int) -> None:
    rows = 2 * batch if guided else batch
    launch = launch_of("initial_tokens", shapes.initial(batch, rows, count))
    assert launch.grid[1] == rows
    covers(launch, count)


@given(batch=st.integers(1, 1000))
def test_policy_parameters_has_a_thread_for_every_image(batch: int) -> None:
    launch = launch_of("policy_parameters", shapes.policy(batch))
    assert launch.grid[1] == 1
    covers(launch, batch)


@given(batch=st.integers(1, 9), height=st.integers(1, 600), width=st.integers(1, 600))
def test_to_pixels_has_a_thread_for_every_pixel(batch: int, height: int, width: int) -> None:
    launch = launch_of("to_pixels", shapes.pixels(batch, height, width))
    assert launch.grid[1] == batch
    covers(launch, height * width)


@given(batch=st.integers(1, 9), count=st.integers(1, MAX_TOKENS))
def test_remask_has_a_full_block_for_every_image(batch: int, count: int) -> None:
    launch = launch_of("remask", shapes.remask(batch, 2 * batch, count))
    assert (launch.grid, launch.block) == ((batch, 1), (256, 1, 1))


@given(
    batch=st.integers(1, 9),
    count=st.integers(1, 4096),
    codes=st.integers(1, MAX_CODES),
    dtype=_FLOATS,
)
def test_sample_tokens_has_a_block_for_every_position(
    batch: int, count: int, codes: int, dtype: str
) -> None:
    """A warp for every chunk of 128 codes, up to eight of them."""
    launch = launch_of("sample_tokens", shapes.sample(batch, count, codes, dtype))
    assert launch.grid == (count, batch)
    warps = launch.block[0] // 32
    assert warps == 8 or (warps - 1) * 128 < codes <= warps * 128


@given(batch=st.integers(1, 9), count=st.integers(1, 4096), codes=st.integers(1, MAX_CODES))
def test_sample_top_k_top_p_has_a_full_block_for_every_position(
    batch: int, count: int, codes: int
) -> None:
    launch = launch_of("sample_top_k_top_p", shapes.filtered(batch, count, codes))
    assert (launch.grid, launch.block) == ((count, batch), (256, 1, 1))


@given(batch=st.integers(1, 1000))
def test_sampling_parameters_has_a_thread_for_every_image(batch: int) -> None:
    launch = launch_of("sampling_parameters", shapes.of_a_scale(batch))
    assert launch.grid[1] == 1
    covers(launch, batch)


@given(groups=st.integers(1, 60), rows=st.integers(3, 700))
def test_copy_rows_has_a_block_for_every_row_that_it_writes(groups: int, rows: int) -> None:
    assert launch_of("copy_rows", shapes.rows(groups, rows=rows)).grid == (rows - 2, groups)


# --- bytes that must move


def test_bytes_of_the_initial_tokens() -> None:
    """Read: 4 for the given token and 1 for the mask. Written: 4 per row of tokens."""
    assert bytes_of("initial_tokens", shapes.initial(batch=2, rows=2, count=256)) == 2 * 256 * (
        5 + 4
    )


def test_bytes_of_the_initial_tokens_under_guidance() -> None:
    """Twice as many rows are written, but there is no more to read."""
    assert bytes_of("initial_tokens", shapes.initial(batch=2, rows=4, count=256)) == 2 * 256 * (
        5 + 2 * 4
    )


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("float16", 2)])
def test_bytes_of_the_guided_sampling(dtype: str, size: int) -> None:
    """Two rows of logits and a token are read; a token and a confidence are written."""
    expected = 2 * 256 * (2 * 1024 * size + 4 + 4 + 4)
    assert bytes_of("sample_tokens", shapes.sample(2, 256, 1024, dtype)) == expected


def test_bytes_of_the_guided_sampling_with_shared_unconditional_logits() -> None:
    expected = (2 + 1) * 256 * 1024 * 4 + 2 * 256 * 12
    assert bytes_of("sample_tokens", shapes.sample(2, 256, 1024, shared=True)) == expected


@pytest.mark.parametrize(
    "batch",
    [2, 1],
)
def test_bytes_of_the_sampling_without_guidance(batch: int) -> None:
    """Without guidance the plan passes the conditional logits in both places."""
    arguments = shapes.sample(batch, 256, 1024)
    arguments["unconditional"] = arguments["conditional"]
    assert bytes_of("sample_tokens", arguments) == batch * 256 * (1024 * 4 + 12)


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("float16", 2)])
def test_bytes_of_the_filtered_sampling(dtype: str, size: int) -> None:
    """Logits once, a given id, a token."""
    expected = 2 * 256 * (2 * 4096 * size + 4 + 4)
    assert bytes_of("sample_top_k_top_p", shapes.filtered(2, 256, 4096, dtype)) == expected
    shared = (2 + 1) * 256 * 4096 * size + 2 * 256 * 8
    assert (
        bytes_of("sample_top_k_top_p", shapes.filtered(2, 256, 4096, dtype, shared=True)) == shared
    )
    alone = shapes.filtered(2, 256, 4096, dtype)
    alone["unconditional"] = alone["conditional"]
    assert bytes_of("sample_top_k_top_p", alone) == 2 * 256 * (4096 * size + 8)


def test_bytes_of_the_parameters_of_a_scale() -> None:
    assert bytes_of("sampling_parameters", shapes.of_a_scale(3)) == 3 * (4 * 4 + 4 * 4)


@pytest.mark.parametrize(("period", "read"), [(1, 1), (2, 2), (8, 3)])
def test_bytes_of_the_copied_rows(period: int, read: int) -> None:
    """Three rows of each group are written, and as many are read as differ."""
    assert bytes_of("copy_rows", shapes.rows(2, period, 5, 128, "float16")) == 2 * (read + 3) * 256


@pytest.mark.parametrize(("rows", "written"), [(2, 1), (4, 2)])
def test_bytes_of_the_masking(rows: int, written: int) -> None:
    """Read: a confidence, a sampled token, and whether it was masked at the start. Written: a token
    per row."""
    arguments = shapes.remask(2, rows, 256)
    assert bytes_of("remask", arguments) == 2 * 256 * (4 + 4 + 1 + 4 * written)


def test_bytes_of_the_policys_parameters() -> None:
    assert bytes_of("policy_parameters", shapes.policy(3)) == 3 * (4 * 4 + 4 * 4)


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("float16", 2)])
def test_bytes_of_the_pixels(dtype: str, size: int) -> None:
    assert bytes_of("to_pixels", shapes.pixels(2, 20, 30, dtype)) == 2 * 20 * 30 * 3 * (size + 1)


# --- what the kernels do not take


def test_limits_are_those_of_the_sources() -> None:
    assert f"kMaxTokens = {MAX_TOKENS};" in (KERNELS / "remask.cu").read_text()
    assert f"kMaxChunks = {MAX_CODES} / kChunk;" in (KERNELS / "sample_tokens.cu").read_text()


def test_the_largest_sizes_are_taken() -> None:
    assert launch_of("sample_tokens", shapes.sample(codes=MAX_CODES)).block == (256, 1, 1)
    assert launch_of("remask", shapes.remask(count=MAX_TOKENS)).grid == (2, 1)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_too_many_codes_are_refused(dtype: str) -> None:
    with pytest.raises(DeviceError, match="at most 65,536 codes, got 65,537"):
        launch_of("sample_tokens", shapes.sample(codes=MAX_CODES + 1, dtype=dtype))
    with pytest.raises(DeviceError, match="at most 65,536 codes, got 65,537"):
        launch_of("sample_top_k_top_p", shapes.filtered(codes=MAX_CODES + 1, dtype=dtype))


@pytest.mark.parametrize(
    ("source", "target"), [("float16", "float32"), ("float32", "uint32"), ("uint8", "uint8")]
)
def test_rows_of_two_types_or_of_bytes_are_refused(source: str, target: str) -> None:
    arguments = shapes.rows() | {"source": shapes.Memory(0, (2, 1, 8), source)}
    arguments["target"] = shapes.Memory(0, (2, 5, 8), target)
    with pytest.raises(DeviceError, match=f"2, 4 or 8 bytes, got {source} and {target}"):
        launch_of("copy_rows", arguments)


@pytest.mark.parametrize("kernel", ["gather_rows", "scatter_rows"])
@pytest.mark.parametrize(("source", "target"), [("float16", "float16"), ("float32", "int32")])
def test_moved_rows_of_two_types_or_of_halves_are_refused(
    kernel: str, source: str, target: str
) -> None:
    shape = (3, 320 * 2 * 768)
    arguments = shapes.cached() | {"source": shapes.Memory(0, shape, source)}
    arguments["target"] = shapes.Memory(0, shape, target)
    with pytest.raises(DeviceError, match=f"of 4 bytes, got {source} and {target}"):
        launch_of(kernel, arguments)


@pytest.mark.parametrize("rows", [1, 2])
def test_a_copy_of_no_rows_is_refused(rows: int) -> None:
    with pytest.raises(DeviceError, match=f"one of the {rows} rows, got 2"):
        launch_of("copy_rows", shapes.rows(rows=rows))


def test_too_many_tokens_are_refused() -> None:
    with pytest.raises(DeviceError, match="at most 4,096 tokens, got 4,097"):
        launch_of("remask", shapes.remask(count=MAX_TOKENS + 1))


@pytest.mark.parametrize("dtype", ["float64", "int32", "uint8"])
@pytest.mark.parametrize("kernel", ["sample_tokens", "sample_top_k_top_p", "to_pixels"])
def test_other_types_are_refused(kernel: str, dtype: str) -> None:
    arguments = {
        "sample_tokens": shapes.sample(dtype=dtype),
        "sample_top_k_top_p": shapes.filtered(dtype=dtype),
        "to_pixels": shapes.pixels(dtype=dtype),
    }[kernel]
    with pytest.raises(DeviceError, match=f"float32 or float16, got {dtype}"):
        launch_of(kernel, arguments)
