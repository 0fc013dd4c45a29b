"""``sample_tokens`` on the GPU: tokens, confidences and the bits of the CPU kernel.

Covered, in float32 and float16: batches, vocabularies that are and are not multiples of the lane's
4 codes and the chunk's 128, up to the 65,536 that the kernel takes; guidance with own and shared
unconditional logits; both ends of both temperatures; ties, excluded codes and whole excluded
chunks; known positions; seeds and steps. Each against the formulas in float64 and against the CPU
kernel, and where all weights are equal, and sums therefore exact, against the exact code.
"""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep.runtime.devices.cuda import CudaDevice

sys.path.append(str(Path(__file__).parent))
if TYPE_CHECKING:
    from tests.cuda import kernel_runs as runs
else:
    import kernel_runs as runs

Array = npt.NDArray[Any]
_MASK = -7
_DTYPES = ("float32", "float16")
_LARGE = (1024, 4099, 16_384, 65_536)
_EDGES = (*(1, 2, 3, 4, 5, 127, 128, 129, 131, 132, 255, 256), *(1000, 4095, 4096, 4097, 8193))

_CODES = st.one_of(st.integers(2, 600), st.sampled_from([4, 127, 128, 129, 132, 256, 260, 384]))
_GUIDANCE = st.sampled_from([0.0, 0.0, 0.25, 1.0, 4.0])
_TEMPERATURES = st.sampled_from([0.0, 1e-40, 1e-30, 1e-3, 0.5, 1.0, 1.0, 2.5, 1e9, math.inf])
_MASKING = st.sampled_from([0.0, 1.0, 4.5])
_KINDS = ("smooth", "ties", "far apart", "one code in three")


def _logits(kind: str, shape: tuple[int, ...], dtype: str, seed: int) -> Array:
    """Logits with at least one code per row that is not excluded."""
    rng = np.random.default_rng(seed)
    if kind == "ties":
        return np.asarray(rng.choice([-1.5, -0.0, 0.0, 2.0], shape)).astype(dtype)
    values = rng.normal(0, 100 if kind == "far apart" else 3, shape).astype(dtype)
    if kind == "one code in three":
        values[rng.random(shape) < 2 / 3] = -np.inf
        rows = np.arange(math.prod(shape[:-1])) * shape[-1]
        values.ravel()[rows + rng.integers(0, shape[-1], len(rows))] = 1.0
    return values


@st.composite
def _cases(draw: st.DrawFn, confidence_of: int = 0) -> runs.Sampling:
    batch, count = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    codes, seed = draw(_CODES), draw(st.integers(0, 2**32))
    dtype, kind = draw(st.sampled_from(_DTYPES)), draw(st.sampled_from(_KINDS))
    masked = draw(st.sampled_from(["all", "all", "none", "some"]))
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, codes, (batch, count)).astype(np.int32)
    hidden = rng.random(tokens.shape) < {"all": 1, "none": 0, "some": 0.5}[masked]
    images = draw(st.sampled_from([1, batch]))
    smooth = "far apart" if kind == "far apart" else "smooth"
    parameters = [(0.5, draw(_MASKING), draw(_TEMPERATURES), draw(_GUIDANCE)) for _ in range(batch)]
    return runs.Sampling(
        conditional=_logits(kind, (batch, count, codes), dtype, seed),
        unconditional=_logits(smooth, (images, count, codes), dtype, seed + 1),
        tokens=np.where(hidden, _MASK, tokens).astype(np.int32),
        parameters=np.array(parameters, np.float32),
        seeds=rng.integers(0, 2**64, batch, np.uint64),
        step=draw(st.integers(0, 63)),
        mask_token=_MASK,
        confidence_of=confidence_of,
    )


@runs.examples(60)
@given(case=_cases(confidence_of=1), logits=st.booleans())
def test_other_confidences_are_those_of_the_cpu_kernel(
    device: CudaDevice, case: runs.Sampling, logits: bool
) -> None:
    case = replace(case, confidence_of=2, resample=1) if logits else case
    runs.assert_same(runs.sample(device, case), runs.sample_on_cpu(case))


@runs.examples(250)
@given(case=_cases())
def test_follows_the_formulas_and_the_cpu_kernel(device: CudaDevice, case: runs.Sampling) -> None:
    found = runs.sample(device, case)
    runs.assert_follows_the_formulas(case, found)
    runs.assert_same(found, runs.sample_on_cpu(case))


def _plain(conditional: Array, **changes: Any) -> runs.Sampling:
    """Every position masked, no guidance, both temperatures 1, seeds 5, 6 …"""
    batch, count, _ = conditional.shape
    case = runs.Sampling(
        conditional=conditional,
        unconditional=np.full_like(conditional[:1], np.nan),  # not read without guidance
        tokens=np.full((batch, count), _MASK, np.int32),
        parameters=np.tile(np.array([0.5, 1, 1, 0], np.float32), (batch, 1)),
        seeds=np.arange(5, 5 + batch, dtype=np.uint64),
        mask_token=_MASK,
    )
    return replace(case, **changes)


@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize("codes", _LARGE)
@pytest.mark.parametrize("unconditional", ["none", "own", "shared"])
def test_large_vocabularies(device: CudaDevice, codes: int, dtype: str, unconditional: str) -> None:
    conditional = _logits("smooth", (2, 2, codes), dtype, codes)
    conditional[0, :, codes // 3 : codes // 2] = -np.inf
    case = _plain(conditional, step=3)
    case.parameters[:, 2] = 0.8, 1.0
    if unconditional != "none":
        images = 1 if unconditional == "shared" else 2
        other = _logits("smooth", (images, 2, codes), dtype, codes + 1)
        case.parameters[:, 3] = 0.5, 3.0
        case = replace(case, unconditional=other)
    found = runs.sample(device, case)
    runs.assert_follows_the_formulas(case, found)
    runs.assert_same(found, runs.sample_on_cpu(case))


@pytest.mark.parametrize("temperature", [0.3, 1.0, 7.0])
@pytest.mark.parametrize("codes", _EDGES)
def test_equal_logits_are_divided_evenly_to_the_last_bit(
    device: CudaDevice, codes: int, temperature: float
) -> None:
    count = 40 if codes < 1000 else 4
    case = _plain(np.full((2, count, codes), -2.5, np.float32))
    case.parameters[:, 1:3] = 0, temperature
    found = runs.sample(device, case)
    uniform = runs.uniforms(case.seeds[:, None], 0, np.arange(count))[0]
    np.testing.assert_array_equal(found.tokens, np.floor(uniform * codes))
    np.testing.assert_allclose(found.confidence, -math.log(codes), rtol=1e-6)


@runs.examples(60)
@given(
    codes=st.sampled_from([5, 128, 130, 700, 4097, 5000]),
    excluded=st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 700)), max_size=8),
    temperature=st.sampled_from([0.0, 0.5, 1.0, 3.0, math.inf]),
    dtype=st.sampled_from(_DTYPES),
    seed=st.integers(0, 2**64 - 1),
)
def test_excluded_codes_and_chunks_are_stepped_over(
    device: CudaDevice,
    codes: int,
    excluded: list[tuple[int, int]],
    temperature: float,
    dtype: str,
    seed: int,
) -> None:
    """Runs of −∞ anywhere, whole chunks and groups among them; the others are equal."""
    row = np.zeros(codes, dtype)
    for first, length in excluded:
        row[first % codes :][:length] = -np.inf
    row[seed % codes] = 0
    case = _plain(np.tile(row, (1, 3, 1)), seeds=np.array([seed], np.uint64))
    case.parameters[:, 1:3] = 0, temperature
    found = runs.sample(device, case)
    allowed = np.flatnonzero(row == 0)
    uniform = runs.uniforms(seed, 0, np.arange(3))[0] * (temperature > 0)
    assert found.tokens[0].tolist() == allowed[(uniform * len(allowed)).astype(int)].tolist()
    np.testing.assert_allclose(found.confidence, -math.log(len(allowed)), rtol=1e-6, atol=1e-7)
    assert found.error == 0


@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize("codes", [128, 130, 600])
@pytest.mark.parametrize(("seed", "uniform"), [(75_465, 2.0**-24), (16_390_493, 1 - 2.0**-24)])
def test_the_smallest_and_largest_uniform_take_no_excluded_code(
    device: CudaDevice, seed: int, uniform: float, codes: int, dtype: str
) -> None:
    """At position 0 these seeds give them. Sums are rounded, so in some of many rows the largest
    uniform lies past the last code that has any weight, and codes without follow."""
    assert runs.uniforms(seed, 0, 0)[0] == uniform
    logits = _logits("smooth", (400, 1, codes), dtype, codes)
    logits[:, :, :37] = logits[:, :, -37:] = -np.inf
    case = _plain(logits, seeds=np.full(400, seed, np.uint64))
    case.parameters[::2, 2] = 2.0
    found = runs.sample(device, case)
    runs.assert_follows_the_formulas(case, found)
    runs.assert_same(found, runs.sample_on_cpu(case))


@pytest.mark.parametrize("temperature", [0.0, -0.0, 1e-45, 1e-31])
@pytest.mark.parametrize("best", [[0], [127, 128], [5, 6, 7], [255, 300], [130, 4096], [4999]])
def test_without_temperature_the_first_of_the_most_likely_is_taken(
    device: CudaDevice, best: list[int], temperature: float
) -> None:
    logits = np.minimum(_logits("smooth", (1, 3, 5000), "float32", 1), 9)
    logits[:, :, best] = 10
    case = _plain(logits)
    case.parameters[:, 2] = temperature
    found = runs.sample(device, case)
    assert (found.tokens == best[0]).all()
    runs.assert_same(found, runs.sample_on_cpu(case))


def test_logits_at_both_ends_of_float32_do_not_overflow(device: CudaDevice) -> None:
    logits = np.full((1, 20, 300), -3e38, np.float32)
    logits[:, :, [7, 299]] = 3e38
    for temperature in (1e-30, 0.5, 1.0):
        case = _plain(logits)
        case.parameters[:, 1:3] = 0, temperature
        found = runs.sample(device, case)
        uniform = runs.uniforms(case.seeds[:, None], 0, np.arange(20))[0]
        np.testing.assert_array_equal(found.tokens, np.where(uniform < 0.5, 7, 299))
        np.testing.assert_allclose(found.confidence, math.log(0.5), rtol=1e-6)
        assert found.error == 0


@pytest.mark.parametrize("dtype", _DTYPES)
def test_an_image_does_not_depend_on_its_batch(device: CudaDevice, dtype: str) -> None:
    case = _plain(
        _logits("smooth", (3, 4, 133), dtype, 8),
        unconditional=_logits("smooth", (3, 4, 133), dtype, 9),
        parameters=np.array([[0, 1, 0, 2], [0, 0, 0.5, 0], [0, 3, 1.5, 0.7]], np.float32),
        step=7,
    )
    case.tokens[1, 2:] = 4
    together = runs.sample(device, case)
    for image in range(3):
        row = slice(image, image + 1)
        fields = ("conditional", "unconditional", "tokens", "parameters", "seeds")
        alone = runs.sample(device, replace(case, **{f: getattr(case, f)[row] for f in fields}))
        np.testing.assert_array_equal(alone.tokens, together.tokens[row])
        np.testing.assert_array_equal(alone.confidence, together.confidence[row])


def test_halves_give_what_their_values_give_in_float32(device: CudaDevice) -> None:
    for codes in (7, 128, 130, 516):
        halves = _logits("smooth", (2, 3, codes), "float16", codes)
        other = _logits("one code in three", (1, 3, codes), "float16", codes)
        other[np.isneginf(other)] = np.finfo(np.float16).smallest_subnormal
        case = _plain(halves, unconditional=other)
        case.parameters[:, 3] = 0.75
        wide = replace(
            case, conditional=halves.astype(np.float32), unconditional=other.astype(np.float32)
        )
        found, expected = runs.sample(device, case), runs.sample(device, wide)
        np.testing.assert_array_equal(found.tokens, expected.tokens)
        np.testing.assert_array_equal(found.confidence, expected.confidence)


@pytest.mark.parametrize("order", ["reverse", "shuffled:1", "shuffled:2"])
@pytest.mark.parametrize("dtype", _DTYPES)
def test_the_order_of_threads_changes_nothing(
    device: CudaDevice, dtype: str, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The emulated driver can change it; on a GPU this is one more run."""
    conditional = _logits("one code in three", (2, 3, 3001), dtype, 3)
    case = _plain(conditional, unconditional=_logits("smooth", (1, 3, 3001), dtype, 4))
    case.parameters[:, 2:] = (0.7, 2.0), (0.0, 0.0)
    monkeypatch.delenv("EMULATED_CUDA_ORDER", raising=False)
    expected = runs.sample(device, case)
    monkeypatch.setenv("EMULATED_CUDA_ORDER", order)
    found = runs.sample(device, case)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(found.confidence, expected.confidence)
