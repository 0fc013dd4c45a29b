"""The small decoder's network: shapes, operations, and the width that they allow."""

from __future__ import annotations

import pytest
import torch

from fewstep.export.models.small_decoder import DecoderShape, SmallDecoder, flops_of, widest


def _shape(factor: int, width: int = 3, codes: int | None = 7) -> DecoderShape:
    return DecoderShape(codes=codes, channels=5, grid=(2, 4), factor=factor, width=width)


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 6, 8, 16])
@pytest.mark.parametrize("codes", [None, 7])
def test_images_are_as_large_as_the_map_times_the_factor(factor: int, codes: int | None) -> None:
    network = SmallDecoder(_shape(factor, codes=codes))
    image = network(network.shape.example)
    assert image.shape == (2, 3, 2 * factor, 4 * factor)
    assert image.min() >= 0
    assert image.max() <= 1


def test_tokens_of_numbers_are_the_map_row_by_row() -> None:
    network = SmallDecoder(_shape(2, codes=None))
    latents = torch.randn(2, 5, 2, 4, generator=torch.Generator().manual_seed(0))
    tokens = torch.stack([latents[:, :, row, column] for row in range(2) for column in range(4)], 1)
    torch.testing.assert_close(network(tokens), network(latents))


def test_operations_are_those_of_the_convolutions() -> None:
    """By hand: factor 4 on 2 × 4 positions, widths 6 and 3."""
    first, low, up = 5 * 6 * 8, 2 * 9 * 6 * 6 * 8, 9 * 6 * 12 * 8
    high, last = 2 * 9 * 3 * 3 * 32, 9 * 3 * 12 * 32
    assert flops_of(_shape(4)) == 2 * (first + low + up + high + last)


def test_the_widest_is_the_last_that_fits() -> None:
    for budget in (150_000, 1_234_567, 20_000_000):
        found = widest(lambda width: _shape(8, width), budget)
        assert found is not None
        assert flops_of(found) <= budget < flops_of(_shape(8, found.width + 1))
    assert widest(lambda width: _shape(8, width), flops_of(_shape(8, 1)) - 1) is None
