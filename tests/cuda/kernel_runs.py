"""Runs of single kernels on NumPy arrays, from upload to download, and what they must be like.

Every array lies between two guards of bytes that are all ones: NaN to a kernel that reads logits
there, −1 to one that reads ids. Guards and inputs must come back as they were.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import HealthCheck, settings

from fewstep.runtime.devices import BufferSpec
from fewstep.runtime.devices.cuda import CudaDevice
from fewstep.runtime.devices.cuda_memory import CudaBuffer
from fewstep.runtime.kernels.cpu import KERNELS
from fewstep.runtime.kernels.sample_tokens import LOWEST_TEMPERATURE

Array = npt.NDArray[Any]
_GUARD = 256  # a multiple of every alignment that a kernel may ask for


def examples(count: int) -> settings:
    """So many examples, all on the one device of the test: it keeps nothing between launches."""
    fine = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=count, suppress_health_check=fine)


# --- launches


def launch(
    device: CudaDevice,
    kernel: str,
    *,
    inputs: Mapping[str, Array],
    outputs: Mapping[str, Array],
    **numbers: int | float,
) -> dict[str, Array]:
    """Run a kernel and return what became of its outputs.

    Args:
        device: where.
        kernel: its name.
        inputs: arrays that it reads.
        outputs: arrays that it writes, as they are before.
        numbers: its other arguments.
    """
    arrays = {**inputs, **outputs}
    blocks = {name: _guarded(values) for name, values in arrays.items()}
    specs = {name: BufferSpec(block.shape, "uint8") for name, block in blocks.items()}
    with device.workspace(specs) as memory:
        for name, block in blocks.items():
            device.upload(memory[name], block)
        buffers = {
            name: CudaBuffer(memory[name].pointer + _GUARD, values.shape, values.dtype)
            for name, values in arrays.items()
        }
        device.launch(kernel, **buffers, **numbers)
        device.synchronize()
        after = {name: device.download(memory[name]) for name in arrays}
    for name, block in after.items():
        assert (block[:_GUARD] == 0xFF).all(), f"{kernel} wrote before {name}"
        assert (block[-_GUARD:] == 0xFF).all(), f"{kernel} wrote after {name}"
    for name in inputs:
        assert (after[name] == blocks[name]).all(), f"{kernel} changed its input {name}"
    return {
        name: after[name][_GUARD:-_GUARD].view(values.dtype).reshape(values.shape)
        for name, values in outputs.items()
    }


def _guarded(values: Array) -> Array:
    guard = np.full(_GUARD, 0xFF, np.uint8)
    return np.concatenate([guard, np.frombuffer(values.tobytes(), np.uint8), guard])


# --- Philox


def philox(counter: tuple[npt.ArrayLike, ...], key: tuple[npt.ArrayLike, ...]) -> list[Array]:
    """Philox4x32-10 after figure 4 of Salmon, Moraes, Dror and Shaw (SC 2011).

    Four words for each counter of four words and key of two, all held in uint64; they broadcast.
    """
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    x0, x1, x2, x3, k0, k1 = np.broadcast_arrays(
        *(np.asarray(word, np.uint64) for word in (*counter, *key))
    )
    for _ in range(10):
        product0, product1 = x0 * np.uint64(0xD2511F53), x2 * np.uint64(0xCD9E8D57)
        x0, x1 = (product1 >> half) ^ x1 ^ k0, product1 & low
        x2, x3 = (product0 >> half) ^ x3 ^ k1, product0 & low
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & low, (k1 + np.uint64(0xBB67AE85)) & low
    return [x0, x1, x2, x3]


def draws(seeds: npt.ArrayLike, step: int, positions: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """``[2, …]``: the upper 23 bits of the words for the token and for the confidence's noise."""
    wide = np.asarray(seeds, np.uint64)
    words = philox((positions, step, 0, 0), (wide & np.uint64(0xFFFFFFFF), wide >> np.uint64(32)))
    return np.stack([word >> np.uint64(9) for word in words[:2]]).astype(np.int64)


def uniforms(seeds: npt.ArrayLike, step: int, positions: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """``[2, …]``: the uniforms for the token and for the noise, strictly between 0 and 1."""
    return np.asarray((draws(seeds, step, positions) + 0.5) / 2**23)


# --- sample_tokens


@dataclass(frozen=True)
class Sampling:
    """What ``sample_tokens`` reads: logits ``[B, N, V]``, tokens ``[B, N]``, parameters ``[B, 4]``,
    seeds ``[B]``; the unconditional logits also ``[1, N, V]``."""

    conditional: Array
    unconditional: Array
    tokens: Array
    parameters: Array
    seeds: Array
    step: int = 0
    mask_token: int = -7
    flag: int = 0
    confidence_of: int = 0
    resample: int = 0

    @property
    def given_mask(self) -> npt.NDArray[np.uint8]:
        """``[B, N]``: 0 at every third position, whose token is given."""
        places = np.arange(self.tokens.size).reshape(self.tokens.shape)
        return np.asarray(places % 3 != 0, np.uint8)

    @property
    def masked(self) -> npt.NDArray[np.bool_]:
        """``[B, N]``: the positions to sample."""
        return np.asarray(self.tokens == self.mask_token)

    def guided(self) -> Array:
        """Logits after guidance ``[B, N, V]``: float32, rounded after every operation."""
        c, u = self.conditional.astype(np.float32), self.unconditional.astype(np.float32)
        scale = self.parameters[:, 3, None, None]
        with np.errstate(invalid="ignore", over="ignore"):
            guided = c + scale * (c - u)
        return np.where((scale == 0) | (c == -np.inf), c, guided)


@dataclass(frozen=True)
class Sampled:
    """What it writes: ids and confidences ``[B, N]``, and the error flag."""

    tokens: Array
    confidence: Array
    error: int


def sample(device: CudaDevice, case: Sampling) -> Sampled:
    """``sample_tokens`` on the GPU."""
    inputs = {
        name: getattr(case, name)
        for name in ("conditional", "unconditional", "tokens", "parameters", "seeds")
    }
    inputs["mask"] = case.given_mask
    outputs = {
        "sampled": np.full(case.tokens.shape, -99, np.int32),
        "confidence": np.full(case.tokens.shape, -99, np.float32),
        "error": np.array([case.flag], np.int32),
    }
    numbers = {
        "step": case.step,
        "mask_token": case.mask_token,
        "confidence_of": case.confidence_of,
        "resample": case.resample,
    }
    found = launch(device, "sample_tokens", inputs=inputs, outputs=outputs, **numbers)
    return Sampled(found["sampled"], found["confidence"], int(found["error"][0]))


def sample_on_cpu(case: Sampling) -> Sampled:
    """The CPU kernel of the same name, which reads float32 only."""
    sampled = np.full(case.tokens.shape, -99, np.int32)
    confidence, error = np.zeros(case.tokens.shape, np.float32), np.array([case.flag], np.int32)
    KERNELS["sample_tokens"](
        conditional=case.conditional.astype(np.float32),
        unconditional=case.unconditional.astype(np.float32),
        tokens=case.tokens,
        parameters=case.parameters,
        seeds=case.seeds,
        step=case.step,
        mask_token=case.mask_token,
        sampled=sampled,
        confidence=confidence,
        error=error,
        confidence_of=case.confidence_of,
        mask=case.given_mask,
        resample=case.resample,
    )
    return Sampled(sampled, confidence, int(error[0]))


def assert_same(found: Sampled, expected: Sampled) -> None:
    """Equal ids, flags and bits of confidences."""
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    assert found.error == expected.error
    invalid = np.isnan(expected.confidence)
    np.testing.assert_array_equal(np.isnan(found.confidence), invalid)
    ours, theirs = found.confidence[~invalid], expected.confidence[~invalid]
    np.testing.assert_array_equal(ours.view(np.int32), theirs.view(np.int32))


def assert_follows_the_formulas(case: Sampling, found: Sampled, tolerance: float = 1e-6) -> None:
    """The reference in float64, on logits whose guidance is rounded as documented.

    A token's interval of the cumulated probabilities must hold the uniform, to within
    ``tolerance``; its confidence is its log-probability plus the noise, to 1e-5.
    """
    masked = case.masked
    np.testing.assert_array_equal(found.tokens[~masked], case.tokens[~masked])
    assert np.isposinf(found.confidence[~masked]).all()
    assert found.error == case.flag
    random = uniforms(case.seeds[:, None], case.step, np.arange(masked.shape[1]))
    guided = case.guided()
    for image, position in np.argwhere(masked).tolist():
        token, temperature = found.tokens[image, position], float(case.parameters[image, 2])
        logits, (u, v) = guided[image, position], random[:, image, position]
        if temperature < LOWEST_TEMPERATURE:
            assert token == logits.argmax()
        else:
            _assert_interval_holds(token, _weights(logits, temperature), u, tolerance)
        noise = float(case.parameters[image, 1]) * -np.log(-np.log(v))
        shifted = logits.astype(np.float64) - logits.max()
        expected = shifted[token] - np.log(np.exp(shifted).sum()) + noise
        np.testing.assert_allclose(
            found.confidence[image, position], expected, rtol=1e-5, atol=1e-5
        )


def _weights(logits: Array, temperature: float) -> npt.NDArray[np.float64]:
    """Probabilities; an excluded code has none, at an infinite temperature as well."""
    wide = logits.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        weights = np.where(np.isneginf(wide), 0, np.exp((wide - wide.max()) / temperature))
    return np.asarray(weights / weights.sum())


def _assert_interval_holds(token: int, weights: Array, uniform: float, tolerance: float) -> None:
    assert 0 <= token < len(weights), f"{token} is no code"
    assert weights[token] > 0, f"code {token} is excluded"
    end = weights[: token + 1].sum()
    start = end - weights[token]
    assert start - tolerance < uniform < end + tolerance, f"{uniform} not in {start} … {end}"
