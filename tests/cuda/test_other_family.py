"""A family whose shapes differ from step to step, captured into one graph like any other.

The toy of ``tests/toy`` decides two scales with a cache between them: the first run reads a cache
of no positions, the second one of what the first wrote. The engines are the CPU's, so all has to be
equal to what the CPU device gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fewstep.runtime.devices import Direct
from fewstep.runtime.generator import Generator
from fewstep.runtime.verify import verify


@pytest.fixture(scope="module")
def pair(
    open_cuda: Callable[..., Generator], cuda_bundle: Callable[[str], Path]
) -> Iterator[tuple[Generator, Generator]]:
    """The toy on the GPU and on the CPU."""
    path = cuda_bundle("toy")
    with (
        open_cuda(path, max_batch=4) as on_cuda,
        Generator.open(path, device="cpu", threads=1, max_batch=4) as on_cpu,
    ):
        yield on_cuda, on_cpu


@pytest.mark.parametrize(
    "request_",
    [
        {"class_ids": [0]},
        {"class_ids": [0, 1, 2, 0, 1, 2], "seed": 9},
        {"class_ids": [2, 1], "pull": 0.0},
        {"class_ids": [1], "pull": (0.5, 3.0), "heat": 0.0},
    ],
)
def test_images_and_tokens_are_the_cpus(
    pair: tuple[Generator, Generator], request_: dict[str, Any]
) -> None:
    found, expected = (generator.generate(**request_) for generator in pair)
    np.testing.assert_array_equal(found.images, expected.images, strict=True)
    np.testing.assert_array_equal(found.trace.tokens, expected.trace.tokens, strict=True)


def test_a_generation_is_one_captured_graph(pair: tuple[Generator, Generator]) -> None:
    generator = pair[0]
    request = generator.request(class_ids=[0, 1])
    key = generator.family.key(generator.model, request, 2)
    generator.run(request)
    assert not isinstance(generator.plans.get(key).replay, Direct)


def test_the_golden_rollouts_are_met(pair: tuple[Generator, Generator]) -> None:
    report = verify(pair[0])
    assert report.passed, report.as_dict()
