"""VAR on the GPU: all scales are one captured graph, whose results are the CPU's."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fewstep.runtime.devices import Direct
from fewstep.runtime.generator import Generator
from fewstep.runtime.records import EngineBackend

Pair = tuple[Generator, Generator]


@pytest.fixture(scope="module")
def pair(open_cuda: Callable[..., Generator], cuda_bundle: Callable[[str], Path]) -> Iterator[Pair]:
    """A VAR with a policy on the GPU and on the CPU, with the CPU's engines on both."""
    path = cuda_bundle("tiny-var")
    with (
        open_cuda(path, max_batch=2) as on_cuda,
        Generator.open(path, device="cpu", threads=1, max_batch=2) as on_cpu,
    ):
        yield on_cuda, on_cpu


@pytest.mark.parametrize(
    "request_",
    [
        {"class_ids": [0, 3, 4], "seed": 9},
        {"class_ids": [1, 2], "schedule": "policy"},
        {"class_ids": [2], "guidance": 0.0, "top_k": 40, "top_p": 1},
        {"class_ids": [1, 0], "guided_scales": 2, "reuse_first": True},
        {"class_ids": [4], "scales": 3, "sampling_temperature": 0},
    ],
)
def test_images_and_tokens_are_the_cpus(pair: Pair, request_: dict[str, Any]) -> None:
    found, expected = (generator.generate(**request_) for generator in pair)
    np.testing.assert_array_equal(found.images, expected.images, strict=True)
    np.testing.assert_array_equal(found.trace.tokens, expected.trace.tokens, strict=True)
    np.testing.assert_allclose(found.trace.parameters, expected.trace.parameters, rtol=1e-6)


def test_all_scales_are_one_captured_graph(pair: Pair) -> None:
    generator = pair[0]
    policy: dict[str, Any] = {"schedule": "policy"}
    for settings in ({}, policy):
        request = generator.request(class_ids=[0, 1], **settings)
        generator.run(request)
        key = generator.family.key(generator.model, request, 2)
        assert not isinstance(generator.plans.get(key).replay, Direct)


def test_engines_of_tensorrt_take_every_scale(
    cuda_bundle: Callable[[str], Path],
    built: Callable[..., Path],
    backend: EngineBackend,
    emulated: bool,
    tmp_path: Path,
) -> None:
    """Every scale's views begin where TensorRT may read, and lie within the profiles."""
    path = built(shutil.copytree(cuda_bundle("tiny-var"), tmp_path / "var"), "fp32", 1, 2)
    request: dict[str, Any] = {"class_ids": [0, 4, 2], "seed": 3}
    settings: list[dict[str, Any]] = [{}, {"schedule": "policy"}, {"guided_scales": 2}]
    with (
        Generator.open(path, backend=backend, max_batch=2) as on_engines,
        Generator.open(path, device="cpu", backend="onnxruntime", threads=1) as on_cpu,
    ):
        for more in settings:
            found, expected = (each.generate(**request, **more) for each in (on_engines, on_cpu))
            agreement = (found.trace.tokens == expected.trace.tokens).mean()
            assert agreement == 1 if emulated else agreement >= 0.98
