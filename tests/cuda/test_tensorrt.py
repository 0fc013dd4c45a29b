"""TensorRT's engines in the decode loop, of both modules.

Under the emulated driver the modules are strict fakes (tests/emulated_cuda/fake_tensorrt) whose
engines ONNX Runtime computes; on a GPU the real modules build and run, as far as installed.

Covered: images as on the CPU, in fp32 and fp16; the whole loop captured; contexts, profiles,
shapes, memory and its end. Choosing, damage and caches are in ``test_tensorrt_bundle.py``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from fewstep.runtime import bench
from fewstep.runtime.devices import ALIGNMENT
from fewstep.runtime.devices.cuda_memory import CudaBuffer
from fewstep.runtime.errors import (
    EngineError,
    OutOfMemoryError,
    RequestError,
)
from fewstep.runtime.generator import Generator
from fewstep.runtime.records import BuildOptions, EngineBackend
from fewstep.runtime.result import Result
from fewstep.runtime.verify import verify

Alike = Callable[[Result, Result], None]
Counts = Callable[[], dict[str, int]]
Journal = Callable[[str], list[Any]]

MAX_BATCH = 4  # of conftest's engines


# --- the same images


@pytest.mark.parametrize("schedule", ["cosine", "policy"])
@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("images", [1, 3, 6])
def test_images_are_those_of_the_cpu(
    on_engines: Generator,
    on_cpu: Generator,
    assert_close: Alike,
    schedule: str,
    steps: int,
    images: int,
) -> None:
    wish: dict[str, Any] = {"class_ids": [image % 5 for image in range(images)], "seed": 3}
    wish |= {"schedule": schedule, "steps": steps}
    assert_close(on_engines.generate(**wish), on_cpu.generate(**wish))


def test_without_guidance_too(
    on_engines: Generator, on_cpu: Generator, assert_close: Alike
) -> None:
    wish: dict[str, Any] = {"class_ids": [1, 2], "guidance": 0.0, "steps": 3}
    assert_close(on_engines.generate(**wish), on_cpu.generate(**wish))


def test_the_sample(
    sample_cuda_bundle: Path,
    tmp_path: Path,
    backend: EngineBackend,
    built: Callable[..., Path],
    assert_close: Alike,
) -> None:
    bundle = built(shutil.copytree(sample_cuda_bundle, tmp_path / "sample"), "fp32")
    wish: dict[str, Any] = {"class_ids": [3, 7], "steps": 4, "seed": 5}
    with Generator.open(bundle, device="cpu", threads=1) as cpu:
        expected = cpu.generate(**wish)
    with Generator.open(bundle, backend=backend) as engines:
        assert_close(engines.generate(**wish), expected)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_golden_rollouts_are_reproduced(
    engine_bundle: Path, backend: EngineBackend, precision: str
) -> None:
    with Generator.open(engine_bundle, backend=backend, precision=precision) as generator:
        assert (generator.backend, generator.precision) == (backend, precision)
        report = verify(generator)
    assert report.passed, report


# --- how engines are used


def test_the_whole_loop_is_one_graph(on_engines: Generator, journal: Journal) -> None:
    wish: dict[str, Any] = {"class_ids": [0, 1], "steps": 5, "schedule": "policy"}
    on_engines.generate(**wish)
    enqueued = journal("enqueued")
    captured = [entry["captured"] for entry in enqueued]
    runs = 4 + 5 + 1  # transformer, policy, decoder
    assert captured.count(True) == runs
    assert captured[-runs:] == [True] * runs  # after runs outside
    warm_up = {"tensorrt": 1, "tensorrt-rtx": 3}[on_engines.backend]
    # The passes of step 0 that are kept, if they were new.
    assert captured.count(False) - warm_up * runs in (0, 1, 2)
    before = len(enqueued)
    on_engines.generate(**{**wish, "seed": 9})
    assert len(journal("enqueued")) == before  # replayed, not enqueued again


def test_profiles_are_chosen_by_batch(
    engine_bundle: Path, backend: EngineBackend, journal: Journal
) -> None:
    """Two profiles: tuned for 1 image and for 4; the transformer runs twice as many rows."""
    with Generator.open(engine_bundle, backend=backend, precision="fp32") as generator:
        for images in (1, 2, 3, 4):
            generator.generate(class_ids=[0] * images, steps=2)
    chosen: dict[int, set[int]] = {}
    for entry in journal("enqueued"):
        rows = {shape[0] for name, shape in entry["shapes"].items() if name == "tokens"}
        if "condition" in entry["shapes"]:
            chosen.setdefault(rows.pop(), set()).add(entry["profile"])
    # Tuned for 2 and for 8 rows: 5 lies in the middle and stays with the first.
    assert chosen == {1: {0}, 2: {0}, 3: {0}, 4: {0}, 6: {1}, 8: {1}}


def test_contexts_belong_to_a_plan_and_keep_their_addresses(
    engine_bundle: Path, backend: EngineBackend, journal: Journal
) -> None:
    """A captured graph holds what its contexts were bound to: no other plan may bind them again."""
    with Generator.open(engine_bundle, backend=backend, precision="fp32") as generator:
        for _ in range(2):
            generator.generate(class_ids=[0, 1], steps=3)
            generator.generate(class_ids=[0, 1], steps=2)
        plans = 2
    made = journal("context")
    assert {entry["strategy"] for entry in made} == {"USER_MANAGED"}
    # A plan: the transformer on 4 rows, the decoder. Once: the unconditional logits of an image,
    # and step 0 of two classes.
    assert len(made) == plans * 2 + 2
    bound = {
        (_frozen(entry["shapes"]), _frozen(entry["addresses"])) for entry in journal("enqueued")
    }
    assert len(bound) == plans * 2 + 2


def _frozen(values: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(values.items()))


def test_a_plan_that_is_dropped_takes_its_contexts_along(
    engine_bundle: Path, backend: EngineBackend, tensorrt_module: Any
) -> None:
    if tensorrt_module is None:
        pytest.skip(f"the real module of {backend} does not count its contexts")
    with Generator.open(engine_bundle, backend=backend, max_plan_bytes=1) as generator:
        counts = []
        for steps in (2, 3, 4):
            generator.generate(class_ids=[0, 1], steps=steps)
            counts.append(tensorrt_module.live())
    assert counts[0] == counts[1] == counts[2]


def test_engines_share_one_block_of_memory(on_engines: Generator, journal: Journal) -> None:
    on_engines.generate(class_ids=[4, 3, 2], steps=6, schedule="policy")
    blocks = {entry["memory"] for entry in journal("enqueued")}
    assert len(blocks) == 1
    ((address, size),) = blocks
    assert address % ALIGNMENT == 0
    assert size == max(engine.scratch_bytes for engine in _engines(on_engines))


def test_a_batch_beyond_the_profiles_says_how_to_build_for_more(on_engines: Generator) -> None:
    decoder = on_engines.engines["decoder"]
    rows = MAX_BATCH + 1
    bindings: dict[str, Any] = {
        "tokens": CudaBuffer(ALIGNMENT, (rows, 16), "int32"),
        "image": CudaBuffer(ALIGNMENT, (rows, 3, 8, 8), "float32"),
    }
    most, got = rf"\[{MAX_BATCH}, 16\]", rf"\[{rows}, 16\]"
    message = rf"input 'tokens': the engine takes \[1, 16\] … {most} .*, got {got}; .*--max-batch"
    with pytest.raises(EngineError, match=message):
        decoder.bind(bindings)


def test_requests_are_cut_to_what_the_engines_take(
    engine_bundle: Path, backend: EngineBackend, on_cpu: Generator, assert_close: Alike
) -> None:
    wish: dict[str, Any] = {"class_ids": [0, 1, 2, 3, 4, 0], "steps": 2}
    with Generator.open(engine_bundle, backend=backend, precision="fp32") as generator:
        assert generator.max_batch == MAX_BATCH  # not the 8 that are usual
        assert_close(generator.generate(**wish), on_cpu.generate(**wish))


def test_engines_for_single_images_generate_and_verify(
    tiny_cuda_bundle: Path, tmp_path: Path, backend: EngineBackend
) -> None:
    from fewstep.build.engines import build_engines
    from fewstep.build.target import target

    bundle = shutil.copytree(tiny_cuda_bundle, tmp_path / "one")
    build_engines(bundle, target(backend, "fp32", BuildOptions(max_batch=1)))
    with Generator.open(bundle, backend=backend) as generator:
        assert len(generator.generate(class_ids=[0, 1, 2], steps=2).images) == 3
        assert verify(generator).passed
        with pytest.raises(RequestError, match="batch 2 exceeds the 1 images"):
            bench.contender(generator, batch=2, settings={"steps": 1})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": None}, "no buffer bound to tokens"),
        ({"tokens": CudaBuffer(ALIGNMENT + 4, (1, 16), "int32")}, "multiples of 256"),
        ({"tokens": CudaBuffer(ALIGNMENT, (1, 15), "int32")}, r"expected int32 \[batch, 16\]"),
        ({"image": CudaBuffer(ALIGNMENT, (1, 3, 8, 8), "float16")}, "expected float32"),
        ({"mask": CudaBuffer(ALIGNMENT, (1, 16), "int32")}, "no input or output 'mask'"),
        (
            {"tokens": CudaBuffer(ALIGNMENT, (2, 16), "int32")},
            r"'image': .* with batch 2, got float32 \[1,",
        ),
    ],
)
def test_wrong_bindings_are_refused(
    on_engines: Generator, change: dict[str, Any], message: str
) -> None:
    bindings: dict[str, Any] = {
        "tokens": CudaBuffer(ALIGNMENT, (1, 16), "int32"),
        "image": CudaBuffer(ALIGNMENT, (1, 3, 8, 8), "float32"),
    }
    changed = {name: b for name, b in {**bindings, **change}.items() if b is not None}
    with pytest.raises(EngineError, match=message):
        on_engines.engines["decoder"].bind(changed)


def test_closed_engines_are_refused(engine_bundle: Path, backend: EngineBackend) -> None:
    with Generator.open(engine_bundle, backend=backend) as generator:
        engine = generator.engines["decoder"]
    with pytest.raises(EngineError, match="is closed"):
        engine.bind({})
    engine.close()


def test_engines_of_other_shapes_are_refused(engines_copy: Path, backend: EngineBackend) -> None:
    """TensorRT would write beyond the buffers."""
    manifest = json.loads((engines_copy / "bundle.json").read_text())
    manifest["model"]["image_size"] = [4, 4]
    for graphs in (manifest["graphs"], *manifest["variants"].values()):
        graphs["decoder"]["outputs"]["image"]["shape"][2:] = [4, 4]
    (engines_copy / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(EngineError, match=r"the engine has .*8, 8\], the manifest says .*4, 4\]"):
        Generator.open(engines_copy, backend=backend)


def test_out_of_memory_drops_plans_and_contexts_and_tries_again(
    engine_bundle: Path,
    backend: EngineBackend,
    tensorrt_module: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if tensorrt_module is None:
        pytest.skip("a real module does not run out of memory when asked to")
    with Generator.open(engine_bundle, backend=backend) as generator:
        generator.generate(class_ids=[0], steps=1)
        kind = type(_engines(generator)[0]._held.engine)
        create, failures = kind.create_execution_context, [1]

        def scarce(self: Any, *arguments: Any, **options: Any) -> Any:
            if failures and failures.pop():
                severity = tensorrt_module.ILogger.Severity.ERROR
                self.logger.log(severity, "Error Code 2: OutOfMemory (Requested size was 9 bytes.)")
                return None
            return create(self, *arguments, **options)

        monkeypatch.setattr(kind, "create_execution_context", scarce)
        generator.generate(class_ids=[0, 1], steps=1)
        assert not failures
        failures.extend([1, 1, 1])
        with pytest.raises(OutOfMemoryError, match="OutOfMemory.*use a smaller batch"):
            generator.generate(class_ids=[0, 1, 2], steps=1)
        failures.clear()
        generator.generate(class_ids=[0, 1, 2], steps=1)


def _engines(generator: Generator) -> list[Any]:
    return list(generator.engines.values())
