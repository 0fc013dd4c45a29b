"""``sample_top_k_top_p`` on the GPU: the tokens and the flag of the CPU kernel, always.

Which tokens are right is tested there (``tests/runtime/kernels/test_sample_top_k_top_p.py``).
Covered, in float32 and float16: every limit and temperature at its ends and between; rows of ties,
of excluded codes and of logits far apart; batches; guidance with own and shared unconditional
logits; vocabularies up to 65,536 and around the 8,192 that stay in shared memory; given ids;
unusable logits, parameters and ids; threads in another order; what is refused.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep.runtime.devices.cuda import CudaDevice
from fewstep.runtime.errors import DeviceError
from fewstep.runtime.kernels.sample_top_k_top_p import sample_top_k_top_p

sys.path.append(str(Path(__file__).parent))
if TYPE_CHECKING:
    from tests.cuda import kernel_runs as runs
else:
    import kernel_runs as runs

Array = npt.NDArray[Any]
_DTYPES = ("float32", "float16")
_KINDS = ("smooth", "ties", "far apart", "one code in three", "equal")
_CODES = st.one_of(st.integers(1, 600), st.sampled_from([31, 32, 33, 255, 256, 257, 512]))


@dataclass(frozen=True)
class _Case:
    """Logits ``[B, N, V]``, the unconditional ones also ``[1, N, V]``; parameters ``[B, 4]``."""

    conditional: Array
    unconditional: Array
    parameters: Array
    seeds: Array
    given: Array
    step: int = 0
    flag: int = 0
    mask_token: int = -1

    @property
    def inputs(self) -> dict[str, Array]:
        """The arrays that the kernel reads."""
        names = ("conditional", "unconditional", "parameters", "seeds", "given")
        return {name: getattr(self, name) for name in names}

    @property
    def outputs(self) -> dict[str, Array]:
        """The arrays that it writes, as they are before."""
        tokens = np.full(self.given.shape, -99, np.int32)
        return {"tokens": tokens, "error": np.array([self.flag], np.int32)}


def _on_gpu(device: CudaDevice, case: _Case) -> tuple[Array, int]:
    found = runs.launch(
        device,
        "sample_top_k_top_p",
        inputs=case.inputs,
        outputs=case.outputs,
        step=case.step,
        mask_token=case.mask_token,
    )
    return found["tokens"], int(found["error"][0])


def _on_cpu(case: _Case) -> tuple[Array, int]:
    """The CPU kernel, which reads float32 only."""
    halves = ("conditional", "unconditional")
    wide = {name: getattr(case, name).astype(np.float32) for name in halves}
    found = case.outputs
    given: dict[str, Any] = {**case.inputs, **wide, **found}
    sample_top_k_top_p(**given, step=case.step, mask_token=case.mask_token)
    return found["tokens"], int(found["error"][0])


def _assert_same(device: CudaDevice, case: _Case) -> None:
    (tokens, error), (expected, flag) = _on_gpu(device, case), _on_cpu(case)
    np.testing.assert_array_equal(tokens, expected)
    assert error == flag


def _logits(kind: str, shape: tuple[int, ...], dtype: str, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    if kind == "equal":
        return np.full(shape, -2.5, dtype)
    if kind == "ties":
        return np.asarray(rng.choice([-1.5, -0.0, 0.0, 2.0], shape)).astype(dtype)
    values = rng.normal(0, 100 if kind == "far apart" else 2, shape).astype(dtype)
    if kind == "one code in three":
        values[rng.random(shape) < 2 / 3] = -np.inf
        values[..., shape[-1] // 2] = 1
    return values


def _plain(conditional: Array, parameters: npt.ArrayLike, **changes: Any) -> _Case:
    """Nothing is given; the parameters of one image hold for all."""
    batch, count, _ = conditional.shape
    case = _Case(
        conditional=conditional,
        unconditional=np.full_like(conditional[:1], np.nan),  # not read without guidance
        parameters=np.resize(np.asarray(parameters, np.float32), (batch, 4)),
        seeds=np.arange(5, 5 + batch, dtype=np.uint64),
        given=np.full((batch, count), -1, np.int32),
    )
    return replace(case, **changes)


@st.composite
def _cases(draw: st.DrawFn) -> _Case:
    batch, count, codes = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(_CODES)
    dtype, kind = draw(st.sampled_from(_DTYPES)), draw(st.sampled_from(_KINDS))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    parameters = [
        (
            draw(st.sampled_from([0, 0.5, 4])),
            draw(st.sampled_from([0, 0.9, 1, 2.5, codes - 1, codes, 900])),
            draw(st.sampled_from([0, 1e-3, 0.3, 0.95, 0.999, 1])),
            draw(st.sampled_from([0, 1e-30, 0.5, 1, 1, 2.5, math.inf])),
        )
        for _ in range(batch)
    ]
    images, smooth = draw(st.sampled_from([1, batch])), "far apart" if kind == "far apart" else ""
    return _Case(
        conditional=_logits(kind, (batch, count, codes), dtype, int(rng.integers(2**32))),
        unconditional=_logits(smooth, (images, count, codes), dtype, int(rng.integers(2**32))),
        parameters=np.array(parameters, np.float32),
        seeds=rng.integers(0, 2**64, batch, np.uint64),
        given=rng.choice([-1, -1, -1, 0, codes - 1, codes], (batch, count)).astype(np.int32),
        step=draw(st.integers(0, 9)),
    )


@runs.examples(150)
@given(case=_cases())
def test_tokens_are_those_of_the_cpu_kernel(device: CudaDevice, case: _Case) -> None:
    _assert_same(device, case)


@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize("codes", [1024, 4096, 4099, 8192, 8193, 65_536])
def test_large_vocabularies(device: CudaDevice, codes: int, dtype: str) -> None:
    conditional = _logits("smooth", (2, 1, codes), dtype, codes)
    conditional[0, :, codes // 3 : codes // 2] = -np.inf
    other = _logits("smooth", (1, 1, codes), dtype, codes + 1)
    for parameters in ([(1.5, 900, 0.95, 1), (0, 0, 0.9, 0.8)], [(0.5, 0, 1, 1), (3, 50, 1, 0)]):
        _assert_same(device, _plain(conditional, parameters, unconditional=other, step=3))


@pytest.mark.parametrize("codes", [4096, 9000])
@pytest.mark.parametrize("kind", ["ties", "equal"])
def test_ties_at_both_edges(device: CudaDevice, kind: str, codes: int) -> None:
    """With nothing but ties most of these sums are exact, and so are the edges."""
    case = _plain(_logits(kind, (1, 2, codes), "float32", 1), (0, codes // 3, 0.5, 1))
    _assert_same(device, case)
    _assert_same(device, replace(case, parameters=np.array([[0, 0, 0.75, 0]], np.float32)))


def test_given_ids_are_the_tokens_and_their_logits_are_not_read(device: CudaDevice) -> None:
    ids = np.array([[-1, 3, 0], [49, -(2**31), 8]], np.int32)
    logits = _logits("smooth", (2, 3, 50), "float32", 1)
    logits[ids >= 0] = np.nan
    case = _plain(logits, (0, 9, 0.9, 1), given=ids)
    tokens, error = _on_gpu(device, case)
    np.testing.assert_array_equal(tokens[ids >= 0], ids[ids >= 0])
    assert error == 0
    _assert_same(device, case)


def test_a_given_mask_token_stays_and_is_no_error(device: CudaDevice) -> None:
    ids = np.array([[-1, 3, 50], [50, -1, 51]], np.int32)
    logits = _logits("smooth", (2, 3, 50), "float32", 1)
    case = _plain(logits, (0, 9, 0.9, 1), given=ids, mask_token=50)
    _assert_same(device, case)
    assert _on_gpu(device, case)[1] == 1  # for 51
    assert _on_gpu(device, replace(case, mask_token=51))[0][1, 2] == 51


@pytest.mark.parametrize("codes", [40, 9000])
@pytest.mark.parametrize("bad", [math.nan, math.inf, "all", "parameter", "id"])
def test_what_is_unusable_sets_the_flag_and_gives_0(
    device: CudaDevice, bad: float | str, codes: int
) -> None:
    sound = _plain(_logits("smooth", (2, 2, codes), "float32", 1), (0, 20, 0.5, 1))
    expected, flag = _on_gpu(device, sound)
    assert flag == 0
    case = replace(sound, conditional=sound.conditional.copy())
    if bad == "id":
        case.given[1, 1] = codes
    elif bad == "parameter":
        case.parameters[1, 2] = math.nan
    else:
        case.conditional[1, 1, slice(None) if bad == "all" else codes - 1] = (
            -np.inf if bad == "all" else bad
        )
    tokens, error = _on_gpu(device, case)
    assert error == 1
    assert tokens[1, 1] == 0
    np.testing.assert_array_equal(tokens[0], expected[0])
    _assert_same(device, case)


@pytest.mark.parametrize("bad", [math.nan, -1e-3])
@pytest.mark.parametrize("column", range(4))
def test_no_parameter_may_be_nan_or_negative(device: CudaDevice, column: int, bad: float) -> None:
    logits = _logits("smooth", (1, 2, 40), "float32", 1)
    case = _plain(logits, (0, 20, 0.5, 1), unconditional=logits)
    case.parameters[0, column] = bad
    tokens, error = _on_gpu(device, case)
    assert (tokens.tolist(), error) == ([[0, 0]], 1)


def test_the_flag_is_never_taken_down(device: CudaDevice) -> None:
    assert _on_gpu(device, _plain(np.zeros((1, 1, 4), np.float32), (0, 0, 1, 1), flag=1))[1] == 1


@pytest.mark.parametrize("order", ["reverse", "shuffled:1"])
@pytest.mark.parametrize("codes", [700, 9000])
def test_the_order_of_threads_changes_nothing(
    device: CudaDevice, codes: int, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The emulated driver can change it; on a GPU this is one more run."""
    monkeypatch.setenv("EMULATED_CUDA_ORDER", order)
    other = _logits("smooth", (1, 2, codes), "float32", 2)
    case = _plain(_logits("ties", (1, 2, codes), "float32", 1), (1, 300, 0.5, 2))
    _assert_same(device, case)
    _assert_same(device, replace(case, unconditional=other))


def test_what_the_kernel_does_not_take_is_refused(device: CudaDevice) -> None:
    with pytest.raises(DeviceError, match=r"at most 65,536 codes, got 65,537"):
        _on_gpu(device, _plain(np.zeros((1, 1, 65_537), np.float32), (0, 0, 1, 1)))
    with pytest.raises(DeviceError, match=r"float32 or float16, got float64"):
        _on_gpu(device, _plain(np.zeros((1, 1, 4)), (0, 0, 1, 1)))
