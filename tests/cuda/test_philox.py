"""The random numbers of ``sample_tokens``: Philox words, recovered from what the kernel returns.

Covered: Random123's known answers for the reference; then both words of the kernel, for seeds of
64 bits and any step, as far as float32 lets them through. The word for the noise is read off the
confidence of a vocabulary of one code, which is the Gumbel noise itself; the upper 16 bits of the
word for the token off the token of 65,536 equal logits. That every bit is the CPU kernel's is
tested with the samples.
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

sys.path.append(str(Path(__file__).parent))
if TYPE_CHECKING:
    from tests.cuda import kernel_runs as runs
else:
    import kernel_runs as runs

Array = npt.NDArray[Any]
_BITS, _CODES = 23, 65_536
_STEPS = st.one_of(st.integers(0, 63), st.sampled_from([2**16, 2**31 - 1]))
_SEEDS = st.one_of(
    st.integers(0, 2**64 - 1), st.sampled_from([0, 1, 2**32 - 1, 2**32, 2**63, 2**64 - 1])
)


# Lines "philox4x32 10" of tests/kat_vectors in DEShawResearch/random123: counter, key, answer.
@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        (
            "00000000 00000000 00000000 00000000",
            "00000000 00000000",
            "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
        ),
        (
            "ffffffff ffffffff ffffffff ffffffff",
            "ffffffff ffffffff",
            "408f276d 41c83b0e a20bc7c6 6d5451fd",
        ),
        (
            "243f6a88 85a308d3 13198a2e 03707344",
            "a4093822 299f31d0",
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_the_reference_gives_the_known_answers(counter: str, key: str, answer: str) -> None:
    words = [tuple(int(word, 16) for word in text.split()) for text in (counter, key)]
    assert [f"{int(word):08x}" for word in runs.philox(*words)] == answer.split()


def test_the_first_known_answer_comes_out_of_the_kernel(device: CudaDevice) -> None:
    seeds = np.zeros(1, np.uint64)
    _assert_noise_words(device, seeds, 0, np.array([[0xE169C58D >> 9]]))
    _assert_token_words(device, seeds, 0, np.array([[0x6627E8D5 >> 9]]))


@runs.examples(60)
@given(seeds=st.lists(_SEEDS, min_size=1, max_size=3), step=_STEPS, count=st.integers(1, 40))
def test_the_noise_is_made_of_the_second_word(
    device: CudaDevice, seeds: list[int], step: int, count: int
) -> None:
    wide = np.array(seeds, np.uint64)
    expected = runs.draws(wide[:, None], step, np.arange(count))[1]
    _assert_noise_words(device, wide, step, expected)


def test_the_noise_of_far_positions_is_made_of_the_second_word(device: CudaDevice) -> None:
    seeds = np.array([2**63 + 12345], np.uint64)
    expected = runs.draws(seeds[:, None], 5, np.arange(4096))[1]
    _assert_noise_words(device, seeds, 5, expected)


@pytest.mark.parametrize(("seed", "word"), [(1_953_073, 0), (7_624_765, 2**_BITS - 1)])
def test_the_smallest_and_largest_noise_are_finite(
    device: CudaDevice, seed: int, word: int
) -> None:
    """At position 0 of step 0 these seeds give the words at both ends."""
    assert runs.draws(seed, 0, 0)[1] == word
    _assert_noise_words(device, np.array([seed], np.uint64), 0, np.array([[word]]))


@runs.examples(12)
@given(seeds=st.lists(_SEEDS, min_size=1, max_size=2), step=_STEPS, count=st.integers(1, 6))
def test_the_token_is_drawn_by_the_first_word(
    device: CudaDevice, seeds: list[int], step: int, count: int
) -> None:
    wide = np.array(seeds, np.uint64)
    expected = runs.draws(wide[:, None], step, np.arange(count))[0]
    _assert_token_words(device, wide, step, expected)


def _assert_noise_words(device: CudaDevice, seeds: Array, step: int, expected: Array) -> None:
    """That the noise is that of these upper bits ``[B, N]``: with one code the log-probability is
    0, so the confidence is the noise. Its float32 holds the word to within one and a half."""
    logits = np.full((*expected.shape, 1), 3.25, np.float32)
    noise = _sample(device, logits, seeds, step).confidence.astype(np.float64)
    places = np.exp(-np.exp(-noise)) * 2**_BITS - 0.5
    assert np.abs(places - expected).max() < 1.5


def _assert_token_words(device: CudaDevice, seeds: Array, step: int, expected: Array) -> None:
    """Of 65,536 equal logits the token is ⌊u·65,536⌋, give or take one by rounding."""
    logits = np.zeros((*expected.shape, _CODES), np.float32)
    found = _sample(device, logits, seeds, step).tokens
    assert np.abs(found - (2 * expected + 1) * _CODES // 2 ** (_BITS + 1)).max() <= 1


def _sample(device: CudaDevice, logits: Array, seeds: Array, step: int) -> runs.Sampled:
    found = runs.sample(
        device,
        runs.Sampling(
            conditional=logits,
            unconditional=logits,
            tokens=np.full(logits.shape[:2], -7, np.int32),
            parameters=np.tile(np.array([0, 1, 1, 0], np.float32), (len(logits), 1)),
            seeds=seeds,
            step=step,
        ),
    )
    assert found.error == 0
    return found
