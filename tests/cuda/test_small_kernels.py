"""The kernels of a thread or block per element on the GPU against NumPy.

Covered: ``initial_tokens``, ``policy_parameters``, ``sampling_parameters``, ``copy_rows`` and
``to_pixels``: kept, masked and invalid tokens in one half and two; actions to parameters against
the formulas in float64, at huge actions and with actions that are not finite; rows of words of 16
and of 2 bytes, from every row on, and what is refused; pixels of float32 and of every float16 there
is, with NaN, both ends of the range and ties; sizes that are and are not multiples of the block;
error flags, which only ever go up.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fewstep.runtime.devices.cuda import CudaDevice
from fewstep.runtime.errors import DeviceError

sys.path.append(str(Path(__file__).parent))
if TYPE_CHECKING:
    from tests.cuda import kernel_runs as runs
else:
    import kernel_runs as runs

Array = npt.NDArray[Any]

# --- initial_tokens

_CODES, _MASK = 10, 12  # 10 and 11 are neither code nor mask


def _initial(
    device: CudaDevice, given: Array, mask: Array, *, halves: int = 1, flag: int = 0
) -> tuple[Array, int]:
    found = runs.launch(
        device,
        "initial_tokens",
        inputs={"given": given.astype(np.int32), "mask": mask.astype(np.uint8)},
        outputs={
            "tokens": np.full((halves * len(given), given.shape[1]), -77, np.int32),
            "error": np.array([flag], np.int32),
        },
        codebook_size=_CODES,
        mask_token=_MASK,
    )
    return found["tokens"], int(found["error"][0])


@runs.examples(80)
@given(
    batch=st.integers(1, 4),
    count=st.one_of(st.integers(1, 40), st.sampled_from([255, 256, 257, 512, 1000])),
    halves=st.integers(1, 2),
    invalid=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_kept_tokens_stay_and_the_others_are_masked(
    device: CudaDevice, batch: int, count: int, halves: int, invalid: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    low, high = (-2, _MASK + 2) if invalid else (0, _CODES)
    given = rng.integers(low, high, (batch, count))
    mask = rng.choice([0, 0, 1, 128, 255], given.shape)
    tokens, error = _initial(device, given, mask, halves=halves)
    known = (mask == 0) & np.isin(given, np.arange(_CODES))
    np.testing.assert_array_equal(tokens, np.tile(np.where(known, given, _MASK), (halves, 1)))
    assert error == (known != (mask == 0)).any()


@pytest.mark.parametrize("halves", [1, 2])
@pytest.mark.parametrize("count", [1, 256, 300])
def test_everything_masked_may_be_anything(device: CudaDevice, count: int, halves: int) -> None:
    given = np.random.default_rng(0).integers(-(2**31), 2**31, (3, count))
    tokens, error = _initial(device, given, np.ones((3, count)), halves=halves)
    assert tokens.shape == (3 * halves, count)
    assert (tokens == _MASK).all()
    assert error == 0


@pytest.mark.parametrize("halves", [1, 2])
@pytest.mark.parametrize("invalid", [-1, _CODES, _MASK, 2**31 - 1, -(2**31)])
def test_a_kept_token_that_is_no_code_counts_as_masked_and_raises_the_flag(
    device: CudaDevice, invalid: int, halves: int
) -> None:
    """The mask token too: what is kept must be decided."""
    given = np.array([[1, 2], [3, invalid]])
    tokens, error = _initial(device, given, np.zeros((2, 2)), halves=halves)
    assert tokens.tolist() == [[1, 2], [3, _MASK]] * halves
    assert error == 1


# --- policy_parameters


def _parameters(
    device: CudaDevice, action: Array, offsets: npt.ArrayLike = (0, 0, 0, 0), flag: int = 0
) -> tuple[Array, int]:
    names = ("ratio_offset", "masking_offset", "sampling_offset", "guidance_offset")
    found = runs.launch(
        device,
        "policy_parameters",
        inputs={"action": action.astype(np.float32)},
        outputs={
            "parameters": np.full(action.shape, -1, np.float32),
            "error": np.array([flag], np.int32),
        },
        **dict(zip(names, np.asarray(offsets, np.float64).tolist(), strict=True)),
    )
    return found["parameters"], int(found["error"][0])


@runs.examples(150)
@given(
    batch=st.one_of(st.integers(1, 4), st.sampled_from([127, 128, 129, 300])),
    scale=st.sampled_from([0.1, 3.0, 20.0]),
    offsets=st.tuples(*[st.floats(-20, 20)] * 4),
    seed=st.integers(0, 2**32),
)
def test_parameters_are_those_of_the_formulas_in_float64(
    device: CudaDevice,
    batch: int,
    scale: float,
    offsets: tuple[float, float, float, float],
    seed: int,
) -> None:
    action = np.random.default_rng(seed).normal(0, scale, (batch, 4)).astype(np.float32)
    found, error = _parameters(device, action, offsets)
    raw = action.astype(np.float64) + offsets
    expected = np.logaddexp(0, raw)
    expected[:, 0] = 1 / (1 + np.exp(-raw[:, 0]))
    # Half a float32 step, and the last bits of the two float64 computations: of the ratio, tanh's.
    np.testing.assert_allclose(found, expected, rtol=2**-24 + 1e-13, atol=1e-15)
    assert error == 0


@pytest.mark.parametrize("huge", [1e3, 1e30, float(np.finfo(np.float32).max)])
def test_huge_actions_saturate_without_overflow(device: CudaDevice, huge: float) -> None:
    action = np.array([[-huge] * 4, [huge] * 4], np.float32)
    found, error = _parameters(device, action)
    assert found.tolist() == [[0] * 4, [1, *action[1, 1:].tolist()]]
    assert error == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("column", range(4))
@pytest.mark.parametrize("image", [0, 140])
def test_an_action_that_is_not_finite_raises_the_flag(
    device: CudaDevice, bad: float, column: int, image: int
) -> None:
    action = np.random.default_rng(0).normal(size=(141, 4))
    sound, error = _parameters(device, action)
    assert error == 0
    action[image, column] = bad
    found, error = _parameters(device, action)
    assert error == 1
    others = np.arange(141) != image
    np.testing.assert_array_equal(found[others], sound[others])


# --- sampling_parameters


def _of_a_scale(
    device: CudaDevice,
    action: Array,
    offsets: npt.ArrayLike = (0, 0, 0, 0),
    scale: float = 1.0,
    flag: int = 0,
) -> tuple[Array, int]:
    names = ("guidance_offset", "top_k_offset", "top_p_offset", "temperature_offset")
    found = runs.launch(
        device,
        "sampling_parameters",
        inputs={"action": action.astype(np.float32)},
        outputs={
            "parameters": np.full(action.shape, -1, np.float32),
            "error": np.array([flag], np.int32),
        },
        guidance_scale=scale,
        **dict(zip(names, np.asarray(offsets, np.float64).tolist(), strict=True)),
    )
    return found["parameters"], int(found["error"][0])


@pytest.mark.parametrize("batch", [1, 127, 128, 129])
@pytest.mark.parametrize("spread", [0.1, 3.0, 20.0, 1e30])
def test_parameters_of_a_scale_are_those_of_the_formulas_in_float64(
    device: CudaDevice, batch: int, spread: float
) -> None:
    action = np.random.default_rng(batch).normal(0, spread, (batch, 4)).astype(np.float32)
    offsets = (0.5, -1.25, 2.5, 0.75)
    found, error = _of_a_scale(device, action, offsets, 4 / 9)
    raw = action.astype(np.float64) + offsets
    expected = np.logaddexp(0, raw) * (4 / 9, 1, 1, 1)
    with np.errstate(over="ignore"):
        expected[:, 1:3] = 1 / (1 + np.exp(-raw[:, 1:3])) * (4096, 1)
    np.testing.assert_allclose(found, expected, rtol=2**-24 + 1e-13, atol=1e-12)
    assert error == 0


def test_an_action_of_0_at_the_offset_of_top_k_900_gives_900(device: CudaDevice) -> None:
    found, _ = _of_a_scale(device, np.zeros((1, 4)), (0, math.log(900 / (4096 - 900)), 0, 0))
    assert found[0, 1] == 900


@pytest.mark.parametrize("column", range(4))
def test_an_action_of_a_scale_that_is_not_finite_raises_the_flag(
    device: CudaDevice, column: int
) -> None:
    for bad in (math.nan, math.inf, -math.inf):
        action = np.zeros((2, 4))
        action[1, column] = bad
        assert _of_a_scale(device, action)[1] == 1


# --- copy_rows


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("width", [1, 3, 128, 1024, 2049])
@pytest.mark.parametrize(
    ("groups", "period", "rows", "first"), [(1, 2, 4, 2), (3, 1, 5, 0), (2, 3, 8, 4), (2, 5, 3, 2)]
)
def test_rows_are_copied_in_turn(
    device: CudaDevice, groups: int, period: int, rows: int, first: int, width: int, dtype: str
) -> None:
    """Every bit, NaN among them; what is before the first row stays."""
    random = np.random.default_rng(width)
    numbers = np.frombuffer(random.bytes(groups * period * width * 4), dtype)
    source = numbers[: groups * period * width].reshape(groups, period, width)
    before = np.full((groups, rows, width), 7, dtype)
    found = runs.launch(
        device, "copy_rows", inputs={"source": source}, outputs={"target": before}, first=first
    )["target"]
    expected = before.copy()
    expected[:, first:] = source[:, np.arange(first, rows) % period]
    assert found.tobytes() == expected.tobytes()


def test_rows_of_two_types_and_no_rows_are_refused(device: CudaDevice) -> None:
    for dtype, first, message in (
        ("float16", 0, "of one type of 2, 4 or 8 bytes, got float16 and float32"),
        ("float32", 3, "starts at one of the 3 rows, got 3"),
    ):
        inputs, outputs = np.zeros((1, 1, 4), dtype), np.zeros((1, 3, 4), np.float32)
        with pytest.raises(DeviceError, match=message):
            runs.launch(
                device,
                "copy_rows",
                inputs={"source": inputs},
                outputs={"target": outputs},
                first=first,
            )


# --- to_pixels


def _pixels(device: CudaDevice, image: Array, flag: int = 0) -> tuple[Array, int]:
    batch, _, height, width = image.shape
    found = runs.launch(
        device,
        "to_pixels",
        inputs={"image": image},
        outputs={
            "pixels": np.full((batch, height, width, 3), 77, np.uint8),
            "error": np.array([flag], np.int32),
        },
    )
    return found["pixels"], int(found["error"][0])


def _by_numpy(image: Array) -> Array:
    clamped = np.clip(np.nan_to_num(image.astype(np.float32)), 0, 1)
    pixels: Array = np.rint(clamped * np.float32(255)).astype(np.uint8)
    return pixels.transpose(0, 2, 3, 1)


@runs.examples(80)
@given(
    image=hnp.arrays(
        st.sampled_from([np.float32, np.float16]),
        st.tuples(st.integers(1, 3), st.just(3), st.integers(1, 9), st.integers(1, 40)),
        elements=st.one_of(st.floats(-0.25, 1.25, width=16), st.sampled_from([-math.inf, 1e4])),
    )
)
def test_pixels_are_those_of_numpy(device: CudaDevice, image: Array) -> None:
    pixels, error = _pixels(device, image)
    np.testing.assert_array_equal(pixels, _by_numpy(image))
    assert error == 0


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (15, 17), (16, 16), (1, 257), (31, 33), (64, 48)]
)
def test_channels_move_last_at_any_size(
    device: CudaDevice, height: int, width: int, dtype: str
) -> None:
    image = np.random.default_rng(width).random((2, 3, height, width)).astype(dtype)
    pixels, error = _pixels(device, image)
    np.testing.assert_array_equal(pixels, _by_numpy(image))
    assert error == 0


def test_every_half_there_is(device: CudaDevice) -> None:
    """65,536 bit patterns, NaN among them: 1,023 of either sign, each of them 0."""
    image = np.arange(2**16, dtype=np.uint16).view(np.float16)
    image = np.resize(image, (1, 3, 149, 147))  # 65,709 values
    pixels, error = _pixels(device, image)
    expected = _by_numpy(np.where(np.isnan(image), np.float16(0), image))
    np.testing.assert_array_equal(pixels, expected)
    assert error == 1


def test_values_around_every_tie_round_as_in_numpy(device: CudaDevice) -> None:
    ties = ((np.arange(255) + 0.5) / 255).astype(np.float32)
    around = [ties]
    for towards in (np.float32(-1), np.float32(2)):
        around += [np.nextafter(ties, towards), np.nextafter(np.nextafter(ties, towards), towards)]
    image = np.tile(np.concatenate(around), (1, 3, 1, 1))
    exact = image * np.float32(255) % 1 == 0.5
    assert exact.sum() > 255  # ties there are, after the multiplication
    pixels, _ = _pixels(device, image)
    np.testing.assert_array_equal(pixels, _by_numpy(image))
    assert (pixels.transpose(0, 3, 1, 2)[exact] % 2 == 0).all()


def test_every_pixel_value_survives_the_round_trip(device: CudaDevice) -> None:
    values = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16).repeat(3, axis=1)
    pixels, _ = _pixels(device, values.astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(pixels, values.transpose(0, 2, 3, 1))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("channel", range(3))
def test_nan_raises_the_flag_and_becomes_0(device: CudaDevice, channel: int, dtype: str) -> None:
    image = np.full((2, 3, 20, 20), 0.5, dtype)
    image[1, channel, 19, 19] = np.nan
    pixels, error = _pixels(device, image)
    assert error == 1
    expected = np.full((2, 20, 20, 3), 128, np.uint8)
    expected[1, 19, 19, channel] = 0
    np.testing.assert_array_equal(pixels, expected)


# --- all of them


def test_a_flag_is_never_taken_down(device: CudaDevice) -> None:
    assert _initial(device, np.zeros((1, 1)), np.zeros((1, 1)), flag=1)[1] == 1
    assert _parameters(device, np.zeros((1, 4)), flag=1)[1] == 1
    assert _of_a_scale(device, np.zeros((1, 4)), flag=1)[1] == 1
    assert _pixels(device, np.zeros((1, 3, 1, 1), np.float32), flag=1)[1] == 1


@pytest.mark.parametrize("order", ["reverse", "shuffled:1"])
def test_the_order_of_threads_changes_nothing(
    device: CudaDevice, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The emulated driver can change it; on a GPU this is one more run."""
    monkeypatch.setenv("EMULATED_CUDA_ORDER", order)
    rng = np.random.default_rng(0)
    image = rng.random((2, 3, 19, 23), np.float32)
    np.testing.assert_array_equal(_pixels(device, image)[0], _by_numpy(image))
    given, mask = rng.integers(0, _CODES, (2, 600)), rng.integers(0, 2, (2, 600))
    tokens, _ = _initial(device, given, mask, halves=2)
    np.testing.assert_array_equal(tokens, np.tile(np.where(mask, _MASK, given), (2, 1)))
