"""How kernels are launched: arguments against the CUDA sources, grids and bytes against arithmetic.

Covered: every kernel's entry by dtype, its arguments in the order and of the types that the source
declares, grids that cover every element and blocks within the source's bounds, the bytes that must
move counted by hand, and sizes and types that the CUDA kernels do not take.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep.runtime.errors import DeviceError
from fewstep.runtime.kernels.launch import MAX_CODES, MAX_TOKENS, Argument, Launch, launch_of

_FOLDER = Path(__file__).parents[3] / "runtime" / "fewstep" / "runtime" / "kernels"
_LETTERS = {"int": "i", "double": "d"}
_ENTRY = re.compile(
    r'extern "C" __global__ void __launch_bounds__\((\d+)\)\s+(\w+)\(([^)]*)\)', re.DOTALL
)
_FLOATS = st.sampled_from(["float32", "float16"])


@dataclass
class Memory:
    """A buffer that is nowhere: an address and what it would hold."""

    pointer: int
    shape: tuple[int, ...]
    type: str = "float32"

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.type)

    def __getitem__(self, rows: int | slice) -> Memory:
        raise AssertionError("nobody asks for rows")

    def view(self, shape: tuple[int, ...]) -> Memory:
        raise AssertionError("nobody asks for another shape")


@dataclass(frozen=True)
class Entry:
    """A kernel as its source declares it."""

    threads: int
    names: tuple[str, ...]
    letters: str


def _sources() -> dict[str, Entry]:
    found = {}
    for path in sorted(_FOLDER.glob("*.cu")):
        for threads, name, parameters in _ENTRY.findall(path.read_text()):
            declared = [each.rsplit(None, 1) for each in parameters.split(",")]
            letters = "".join(
                "P" if "*" in kind else _LETTERS[kind.strip()] for kind, _ in declared
            )
            found[name] = Entry(int(threads), tuple(name for _, name in declared), letters)
    return found


_SOURCES = _sources()


def _initial(batch: int = 2, rows: int = 4, count: int = 300) -> dict[str, Argument]:
    return {
        "given": Memory(1, (batch, count), "int32"),
        "mask": Memory(2, (batch, count), "uint8"),
        "codebook_size": 24,
        "mask_token": 25,
        "tokens": Memory(3, (rows, count), "int32"),
        "error": Memory(4, (1,), "int32"),
    }


def _sample(
    batch: int = 2, count: int = 16, codes: int = 1024, dtype: str = "float32", shared: bool = False
) -> dict[str, Argument]:
    return {
        "conditional": Memory(10, (batch, count, codes), dtype),
        "unconditional": Memory(11, (1 if shared else batch, count, codes), dtype),
        "tokens": Memory(12, (batch, count), "int32"),
        "parameters": Memory(13, (batch, 4)),
        "seeds": Memory(14, (batch,), "uint64"),
        "step": 3,
        "mask_token": 9999,
        "sampled": Memory(15, (batch, count), "int32"),
        "confidence": Memory(16, (batch, count)),
        "error": Memory(17, (1,), "int32"),
    }


def _remask(batch: int = 2, rows: int = 4, count: int = 256) -> dict[str, Argument]:
    return {
        "confidence": Memory(20, (batch, count)),
        "sampled": Memory(21, (batch, count), "int32"),
        "parameters": Memory(22, (batch, 4)),
        "mask": Memory(24, (batch, count), "uint8"),
        "mask_token": 77,
        "at_least_one": 0,
        "next_tokens": Memory(23, (rows, count), "int32"),
    }


def _policy(batch: int = 3) -> dict[str, Argument]:
    return {
        "action": Memory(30, (batch, 4)),
        "ratio_offset": 0.25,
        "masking_offset": -0.5,
        "sampling_offset": 0.75,
        "guidance_offset": -1.0,
        "parameters": Memory(31, (batch, 4)),
        "error": Memory(32, (1,), "int32"),
    }


def _pixels(
    batch: int = 2, height: int = 20, width: int = 30, dtype: str = "float32"
) -> dict[str, Argument]:
    return {
        "image": Memory(40, (batch, 3, height, width), dtype),
        "pixels": Memory(41, (batch, height, width, 3), "uint8"),
        "error": Memory(42, (1,), "int32"),
    }


_EVERY: dict[str, tuple[str, dict[str, Argument]]] = {
    "initial_tokens": ("initial_tokens", _initial()),
    "policy_parameters": ("policy_parameters", _policy()),
    "remask": ("remask", _remask()),
    "sample_tokens_float": ("sample_tokens", _sample()),
    "sample_tokens_half": ("sample_tokens", _sample(dtype="float16")),
    "to_pixels_float": ("to_pixels", _pixels()),
    "to_pixels_half": ("to_pixels", _pixels(dtype="float16")),
}


def _by_name(launch: Launch) -> dict[str, int | float]:
    """The packed arguments by the names that the source gives them."""
    return dict(zip(_SOURCES[launch.entry].names, launch.arguments, strict=True))


def _bytes(kernel: str, arguments: dict[str, Argument]) -> int:
    return launch_of(kernel, arguments).bytes_moved


# --- arguments


def test_every_kernel_of_the_sources_is_launched() -> None:
    assert set(_SOURCES) == set(_EVERY)


@pytest.mark.parametrize("entry", _EVERY)
def test_entry_signature_and_number_of_arguments_are_those_of_the_source(entry: str) -> None:
    launch = launch_of(*_EVERY[entry])
    assert launch.entry == entry
    assert launch.signature == _SOURCES[entry].letters
    assert len(launch.arguments) == len(launch.signature)


@pytest.mark.parametrize("entry", _EVERY)
def test_every_argument_of_the_caller_arrives_under_its_name(entry: str) -> None:
    kernel, arguments = _EVERY[entry]
    packed = _by_name(launch_of(kernel, arguments))
    renamed = {"pixels": "out"} if kernel == "to_pixels" else {}
    for name, value in arguments.items():
        expected = value.pointer if isinstance(value, Memory) else value
        assert packed[renamed.get(name, name)] == expected


@pytest.mark.parametrize("entry", _EVERY)
def test_integers_are_python_integers_that_fit_the_declared_type(entry: str) -> None:
    launch = launch_of(*_EVERY[entry])
    for letter, value in zip(launch.signature, launch.arguments, strict=True):
        assert isinstance(value, float if letter == "d" else int)
        assert letter == "d" or 0 <= value < (2**31 if letter == "i" else 2**64)


def test_sizes_are_passed_from_the_shapes() -> None:
    initial = _by_name(launch_of("initial_tokens", _initial(batch=2, rows=4, count=300)))
    assert (initial["batch"], initial["count"]) == (2, 300)
    remask = _by_name(launch_of("remask", _remask(batch=2, rows=4, count=256)))
    assert (remask["count"], remask["rows"]) == (256, 4)
    assert _by_name(launch_of("policy_parameters", _policy(batch=5)))["batch"] == 5
    assert _by_name(launch_of("sample_tokens", _sample(codes=777)))["codes"] == 777
    assert _by_name(launch_of("to_pixels", _pixels(height=20, width=30)))["pixels"] == 600


@pytest.mark.parametrize(("batch", "shared", "flag"), [(3, False, 0), (3, True, 1), (1, True, 1)])
def test_one_row_of_unconditional_logits_is_shared(batch: int, shared: bool, flag: int) -> None:
    launch = launch_of("sample_tokens", _sample(batch=batch, shared=shared))
    assert _by_name(launch)["shared"] == flag


def test_whole_numbers_are_offsets_too() -> None:
    launch = launch_of("policy_parameters", _policy() | {"ratio_offset": 0})
    assert launch.signature == _SOURCES["policy_parameters"].letters


# --- grids and blocks


@pytest.mark.parametrize("entry", _EVERY)
def test_block_is_whole_warps_within_the_bounds_of_the_source(entry: str) -> None:
    threads, *rest = launch_of(*_EVERY[entry]).block
    assert rest == [1, 1]
    assert threads % 32 == 0
    assert 32 <= threads <= _SOURCES[entry].threads


@given(batch=st.integers(1, 9), guided=st.booleans(), count=st.integers(1, 4096))
def test_initial_tokens_has_a_thread_for_every_token(batch: int, guided: bool, count: int) -> None:
    rows = 2 * batch if guided else batch
    launch = launch_of("initial_tokens", _initial(batch, rows, count))
    assert launch.grid[1] == rows
    _covers(launch, count)


@given(batch=st.integers(1, 1000))
def test_policy_parameters_has_a_thread_for_every_image(batch: int) -> None:
    launch = launch_of("policy_parameters", _policy(batch))
    assert launch.grid[1] == 1
    _covers(launch, batch)


@given(batch=st.integers(1, 9), height=st.integers(1, 600), width=st.integers(1, 600))
def test_to_pixels_has_a_thread_for_every_pixel(batch: int, height: int, width: int) -> None:
    launch = launch_of("to_pixels", _pixels(batch, height, width))
    assert launch.grid[1] == batch
    _covers(launch, height * width)


@given(batch=st.integers(1, 9), count=st.integers(1, MAX_TOKENS))
def test_remask_has_a_full_block_for_every_image(batch: int, count: int) -> None:
    launch = launch_of("remask", _remask(batch, 2 * batch, count))
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
    launch = launch_of("sample_tokens", _sample(batch, count, codes, dtype))
    assert launch.grid == (count, batch)
    warps = launch.block[0] // 32
    assert warps == 8 or (warps - 1) * 128 < codes <= warps * 128


def _covers(launch: Launch, elements: int) -> None:
    blocks, threads = launch.grid[0], launch.block[0]
    assert (blocks - 1) * threads < elements <= blocks * threads


# --- bytes that must move


def test_bytes_of_the_initial_tokens() -> None:
    """Read: 4 for the given token and 1 for the mask. Written: 4 per row of tokens."""
    assert _bytes("initial_tokens", _initial(batch=2, rows=2, count=256)) == 2 * 256 * (5 + 4)


def test_bytes_of_the_initial_tokens_under_guidance() -> None:
    """Twice as many rows are written, but there is no more to read."""
    assert _bytes("initial_tokens", _initial(batch=2, rows=4, count=256)) == 2 * 256 * (5 + 2 * 4)


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("float16", 2)])
def test_bytes_of_the_guided_sampling(dtype: str, size: int) -> None:
    """Two rows of logits and a token are read; a token and a confidence are written."""
    expected = 2 * 256 * (2 * 1024 * size + 4 + 4 + 4)
    assert _bytes("sample_tokens", _sample(2, 256, 1024, dtype)) == expected


def test_bytes_of_the_guided_sampling_with_shared_unconditional_logits() -> None:
    expected = (2 + 1) * 256 * 1024 * 4 + 2 * 256 * 12
    assert _bytes("sample_tokens", _sample(2, 256, 1024, shared=True)) == expected


@pytest.mark.parametrize(
    "batch",
    [2, 1],
)
def test_bytes_of_the_sampling_without_guidance(batch: int) -> None:
    """Without guidance the plan passes the conditional logits in both places."""
    arguments = _sample(batch, 256, 1024)
    arguments["unconditional"] = arguments["conditional"]
    assert _bytes("sample_tokens", arguments) == batch * 256 * (1024 * 4 + 12)


@pytest.mark.parametrize(("rows", "written"), [(2, 1), (4, 2)])
def test_bytes_of_the_masking(rows: int, written: int) -> None:
    """Read: a confidence and a sampled token. Written: a token per row."""
    assert _bytes("remask", _remask(2, rows, 256)) == 2 * 256 * (4 + 4 + 4 * written)


def test_bytes_of_the_policys_parameters() -> None:
    assert _bytes("policy_parameters", _policy(3)) == 3 * (4 * 4 + 4 * 4)


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("float16", 2)])
def test_bytes_of_the_pixels(dtype: str, size: int) -> None:
    assert _bytes("to_pixels", _pixels(2, 20, 30, dtype)) == 2 * 20 * 30 * 3 * (size + 1)


# --- what the kernels do not take


def test_limits_are_those_of_the_sources() -> None:
    assert f"kMaxTokens = {MAX_TOKENS};" in (_FOLDER / "remask.cu").read_text()
    assert f"kMaxChunks = {MAX_CODES} / kChunk;" in (_FOLDER / "sample_tokens.cu").read_text()


def test_the_largest_sizes_are_taken() -> None:
    assert launch_of("sample_tokens", _sample(codes=MAX_CODES)).block == (256, 1, 1)
    assert launch_of("remask", _remask(count=MAX_TOKENS)).grid == (2, 1)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_too_many_codes_are_refused(dtype: str) -> None:
    with pytest.raises(DeviceError, match="at most 65,536 codes, got 65,537"):
        launch_of("sample_tokens", _sample(codes=MAX_CODES + 1, dtype=dtype))


def test_too_many_tokens_are_refused() -> None:
    with pytest.raises(DeviceError, match="at most 4,096 tokens, got 4,097"):
        launch_of("remask", _remask(count=MAX_TOKENS + 1))


@pytest.mark.parametrize("dtype", ["float64", "int32", "uint8"])
@pytest.mark.parametrize("kernel", ["sample_tokens", "to_pixels"])
def test_other_types_are_refused(kernel: str, dtype: str) -> None:
    arguments = _sample(dtype=dtype) if kernel == "sample_tokens" else _pixels(dtype=dtype)
    with pytest.raises(DeviceError, match=f"float32 or float16, got {dtype}"):
        launch_of(kernel, arguments)
