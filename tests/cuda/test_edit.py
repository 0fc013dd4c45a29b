"""Edits of pictures on the GPU: encoding, decoding and drawing are one captured graph, whose images
are the CPU's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fewstep.runtime.devices.cuda import CudaReplay
from fewstep.runtime.editing import ENCODER
from fewstep.runtime.generator import Generator

IMAGES = [5, 0, 2**60]


@pytest.mark.parametrize("name", ["tiny-cached", "tiny-var", "tiny-mar"])
def test_images_are_those_of_the_cpu(
    open_cuda: Callable[..., Generator], cuda_bundle: Callable[[str], Path], name: str
) -> None:
    """A second edit of other pictures and places replays the same graph."""
    path, random = cuda_bundle(name), np.random.default_rng(1)
    with (
        open_cuda(path, max_batch=2) as on_cuda,
        Generator.open(path, device="cpu", threads=1, max_batch=2) as on_cpu,
    ):
        model, family = on_cpu.model, on_cpu.family
        for seeds in (IMAGES, IMAGES[::-1]):
            image = random.random((3, 3, *model.info.image_size), np.float32)
            part = family.variation(model, 0.5, np.array(seeds, np.uint64))
            asked: dict[str, Any] = {"class_ids": [0, 3, 4], "seed": seeds}
            request = on_cpu.request(edit={"image": image, **part}, **asked)
            found, expected = (each.run(request) for each in (on_cuda, on_cpu))
            np.testing.assert_array_equal(found.images, expected.images, strict=True)
            for decided, wanted in expected.trace.decisions.items():
                np.testing.assert_array_equal(found.trace.decisions[decided], wanted, strict=True)
        key = family.key(model, request, 2)
        plan = on_cuda.plans.get(key)
        assert ENCODER in family.program(model, key).graphs
        assert isinstance(plan.replay, CudaReplay)
        assert len(plan.replay.captured) == 1
