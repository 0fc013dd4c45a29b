"""The masked decode on a device with memory and a queue of its own, as a GPU has them.

It has to give the same results as on the CPU device: nothing is read back in between, every input
is sent, every output is fetched, nothing is read before it is written (``queue_device.py``).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.runtime.queue_device import QueuedEngine, QueueDevice

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.engines.onnxruntime import OnnxRuntimeEngine
from fewstep.runtime.errors import EngineError
from fewstep.runtime.families.masked.program import MaskedKey
from fewstep.runtime.generator import Generator


def _open(folder: Path, *, capturable: bool = True, **options: Any) -> Generator:
    bundle, device = Bundle.read(folder), QueueDevice()
    engines = {
        name: QueuedEngine(
            OnnxRuntimeEngine(name, bundle.graph_path(name), info, threads=1),
            device,
            capturable=capturable,
        )
        for name, info in bundle.manifest.graphs.items()
    }
    return Generator(bundle, device, engines, **options)


@pytest.fixture(params=[True, False], ids=["captured", "enqueued"])
def queued(request: pytest.FixtureRequest, tiny_bundle: Path) -> Iterator[Generator]:
    """The tiny bundle on a device of its own kind."""
    with _open(tiny_bundle, capturable=request.param, max_batch=2) as opened:
        yield opened
        assert isinstance(opened.device, QueueDevice)
        assert (opened.device.captured > 0) == request.param


@pytest.mark.parametrize(
    "settings",
    [
        {"schedule": "cosine", "steps": 4},
        {"schedule": "linear", "steps": 3, "guidance": 0},
        {"schedule": "cosine", "steps": 1, "sampling_temperature": 0.5},
        {"schedule": "policy", "steps": 4},
        {"schedule": "policy", "steps": 1},
    ],
)
def test_results_are_those_of_the_cpu_device(
    generator: Generator, queued: Generator, settings: dict[str, Any]
) -> None:
    for classes, seed in (([3, 1, 4], 7), ([0, 0, 2], 2**50), ([3, 1, 4], 7)):
        found = queued.generate(class_ids=classes, seed=seed, **settings)
        expected = generator.generate(class_ids=classes, seed=seed, **settings)
        np.testing.assert_array_equal(found.trace.tokens, expected.trace.tokens)
        np.testing.assert_array_equal(found.trace.sampled, expected.trace.sampled)
        np.testing.assert_allclose(found.trace.parameters, expected.trace.parameters, rtol=1e-4)
        assert np.abs(found.images.astype(int) - expected.images).max() <= 1


def test_without_reuse_and_with_text_too(text_generator: Generator, tiny_text_bundle: Path) -> None:
    text = np.random.default_rng(8).standard_normal((2, 3, 12), np.float32)
    expected = text_generator.generate(text=text, steps=3, seed=5)
    for constants in (True, False):
        with _open(tiny_text_bundle, constants=constants) as queued:
            found = queued.generate(text=text, steps=3, seed=5)
        np.testing.assert_array_equal(found.trace.tokens, expected.trace.tokens)


def test_edits_are_those_of_the_cpu_device(generator: Generator, queued: Generator) -> None:
    rng = np.random.default_rng(2)
    for _ in range(3):
        given = rng.integers(0, 24, (2, 16)).astype(np.int32)
        mask = rng.integers(0, 2, (2, 16)).astype(np.uint8)
        request = generator.request(
            class_ids=[1, 2],
            seed=3,
            steps=3,
            schedule="policy",
            edit={"given": given, "mask": mask},
        )
        found, expected = (each.run(request).trace for each in (queued, generator))
        np.testing.assert_array_equal(found.tokens, expected.tokens)
        np.testing.assert_array_equal(found.sampled, expected.sampled)


def test_the_error_flag_is_fetched_and_taken_down_by_the_next_run(queued: Generator) -> None:
    plan = queued.plans.get(MaskedKey(1, 2, guided=False, policy=None))
    parameters = np.array([[[0.5, 0, 1, 0]], [[0, 0, 1, 0]]], np.float32)
    expected = plan.run({"parameters": parameters})
    unusable = np.where(np.arange(4) == 2, np.float32(np.nan), parameters)
    with pytest.raises(EngineError):
        plan.run({"parameters": unusable})
    found = plan.run({"parameters": parameters})
    np.testing.assert_array_equal(found["tokens"], expected["tokens"])
