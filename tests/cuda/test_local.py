"""Local steps of masked decoding on the GPU: images and tokens are those of the CPU, and
engines of TensorRT take the shapes of every step."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fewstep.runtime.devices.cuda import CudaReplay
from fewstep.runtime.generator import Generator
from fewstep.runtime.records import EngineBackend
from fewstep.runtime.result import Result
from fewstep.runtime.verify import verify

Alike = Callable[[Result, Result], None]
Open = Callable[..., Generator]

_SETTINGS: list[dict[str, Any]] = [
    {"order": "halton", "steps": 6, "local_steps": 1},
    {"order": "random", "steps": 7, "local_steps": 2, "full_first": 1, "guidance": "0,2,0,2,1,1,0"},
    {"order": "halton-rolled", "steps": 5, "local_steps": 4, "guidance": 0, "top_p": 0.9},
    {"order": "halton", "steps": 2, "local_steps": 1},  # a group of all positions
]


def test_images_are_those_of_the_cpu(
    open_cuda: Open, cuda_bundle: Callable[[str], Path], assert_alike: Alike
) -> None:
    """Captured as one graph; also with given tokens, and in the golden rollouts."""
    path = cuda_bundle("tiny-cached")
    free = np.stack([np.roll(np.arange(16) > 4, image) for image in range(3)])
    edit = {"given": np.full((3, 16), 7), "mask": free}
    with (
        open_cuda(path, max_batch=2) as on_cuda,
        Generator.open(path, device="cpu", threads=1, max_batch=2) as on_cpu,
    ):
        for settings in _SETTINGS:
            request: dict[str, Any] = {"class_ids": [0, 3, 4], "seed": 9, **settings}
            found, expected = (each.generate(**request) for each in (on_cuda, on_cpu))
            assert_alike(found, expected)
        chosen = on_cuda.request(class_ids=[2, 1, 0], edit=edit, **_SETTINGS[0])
        assert_alike(on_cuda.run(chosen), on_cpu.run(chosen))
        plan = on_cuda.plans.get(on_cuda.family.key(on_cuda.model, chosen, 2))
        assert isinstance(plan.replay, CudaReplay)
        assert len(plan.replay.captured) == 1
        assert verify(on_cuda).passed


def test_engines_of_tensorrt_take_every_step(
    cuda_bundle: Callable[[str], Path],
    built: Callable[..., Path],
    backend: EngineBackend,
    tmp_path: Path,
) -> None:
    """Every step's views begin where TensorRT may read, and lie within the profiles."""
    path = built(shutil.copytree(cuda_bundle("tiny-cached"), tmp_path / "cached"), "fp32", 1, 2)
    request: dict[str, Any] = {"class_ids": [0, 4, 2], "seed": 3}
    with (
        Generator.open(path, backend=backend, max_batch=2) as on_engines,
        Generator.open(path, device="cpu", backend="onnxruntime", threads=1) as on_cpu,
    ):
        for more in _SETTINGS:
            found, expected = (each.generate(**request, **more) for each in (on_engines, on_cpu))
            assert (found.tokens == expected.tokens).mean() > 0.98
