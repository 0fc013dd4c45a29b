"""Initial tokens: masked, kept and invalid positions, for one half and for two.

Covered: everything and nothing masked, kept tokens at both ends of the codebook, tokens that are
no codes, any mask value but 0, the two halves with guidance, and NumPy's answer for drawn inputs.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fewstep.runtime.kernels.initial_tokens import initial_tokens

_CODES, _MASK = 10, 12  # 10 and 11 are neither code nor mask
Ids = npt.NDArray[np.int32]
Mask = npt.NDArray[np.uint8]


def _initial(given: Ids, mask: Mask, *, halves: int = 1, flag: int = 0) -> tuple[Ids, int]:
    tokens = np.full((halves * len(given), given.shape[1]), -77, np.int32)
    error = np.array([flag], np.int32)
    initial_tokens(
        given=given, mask=mask, codebook_size=_CODES, mask_token=_MASK, tokens=tokens, error=error
    )
    return tokens, int(error[0])


def _ids(*rows: list[int]) -> Ids:
    return np.array(rows, np.int32)


@pytest.mark.parametrize("halves", [1, 2])
def test_everything_masked(halves: int) -> None:
    tokens, error = _initial(_ids([0, 1, 2], [3, 4, 5]), np.ones((2, 3), np.uint8), halves=halves)
    assert tokens.tolist() == [[_MASK] * 3] * 2 * halves
    assert error == 0


@pytest.mark.parametrize("halves", [1, 2])
def test_nothing_masked(halves: int) -> None:
    ids = [[0, 9, 5], [9, 0, 1]]
    tokens, error = _initial(_ids(*ids), np.zeros((2, 3), np.uint8), halves=halves)
    assert tokens.tolist() == ids * halves
    assert error == 0


@pytest.mark.parametrize("halves", [1, 2])
def test_kept_tokens_stay_where_they_are(halves: int) -> None:
    mask = np.array([[0, 1, 0], [1, 1, 0]], np.uint8)
    tokens, error = _initial(_ids([0, 1, 2], [3, 4, 9]), mask, halves=halves)
    assert tokens.tolist() == [[0, _MASK, 2], [_MASK, _MASK, 9]] * halves
    assert error == 0


@pytest.mark.parametrize("value", [1, 2, 128, 255])
def test_any_mask_value_but_zero_masks(value: int) -> None:
    tokens, _ = _initial(_ids([4, 4]), np.array([[value, 0]], np.uint8))
    assert tokens.tolist() == [[_MASK, 4]]


@pytest.mark.parametrize("halves", [1, 2])
@pytest.mark.parametrize("invalid", [-1, _CODES, _CODES + 1, _MASK, 2**31 - 1, -(2**31)])
def test_kept_tokens_that_are_no_codes_count_as_masked_and_raise_the_flag(
    invalid: int, halves: int
) -> None:
    """The mask token too: what is kept must be decided."""
    given = _ids([1, 2], [3, invalid])
    tokens, error = _initial(given, np.zeros((2, 2), np.uint8), halves=halves)
    assert tokens.tolist() == [[1, 2], [3, _MASK]] * halves
    assert error == 1


def test_what_is_masked_may_be_anything() -> None:
    given = _ids([-1, _CODES, 2**31 - 1, -(2**31)])
    tokens, error = _initial(given, np.ones((1, 4), np.uint8))
    assert tokens.tolist() == [[_MASK] * 4]
    assert error == 0


def test_the_flag_is_never_taken_down() -> None:
    assert _initial(_ids([1]), np.zeros((1, 1), np.uint8), flag=1)[1] == 1


@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 40)),
    halves=st.integers(1, 2),
    data=st.data(),
)
def test_agrees_with_numpy(shape: tuple[int, int], halves: int, data: st.DataObject) -> None:
    given = data.draw(hnp.arrays(np.int32, shape, elements=st.integers(-2, _MASK + 1)))
    mask = data.draw(hnp.arrays(np.uint8, shape, elements=st.sampled_from([0, 0, 1, 255])))
    copies = given.copy(), mask.copy()
    tokens, error = _initial(given, mask, halves=halves)
    known = (mask == 0) & np.isin(given, np.arange(_CODES))
    np.testing.assert_array_equal(tokens, np.tile(np.where(known, given, _MASK), (halves, 1)))
    assert error == (known != (mask == 0)).any()
    assert (given == copies[0]).all()
    assert (mask == copies[1]).all()
