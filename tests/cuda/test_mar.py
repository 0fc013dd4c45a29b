"""MAR on the GPU: a generation is one captured graph, or several that are launched in turn, and its
results are the CPU's.

Covered: every setting of the loop on the same engines as the CPU's, bit by bit; kept latents; one
graph below the most nodes, and above it a graph for the body of every diffusion; times of stages
that are repeated; engines of TensorRT for every shape of a decode.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fewstep.runtime.devices import cuda
from fewstep.runtime.devices.cuda import CudaReplay
from fewstep.runtime.generator import Generator
from fewstep.runtime.program import Repeat
from fewstep.runtime.records import EngineBackend

Pair = tuple[Generator, Generator]

_CACHED: dict[str, Any] = {"refresh": 3, "refresh_first": 1, "recompute": 0.1}
_SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "annealed": {"diffusion_steps": "5:2", "temperature": 0.9},
    "unguided": {"guidance": 1.0, "iterations": 3},
    "constant": {"guidance": (3.0, 3.0), "diffusion_steps": "ddim4"},
    "every token alone": {"iterations": 16, "diffusion_steps": "1"},
    "cached": _CACHED,
    "cached, guidance reused": {**_CACHED, "reuse_guidance": True},
    "all positions between refreshes": {**_CACHED, "recompute": 1.0, "reuse_guidance": True},
}


@pytest.fixture(scope="module")
def pair(open_cuda: Callable[..., Generator], cuda_bundle: Callable[[str], Path]) -> Iterator[Pair]:
    """A MAR on the GPU and on the CPU, with the CPU's engines on both."""
    path = cuda_bundle("tiny-mar")
    with (
        open_cuda(path, max_batch=2) as on_cuda,
        Generator.open(path, device="cpu", threads=1, max_batch=2) as on_cpu,
    ):
        yield on_cuda, on_cpu


@pytest.mark.parametrize("settings", _SETTINGS.values(), ids=_SETTINGS)
def test_images_and_tokens_are_the_cpus(pair: Pair, settings: dict[str, Any]) -> None:
    request: dict[str, Any] = {"class_ids": [0, 3, 4], "seed": 9, **settings}
    found, expected = (generator.generate(**request) for generator in pair)
    np.testing.assert_array_equal(found.images, expected.images, strict=True)
    for name, decided in expected.trace.decisions.items():
        np.testing.assert_array_equal(found.trace.decisions[name], decided, strict=True)


def test_kept_latents_stay(pair: Pair) -> None:
    random = np.random.default_rng(0)
    given = np.zeros((2, 4, 4), np.bool_)
    given[:, :2] = True
    edit = {"latents": random.standard_normal((2, 3, 8, 8)).astype(np.float32), "given": given}
    found, expected = (
        generator.run(generator.request(class_ids=[1, 2], edit=edit, iterations=4))
        for generator in pair
    )
    np.testing.assert_array_equal(found.images, expected.images, strict=True)
    np.testing.assert_array_equal(found.trace.latents[:, :, :4], edit["latents"][:, :, :4])


def _replay(generator: Generator, **settings: Any) -> tuple[CudaReplay, int]:
    """The replay of a plan, and how many diffusions it has."""
    request = generator.request(class_ids=[0, 1], **settings)
    generator.run(request)
    plan = generator.plans.get(generator.family.key(generator.model, request, 2))
    assert isinstance(plan.replay, CudaReplay)
    return plan.replay, sum(isinstance(op, Repeat) for op in plan.program.ops)


def test_a_short_generation_is_one_graph(pair: Pair) -> None:
    replay, diffusions = _replay(pair[0], iterations=4, diffusion_steps="3")
    (captured,) = replay.captured
    assert diffusions == 4
    assert (captured.times, len(captured.graph)) == (1, replay.nodes)


def test_beyond_the_most_nodes_every_diffusion_is_a_graph_of_its_own(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bodies of the diffusions are launched as often as there are steps, with what is between
    them as graphs in turn; the images stay the same."""
    monkeypatch.setattr(cuda, "MOST_NODES", 50)
    settings: dict[str, Any] = {"iterations": 5, "diffusion_steps": "9:3", "seed": 4}
    replay, diffusions = _replay(pair[0], **settings)
    assert [each.times for each in replay.captured] == [1, 9, 1, 7, 1, 6, 1, 4, 1, 3, 1]
    assert diffusions == 5
    found, expected = (each.generate(class_ids=[0, 1], **settings) for each in pair)
    np.testing.assert_array_equal(found.images, expected.images, strict=True)


def test_stages_that_are_repeated_count_as_often(
    cuda_bundle: Callable[[str], Path],
    open_cuda: Callable[..., Generator],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cuda, "MOST_NODES", 0)
    with open_cuda(cuda_bundle("tiny-mar"), profile=True) as generator:
        timings = generator.generate(class_ids=[0], iterations=2, diffusion_steps="20").timings_ms
    assert {"encoder", "decoder_start", "decoder_rest", "head", "diffusion"} <= timings.keys()
    assert timings["head"] > timings["readout"]


def test_engines_of_tensorrt_take_every_iteration(
    cuda_bundle: Callable[[str], Path],
    built: Callable[..., Path],
    backend: EngineBackend,
    tmp_path: Path,
) -> None:
    """Every iteration's views begin where TensorRT may read, and lie within the profiles."""
    path = built(shutil.copytree(cuda_bundle("tiny-mar"), tmp_path / "mar"), "fp32", 1, 2)
    request: dict[str, Any] = {"class_ids": [0, 4, 2], "seed": 3}
    with (
        Generator.open(path, backend=backend, max_batch=2) as on_engines,
        Generator.open(path, device="cpu", backend="onnxruntime", threads=1) as on_cpu,
    ):
        for more in _SETTINGS.values():
            found, expected = (each.generate(**request, **more) for each in (on_engines, on_cpu))
            near = np.isclose(found.tokens, expected.tokens, rtol=0, atol=1e-3)
            assert near.mean() > 0.98
