"""TensorRT's engines of graphs with several dimensions that vary: the toy family of ``tests/toy``.

Its trunk reads a cache ``past [past, batch, width]``, of no position at first, and ``codes [batch,
new]``. Covered: the same tokens as on the CPU; which profile a context gets, over all inputs; what
is refused, and by which input. Under the emulated driver the module is a strict fake.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fewstep.runtime.devices import ALIGNMENT
from fewstep.runtime.devices.cuda_memory import CudaBuffer
from fewstep.runtime.errors import EngineError
from fewstep.runtime.generator import Generator
from fewstep.runtime.records import EngineBackend, ShapeRange
from fewstep.runtime.verify import verify

Journal = Callable[[str], list[Any]]

_MAX_BATCH, _AGREEMENT = 4, 0.98
_WIDTH, _CODES = 64, 24


@pytest.fixture(scope="module")
def path(
    cuda_bundle: Callable[[str], Path],
    built: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The toy with engines in fp32, tuned for 1 image and for 4."""
    copy = shutil.copytree(cuda_bundle("toy"), tmp_path_factory.mktemp("toy") / "toy")
    return built(copy, "fp32", 1, _MAX_BATCH)


@pytest.fixture(scope="module")
def on_engines(path: Path, backend: EngineBackend) -> Iterator[Generator]:
    with Generator.open(path, backend=backend, max_batch=_MAX_BATCH) as generator:
        yield generator


def _profiles(generator: Generator, graph: str) -> list[dict[str, ShapeRange]]:
    """As the manifest records them."""
    engines = generator.bundle.manifest.engines
    (found,) = (each.profiles for each in engines if each.graph == graph)
    return list(found)


@pytest.mark.parametrize("pull", [0.0, (0.5, 3.0)])
@pytest.mark.parametrize("images", [1, 3, 6])
def test_tokens_are_those_of_the_cpu(
    on_engines: Generator, path: Path, emulated: bool, images: int, pull: Any
) -> None:
    request: dict[str, Any] = {"class_ids": [image % 3 for image in range(images)], "seed": 4}
    found = on_engines.generate(**request, pull=pull)
    with Generator.open(path, device="cpu", backend="onnxruntime", threads=1) as on_cpu:
        expected = on_cpu.generate(**request, pull=pull)
    agreement = (found.trace.tokens == expected.trace.tokens).mean()
    assert agreement == 1 if emulated else agreement >= _AGREEMENT


def test_golden_rollouts_are_reproduced(on_engines: Generator) -> None:
    assert verify(on_engines).passed


def test_a_profile_spans_all_inputs_and_is_the_one_tuned_nearest(
    path: Path, backend: EngineBackend, journal: Journal
) -> None:
    """The nearest of all dimensions of all inputs together."""
    with Generator.open(path, backend=backend, max_batch=_MAX_BATCH) as generator:
        profiles = _profiles(generator, "trunk")
        for images in (1, 2, 3, 4):
            generator.generate(class_ids=[0] * images)
    assert [profile["codes"].opt for profile in profiles] == [(2, 4), (8, 4)]
    assert {profile["past"].min for profile in profiles} == {(0, 1, _WIDTH)}
    chosen: dict[tuple[int, ...], set[int]] = {}
    for entry in journal("enqueued"):
        if "past" not in entry["shapes"]:
            continue
        shapes, profile = entry["shapes"], profiles[entry["profile"]]
        assert all(profile[name].spans(shapes[name]) for name in profile)
        distances = [
            sum(int(np.abs(np.subtract(each[name].opt, shapes[name])).sum()) for name in each)
            for each in profiles
        ]
        assert distances[entry["profile"]] == min(distances)
        chosen.setdefault(shapes["past"], set()).add(entry["profile"])
    # Positions known before × rows of both halves.
    assert chosen == {
        (known, rows, _WIDTH): {0 if rows < 5 else 1} for known in (0, 1) for rows in (2, 4, 6, 8)
    }


def _bindings(batch: int, new: int, past: int) -> dict[str, Any]:
    """What the trunk is bound to; nothing runs, so that the addresses need not exist."""
    shapes = {
        "codes": (batch, new),
        "condition": (batch,),
        "past": (past, batch, _WIDTH),
        "logits": (batch, new, _CODES),
        "present": (new, batch, _WIDTH),
    }
    ids = ("codes", "condition")
    return {
        name: CudaBuffer(ALIGNMENT, shape, "int32" if name in ids else "float32")
        for name, shape in shapes.items()
    }


def test_shapes_within_the_profiles_are_bound(on_engines: Generator) -> None:
    for sizes in ((1, 1, 0), (8, 4, 1), (3, 2, 1)):
        on_engines.engines["trunk"].bind(_bindings(*sizes)).close()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((9, 1, 0), r"input 'codes': the engine takes \[1, 1\] … \[8, 4\] .*, got \[9, 1\]"),
        ((2, 5, 0), r"input 'codes': the engine takes \[1, 1\] … \[8, 4\] .*, got \[2, 5\]"),
        ((2, 4, 2), r"input 'past': the engine takes \[0, 1, 64\] … \[1, 8, 64\] .*, got \[2, 2, "),
    ],
)
def test_the_input_that_is_beyond_every_profile_is_named(
    on_engines: Generator, sizes: tuple[int, int, int], message: str
) -> None:
    with pytest.raises(EngineError, match=message):
        on_engines.engines["trunk"].bind(_bindings(*sizes))


def test_one_dimension_of_two_sizes_is_refused_before_tensorrt_sees_it(
    on_engines: Generator,
) -> None:
    other = {"past": CudaBuffer(ALIGNMENT, (1, 3, _WIDTH), "float32")}
    with pytest.raises(
        EngineError, match="'past': expected .* with batch 2, new 4.*, got .*1, 3, 64"
    ):
        on_engines.engines["trunk"].bind(_bindings(2, 4, 1) | other)
