"""Watched on the GPU, every step is a graph of its own: what is between steps is seen there, and
the images are those of one graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fewstep.runtime.devices import Array
from fewstep.runtime.devices.cuda import CudaReplay
from fewstep.runtime.generator import Generator
from fewstep.runtime.preview import StepPreview

Open = Callable[..., Generator]
_ASKED: dict[str, Any] = {"class_ids": [1, 3], "seed": 7, "steps": 4, "guidance": (0.0, 2.0)}


@pytest.fixture(scope="module")
def pair(open_cuda: Open, tiny_cuda_bundle: Path) -> Iterator[tuple[Generator, Generator]]:
    """A bundle on the GPU and on the CPU."""
    with (
        open_cuda(tiny_cuda_bundle, max_batch=4) as on_cuda,
        Generator.open(tiny_cuda_bundle, device="cpu", threads=1, max_batch=4) as on_cpu,
    ):
        yield on_cuda, on_cpu


@pytest.mark.parametrize("schedule", ["cosine", "policy"])
def test_previews_and_images_are_the_cpu_s(
    pair: tuple[Generator, Generator], schedule: str
) -> None:
    asked = {**_ASKED, "schedule": schedule}
    if schedule == "policy":
        del asked["guidance"]
    seen: list[list[Array]] = [[], []]
    made = []
    for generator, pixels in zip(pair, seen, strict=True):

        def watch(step: int, preview: StepPreview, pixels: list[Array] = pixels) -> None:
            assert step == len(pixels)
            pixels.append(preview.pixels)

        made.append(generator.run(generator.request(**asked), callback=watch))
    assert len(seen[0]) == 4
    for found, expected in zip(*seen, strict=True):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(seen[0][-1], made[0].images)
    unwatched = pair[0].generate(**asked)
    np.testing.assert_array_equal(unwatched.images, made[0].images)
    np.testing.assert_array_equal(unwatched.trace.tokens, made[0].trace.tokens)


def test_a_step_is_a_graph_and_later_ones_have_not_run(pair: tuple[Generator, Generator]) -> None:
    generator, _ = pair
    generator.generate(**{**_ASKED, "seed": 100})  # what later steps hold until they run
    request = generator.request(**_ASKED)
    key = generator.family.key(generator.model, request, 2)
    inputs = generator.family.inputs(generator.model, request, slice(0, 2))
    plan = generator.plans.get(key)
    assert isinstance(plan.replay, CudaReplay)
    final, seen = plan.run(inputs), list[Array]()
    generator.generate(**{**_ASKED, "seed": 100})

    def after_step(step: int, outputs: Mapping[str, Array]) -> None:
        seen.append(outputs["sampled"])

    plan.run(inputs, after_step)
    for step, sampled in enumerate(seen):
        same = [bool((sampled[each] == final["sampled"][each]).all()) for each in range(4)]
        assert same == [each <= step for each in range(4)]


def test_an_error_between_steps_ends_the_request_and_not_the_generator(
    pair: tuple[Generator, Generator],
) -> None:
    generator, _ = pair
    wanted, seen = generator.generate(**_ASKED), list[int]()

    def stop(step: int, preview: StepPreview) -> None:
        seen.append(step)
        if step == 1:
            raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        generator.run(generator.request(**_ASKED), callback=stop)
    assert seen == [0, 1]
    again = generator.generate(**_ASKED)
    np.testing.assert_array_equal(again.images, wanted.images)


def test_closing_releases_the_graphs_of_steps(
    open_cuda: Open, tiny_cuda_bundle: Path, live: Callable[[], dict[str, int]]
) -> None:
    before = live()
    with open_cuda(tiny_cuda_bundle) as generator:
        generator.run(generator.request(**_ASKED), callback=lambda step, preview: None)
    assert live() == before
