"""Philox4x32-10 against the published vectors, and the uniforms made of its words.

Covered: Random123's known answers, agreement with the generator written out in Python integers,
64-bit seeds, distinct streams per seed, step and position, and the open interval (0, 1).
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep.runtime.kernels.philox import philox, uniforms, unit

# Lines "philox4x32 10" of tests/kat_vectors in DEShawResearch/random123: counter, key, answer.
_KNOWN_ANSWERS = [
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
]
_HALF_STEP = 2.0**-24

Word = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize(("counter", "key", "answer"), _KNOWN_ANSWERS)
def test_known_answers(counter: str, key: str, answer: str) -> None:
    words = [int(word, 16) for word in (*counter.split(), *key.split())]
    assert [f"{word:08x}" for word in _run(*words)] == answer.split()


@given(counter=st.tuples(Word, Word, Word, Word), key=st.tuples(Word, Word))
def test_agrees_with_python_integers(
    counter: tuple[int, int, int, int], key: tuple[int, int]
) -> None:
    assert _run(*counter, *key) == _philox(counter, key)


@given(seed=st.integers(0, 2**64 - 1), step=st.integers(0, 1023), position=st.integers(0, 2**20))
def test_uniforms_are_the_upper_23_bits_plus_a_half(seed: int, step: int, position: int) -> None:
    words = _philox((position, step, 0, 0), (seed & 0xFFFFFFFF, seed >> 32))
    found = uniforms(np.uint64(seed), step, position)
    assert [float(uniform) for uniform in found] == [((w >> 9) + 0.5) / 2**23 for w in words[:2]]


@pytest.mark.parametrize(
    ("word", "expected"),
    [(0, _HALF_STEP), (511, _HALF_STEP), (512, 3 * _HALF_STEP), (0xFFFFFFFF, 1 - _HALF_STEP)],
)
def test_extreme_words_stay_inside_the_open_interval(word: int, expected: float) -> None:
    uniform = np.float32(unit(np.uint64(word)))
    assert float(uniform) == expected  # so it was exact in float32
    assert 0 < uniform < 1
    assert np.isfinite(np.log(-np.log(uniform)))


def test_uniforms_fill_the_interval_evenly() -> None:
    count = 100_000
    drawn = np.array([uniforms(np.uint64(2024), 3, n) for n in range(count)], np.float64)
    for uniform in drawn.T:
        # The mean of n uniforms has standard deviation 1/sqrt(12 n); 5 of them are allowed.
        assert abs(uniform.mean() - 0.5) < 5 / np.sqrt(12 * count)
        occupied = np.bincount((uniform * 1000).astype(int), minlength=1000)
        assert occupied.min() > 40  # expected 100 ± 10 each
    assert abs(np.atleast_2d(np.corrcoef(drawn.T))[0, 1]) < 5 / np.sqrt(count)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((1, 0, 0), (2, 0, 0)),
        ((1, 0, 0), (1 + 2**32, 0, 0)),
        ((1, 0, 0), (1, 1, 0)),
        ((1, 0, 0), (1, 0, 1)),
        ((0, 1, 0), (0, 0, 1)),
    ],
    ids=["seed", "upper half of the seed", "step", "position", "step is not position"],
)
def test_streams_differ(one: tuple[int, int, int], other: tuple[int, int, int]) -> None:
    first, second = (uniforms(np.uint64(seed), step, n) for seed, step, n in (one, other))
    assert first[0] != second[0]
    assert first[1] != second[1]


def _run(*words: int) -> list[int]:
    c0, c1, c2, c3, k0, k1 = (np.uint64(word) for word in words)
    return [int(word) for word in philox(c0, c1, c2, c3, k0, k1)]


def _philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> list[int]:
    """Figure 4 of the paper, word for word."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = divmod(c0 * 0xD2511F53, 2**32)
        high1, low1 = divmod(c2 * 0xCD9E8D57, 2**32)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return [c0, c1, c2, c3]
