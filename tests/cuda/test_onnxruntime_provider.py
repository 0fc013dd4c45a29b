"""The CUDA provider of ONNX Runtime, where onnxruntime-gpu is: close to the CPU, not captured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.devices import Direct
from fewstep.runtime.devices.cuda import CudaDevice
from fewstep.runtime.engines.onnxruntime import OnnxRuntimeEngine, require_cuda_provider
from fewstep.runtime.errors import MissingDependencyError
from fewstep.runtime.families.masked.program import MaskedKey
from fewstep.runtime.generator import Generator
from fewstep.runtime.result import Result

Alike = Callable[[Result, Result], None]


@pytest.fixture(scope="module")
def on_provider(tiny_cuda_bundle: Path, cubin: bytes) -> Iterator[Generator]:
    """The tiny bundle on the provider's engines."""
    try:
        require_cuda_provider()
    except MissingDependencyError as error:
        pytest.skip(str(error))
    bundle, device = Bundle.read(tiny_cuda_bundle), CudaDevice(cubin)
    engines = {
        name: OnnxRuntimeEngine(name, bundle.graph_path(name), info, cuda=device.cuda_stream)
        for name, info in bundle.manifest.graphs.items()
    }
    with Generator(bundle, device, engines, max_batch=4) as generator:
        yield generator


@pytest.mark.parametrize("schedule", ["cosine", "policy"])
def test_images_are_close_to_the_cpus(
    on_provider: Generator, on_cpu: Generator, assert_close: Alike, schedule: str
) -> None:
    for seed in range(3):
        request: dict[str, Any] = {"class_ids": [4, 0, 1, 3, 3], "seed": seed, "steps": 3}
        found = on_provider.generate(**request, schedule=schedule)
        assert_close(found, on_cpu.generate(**request, schedule=schedule))


def test_plans_are_enqueued_step_by_step(on_provider: Generator) -> None:
    plan = on_provider.plans.get(MaskedKey(1, 2, guided=True, policy=None))
    assert isinstance(plan.replay, Direct)
