"""TensorRT's engines in the decode loop, of both modules.

Under the emulated driver the modules are strict fakes (tests/emulated_cuda/fake_tensorrt) whose
engines ONNX Runtime computes; on a GPU the real modules build and run, as far as installed.

Covered: images as on the CPU, in fp32 and fp16; the whole loop captured; contexts, profiles, shapes
and memory; choosing a backend, and the reasons for not choosing one; damage; the runtime cache of
TensorRT-RTX; that nothing is left.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import onnx
import pytest

from fewstep.build.engines import build_engines, target
from fewstep.build.layers import first_divergence
from fewstep.build.marked_tensorrt import opened_walk
from fewstep.build.tensorrt_builder import build_here
from fewstep.build.variants import add_variant
from fewstep.runtime import bench
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.device import ALIGNMENT
from fewstep.runtime.device.cuda_driver import compute_capability
from fewstep.runtime.device.cuda_memory import CudaBuffer
from fewstep.runtime.engine.compatibility import RTX_CAPABILITIES
from fewstep.runtime.engine.tensorrt_api import MODULES
from fewstep.runtime.errors import (
    BundleError,
    EngineError,
    FewstepError,
    MissingDependencyError,
    OutOfMemoryError,
    RequestError,
)
from fewstep.runtime.generator import Generator
from fewstep.runtime.manifest import BuildOptions, EngineBackend, Precision
from fewstep.runtime.result import Result
from fewstep.runtime.verify import verify

Alike = Callable[[Result, Result], None]
Counts = Callable[[], dict[str, int]]
Journal = Callable[[str], list[Any]]

_MAX_BATCH = 4


def _backends() -> list[EngineBackend]:
    """Those that build for the GPU at hand; both where there is none and all is skipped."""
    try:
        capability = compute_capability()
    except FewstepError:
        return list(MODULES)
    return ["tensorrt", "tensorrt-rtx"] if capability in RTX_CAPABILITIES else ["tensorrt"]


@pytest.fixture(scope="session", params=_backends())
def backend(request: pytest.FixtureRequest, emulated: bool) -> EngineBackend:
    """A backend whose module is there."""
    name: EngineBackend = request.param
    if not emulated and importlib.util.find_spec(MODULES[name]) is None:
        pytest.skip(f"{MODULES[name]} is not installed")
    return name


@pytest.fixture(scope="session", autouse=True)
def module(backend: EngineBackend, emulated: bool) -> Iterator[ModuleType | None]:
    """The fake module, installed; ``None`` where the real one is used."""
    if not emulated:
        yield None
        return
    from tests.emulated_cuda.fake_tensorrt import installed, make

    version = "10.3.0" if backend == "tensorrt" else "1.7.1.116"
    # A process of the builder's own would import the real module.
    here = mock.patch("fewstep.build.engines.build_engine", build_here)
    with installed(make(backend, version, compute_capability())) as made, here:
        yield made


@pytest.fixture
def journal(module: Any) -> Journal:
    """What the fake module did since the test began, by kind; skips with the real one."""
    if module is None:
        pytest.skip("only the fake module keeps a journal")
    before = len(module.journal)
    return lambda kind: [entry for entry in module.journal[before:] if entry.kind == kind]


def _built(path: Path, backend: EngineBackend, precision: Precision, *opt_batch: int) -> Path:
    options = BuildOptions(max_batch=_MAX_BATCH, opt_batch=opt_batch or (1,))
    build_engines(path, target(backend, precision, options))
    return path


@pytest.fixture(scope="session")
def engine_bundle(
    backend: EngineBackend, tiny_cuda_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The tiny bundle with engines in fp16 and, built last, fp32 with two profiles."""
    copy = shutil.copytree(tiny_cuda_bundle, tmp_path_factory.mktemp(backend) / "tiny")
    add_variant(Bundle.read(copy), "fp16")
    _built(copy, backend, "fp16")
    return _built(copy, backend, "fp32", 1, _MAX_BATCH)


@pytest.fixture
def bundle_copy(engine_bundle: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    ignored = shutil.ignore_patterns("*.cache")  # of tests before
    return shutil.copytree(engine_bundle, tmp_path / "copy", ignore=ignored)


@pytest.fixture(scope="session")
def on_engines(engine_bundle: Path, backend: EngineBackend) -> Iterator[Generator]:
    """The tiny bundle on engines in fp32, opened once."""
    with Generator.open(
        engine_bundle, backend=backend, precision="fp32", max_batch=_MAX_BATCH
    ) as generator:
        yield generator


# --- the same images


@pytest.mark.parametrize("schedule", ["cosine", "policy"])
@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("images", [1, 3, 6])
def test_images_are_those_of_the_cpu(
    on_engines: Generator,
    on_cpu: Generator,
    assert_alike: Alike,
    schedule: str,
    steps: int,
    images: int,
) -> None:
    wish: dict[str, Any] = {"class_ids": [image % 5 for image in range(images)], "seed": 3}
    wish |= {"schedule": schedule, "steps": steps}
    assert_alike(on_engines.generate(**wish), on_cpu.generate(**wish))


def test_without_guidance_too(
    on_engines: Generator, on_cpu: Generator, assert_alike: Alike
) -> None:
    wish: dict[str, Any] = {"class_ids": [1, 2], "guidance": 0.0, "steps": 3}
    assert_alike(on_engines.generate(**wish), on_cpu.generate(**wish))


def test_the_sample(
    sample_cuda_bundle: Path, tmp_path: Path, backend: EngineBackend, assert_alike: Alike
) -> None:
    bundle = _built(shutil.copytree(sample_cuda_bundle, tmp_path / "sample"), backend, "fp32")
    wish: dict[str, Any] = {"class_ids": [3, 7], "steps": 4, "seed": 5}
    with Generator.open(bundle, device="cpu", threads=1) as cpu:
        expected = cpu.generate(**wish)
    with Generator.open(bundle, backend=backend) as engines:
        assert_alike(engines.generate(**wish), expected)


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
    runs = 5 + 5 + 1  # transformer, policy, decoder
    assert captured.count(True) == runs
    assert captured[-runs:] == [True] * runs  # after one run outside
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


def test_one_context_for_each_batch(
    engine_bundle: Path, backend: EngineBackend, journal: Journal
) -> None:
    with Generator.open(engine_bundle, backend=backend, precision="fp32") as generator:
        for _ in range(2):
            generator.generate(class_ids=[0, 1], steps=3)
            generator.generate(class_ids=[0, 1], steps=2)
    made = journal("context")
    assert {entry["strategy"] for entry in made} == {"USER_MANAGED"}
    # Transformer: 1 for the unconditional logits, 2 at step 0, 4 after it. Decoder: 2.
    assert len(made) == 3 + 1


def test_engines_share_one_block_of_memory(on_engines: Generator, journal: Journal) -> None:
    on_engines.generate(class_ids=[4, 3, 2], steps=6, schedule="policy")
    blocks = {entry["memory"] for entry in journal("enqueued")}
    assert len(blocks) == 1
    ((address, size),) = blocks
    assert address % ALIGNMENT == 0
    assert size == max(engine.scratch_bytes for engine in _engines(on_engines))


def test_a_batch_beyond_the_profiles_says_how_to_build_for_more(on_engines: Generator) -> None:
    decoder = on_engines.engines["decoder"]
    rows = _MAX_BATCH + 1
    bindings: dict[str, Any] = {
        "tokens": CudaBuffer(ALIGNMENT, (rows, 16), "int32"),
        "image": CudaBuffer(ALIGNMENT, (rows, 3, 8, 8), "float32"),
    }
    with pytest.raises(
        EngineError, match=f"takes up to {_MAX_BATCH} rows, got {rows}.*--max-batch"
    ):
        decoder.enqueue(bindings)


def test_requests_are_cut_to_what_the_engines_take(
    engine_bundle: Path, backend: EngineBackend, on_cpu: Generator, assert_alike: Alike
) -> None:
    wish: dict[str, Any] = {"class_ids": [0, 1, 2, 3, 4, 0], "steps": 2}
    with Generator.open(engine_bundle, backend=backend, precision="fp32") as generator:
        assert generator.max_batch == _MAX_BATCH  # not the 8 that are usual
        assert_alike(generator.generate(**wish), on_cpu.generate(**wish))


def test_engines_for_single_images_generate_and_verify(
    tiny_cuda_bundle: Path, tmp_path: Path, backend: EngineBackend
) -> None:
    bundle = shutil.copytree(tiny_cuda_bundle, tmp_path / "one")
    build_engines(bundle, target(backend, "fp32", BuildOptions(max_batch=1)))
    with Generator.open(bundle, backend=backend) as generator:
        assert len(generator.generate(class_ids=[0, 1, 2], steps=2).images) == 3
        assert verify(generator).passed
        with pytest.raises(RequestError, match="batch 2 exceeds the 1 images"):
            bench.contender(generator, batch=2, steps=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": None}, "no buffer bound to tokens"),
        ({"tokens": CudaBuffer(ALIGNMENT + 4, (1, 16), "int32")}, "multiples of 256"),
        ({"tokens": CudaBuffer(ALIGNMENT, (1, 15), "int32")}, r"expected int32 \['batch', 16\]"),
        ({"image": CudaBuffer(ALIGNMENT, (1, 3, 8, 8), "float16")}, "expected float32"),
        ({"mask": CudaBuffer(ALIGNMENT, (1, 16), "int32")}, "no input or output 'mask'"),
        ({"tokens": CudaBuffer(ALIGNMENT, (2, 16), "int32")}, "expected 2 rows, .* got 1"),
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
        on_engines.engines["decoder"].enqueue(changed)


def test_closed_engines_are_refused(engine_bundle: Path, backend: EngineBackend) -> None:
    with Generator.open(engine_bundle, backend=backend) as generator:
        engine = generator.engines["decoder"]
    with pytest.raises(EngineError, match="is closed"):
        engine.enqueue({})
    engine.close()


def test_engines_of_other_shapes_are_refused(bundle_copy: Path, backend: EngineBackend) -> None:
    """TensorRT would write beyond the buffers."""
    manifest = json.loads((bundle_copy / "bundle.json").read_text())
    manifest["model"]["image_size"] = [4, 4]
    for graphs in (manifest["graphs"], *manifest["variants"].values()):
        graphs["decoder"]["outputs"]["image"]["shape"][2:] = [4, 4]
    (bundle_copy / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(EngineError, match=r"the engine has .*8, 8\], the manifest says .*4, 4\]"):
        Generator.open(bundle_copy, backend=backend)


def test_out_of_memory_drops_plans_and_contexts_and_tries_again(
    engine_bundle: Path, backend: EngineBackend, module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if module is None:
        pytest.skip("a real module does not run out of memory when asked to")
    with Generator.open(engine_bundle, backend=backend) as generator:
        generator.generate(class_ids=[0], steps=1)
        kind = type(_engines(generator)[0]._held.engine)
        create, failures = kind.create_execution_context, [1]

        def scarce(self: Any, *arguments: Any, **options: Any) -> Any:
            if failures and failures.pop():
                severity = module.ILogger.Severity.ERROR
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


# --- which backend


def test_auto_takes_engines_and_the_precision_built_last(
    engine_bundle: Path, backend: EngineBackend
) -> None:
    with Generator.open(engine_bundle) as generator:
        assert (generator.backend, generator.device.name) == (backend, "cuda")
        assert generator.precision == "fp32"
        assert generator.passed_over.keys() == {"tensorrt", "tensorrt-rtx"} - (
            {backend, "tensorrt-rtx"} if backend == "tensorrt" else {backend}
        )
    with Generator.open(engine_bundle, precision="fp16") as generator:
        assert (generator.backend, generator.precision) == (backend, "fp16")


def test_auto_on_the_cpu_is_onnxruntime(engine_bundle: Path) -> None:
    with Generator.open(engine_bundle, device="cpu") as generator:
        assert (generator.backend, generator.precision) == ("onnxruntime", "fp32")
        assert generator.passed_over == {}


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"version": "9.9.9"}, "9.9.9"),
        ({"compute_capabilities": ["9.0"]}, "for 9.0; the GPU here is"),
    ],
)
def test_an_engine_for_elsewhere_names_the_command_that_builds_one_for_here(
    bundle_copy: Path, backend: EngineBackend, change: dict[str, Any], found: str
) -> None:
    _edit(bundle_copy, change)
    command = f"fewstep build {bundle_copy} --backend {backend}"
    with pytest.raises(EngineError, match=found) as raised:
        Generator.open(bundle_copy, backend=backend)
    assert command in str(raised.value)
    assert f"--precision fp32 --max-batch {_MAX_BATCH} --opt-batch 1" in str(raised.value)
    with Generator.open(bundle_copy) as generator:
        assert generator.backend == "onnxruntime"
        assert found in generator.passed_over[backend]
        assert command in generator.passed_over[backend]


def test_a_damaged_engine_is_refused_by_name_and_passed_over_by_auto(
    bundle_copy: Path, backend: EngineBackend
) -> None:
    file = next((bundle_copy / "engines").glob("policy.fp32*"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(BundleError, match="SHA-256"):
        Generator.open(bundle_copy, backend=backend)
    with Generator.open(bundle_copy) as generator:
        assert generator.backend == "onnxruntime"
        assert "SHA-256" in generator.passed_over[backend]


def test_an_engine_that_is_none_is_refused(
    bundle_copy: Path, backend: EngineBackend, live: Counts, module: Any
) -> None:
    """With a manifest that vouches for it, as after a build by other means."""
    before, engines = live(), None if module is None else module.live()
    records = [each.model_dump() for each in Bundle.read(bundle_copy).manifest.engines]
    for record in records:
        if record["graph"] == "decoder":
            record["file"] = "engines/none.engine"
    bundle = Bundle.read(bundle_copy).update({"engines/none.engine": bytes(999)}, engines=records)
    with pytest.raises(EngineError, match=r"does not begin like|does not load"):
        Generator.open(bundle, backend=backend)
    assert live() == before
    gc.collect()  # the traceback held on to the engines
    assert (None if module is None else module.live()) == engines


def test_a_backend_that_is_asked_for_never_falls_back(
    tiny_cuda_bundle: Path, backend: EngineBackend
) -> None:
    with pytest.raises(EngineError, match=f"no engines of {backend}.*fewstep build"):
        Generator.open(tiny_cuda_bundle, backend=backend)
    with Generator.open(tiny_cuda_bundle, threads=1) as generator:
        assert generator.backend == "onnxruntime"
        assert "no engines" in generator.passed_over[backend]


def test_a_missing_precision_is_told(engine_bundle: Path, backend: EngineBackend) -> None:
    with pytest.raises(EngineError, match=f"no bf16 engines of {backend}.*--precision bf16"):
        Generator.open(engine_bundle, backend=backend, precision="bf16")


# --- looking inside


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("graph", ["transformer", "policy", "decoder"])
def test_layers_of_intact_graphs_do_not_diverge(
    engine_bundle: Path, backend: EngineBackend, graph: str, precision: str
) -> None:
    bundle = Bundle.read(engine_bundle)
    with opened_walk(bundle, backend) as walk:
        found = first_divergence(bundle, graph, precision, walk=walk, backend=backend)
    assert found.first is None
    assert found.compared > 5


def test_layers_name_the_node_whose_weight_was_changed(
    bundle_copy: Path, backend: EngineBackend
) -> None:
    bundle = Bundle.read(bundle_copy)
    info = bundle.graph("decoder", "fp16")
    model = onnx.load(bundle_copy / info.file)
    weights = {each.name: each for each in model.graph.initializer}
    node = [each for each in model.graph.node if each.op_type == "Conv"][2]
    weight = weights[node.input[1]]
    changed = onnx.numpy_helper.to_array(weight).copy()
    changed[0] = -changed[0]
    weight.CopyFrom(onnx.numpy_helper.from_array(changed, weight.name))
    variants = bundle.manifest.model_dump()["variants"]
    variants["fp16"]["decoder"]["file"] = "broken.onnx"
    broken = bundle.update({"broken.onnx": model.SerializeToString()}, variants=variants)
    with opened_walk(broken, backend) as walk:
        found = first_divergence(broken, "decoder", "fp16", walk=walk, backend=backend)
    assert found.first is not None
    assert found.first.node == node.name


def test_where_nothing_runs_every_reason_is_told(
    bundle_copy: Path, backend: EngineBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    _edit(bundle_copy, {"version": "9.9.9"})
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match="onnxruntime.* is not installed") as raised:
        Generator.open(bundle_copy, device="cuda")
    assert f"{backend}: " in str(raised.value)
    assert f"fewstep build {bundle_copy} --backend {backend}" in str(raised.value)


# --- what stays


def test_nothing_of_tensorrt_outlives_an_error(
    engine_bundle: Path, backend: EngineBackend, module: Any
) -> None:
    """The frames of an exception may live longer than the CUDA context."""
    before = None if module is None else module.live()
    with pytest.raises(ZeroDivisionError), Generator.open(engine_bundle) as generator:
        generator.generate(class_ids=[0], steps=1)
        raise ZeroDivisionError
    kept = None
    try:
        with Generator.open(engine_bundle, backend=backend) as generator:
            generator.engines["decoder"].enqueue(
                {
                    "tokens": CudaBuffer(ALIGNMENT, (99, 16), "int32"),
                    "image": CudaBuffer(ALIGNMENT, (99, 3, 8, 8), "float32"),
                }
            )
    except EngineError as error:
        kept = error
    assert kept is not None
    assert (None if module is None else module.live()) == before


@pytest.mark.parametrize("kind", ["link", "folder"])
def test_a_runtime_cache_elsewhere_is_left_alone(
    bundle_copy: Path, backend: EngineBackend, tmp_path: Path, kind: str
) -> None:
    engine = next((bundle_copy / "engines").glob("decoder.fp32*.engine"))
    cache, outside = engine.with_name(f"{engine.name}.cache"), tmp_path / "outside"
    outside.write_bytes(b"not to be read or written")
    cache.mkdir() if kind == "folder" else cache.symlink_to(outside)
    with Generator.open(bundle_copy, backend=backend) as generator:
        generator.generate(class_ids=[0], steps=1)
    assert outside.read_bytes() == b"not to be read or written"
    assert cache.is_dir() if kind == "folder" else cache.is_symlink()


def test_nothing_is_left(
    engine_bundle: Path, backend: EngineBackend, live: Counts, module: Any
) -> None:
    before, engines = live(), None if module is None else module.live()
    with Generator.open(engine_bundle, backend=backend) as generator:
        generator.generate(class_ids=[0], steps=2)
    assert live() == before
    assert (None if module is None else module.live()) == engines


def test_the_runtime_cache_is_kept_beside_the_engine(
    bundle_copy: Path, backend: EngineBackend, journal: Journal
) -> None:
    if backend != "tensorrt-rtx":
        return  # only TensorRT-RTX compiles as it runs
    wish: dict[str, Any] = {"class_ids": [0, 1], "steps": 2, "schedule": "policy"}
    with Generator.open(bundle_copy, backend=backend) as generator:
        first = generator.generate(**wish)
    caches = sorted((bundle_copy / "engines").glob("*.fp32*.cache"))
    assert [path.name.partition(".")[0] for path in caches] == ["decoder", "policy", "transformer"]
    assert journal("compiled")
    before, stamps = len(journal("compiled")), [path.stat().st_mtime_ns for path in caches]
    with Generator.open(bundle_copy, backend=backend) as generator:
        np.testing.assert_array_equal(generator.generate(**wish).images, first.images)
    assert len(journal("compiled")) == before
    assert [path.stat().st_mtime_ns for path in caches] == stamps


@pytest.mark.parametrize("content", [b"", b"garbage", bytes(4096)])
def test_a_runtime_cache_that_does_not_fit_is_replaced(
    bundle_copy: Path, backend: EngineBackend, content: bytes
) -> None:
    if backend != "tensorrt-rtx":
        return
    for engine in (bundle_copy / "engines").glob("*.fp32*.engine"):
        engine.with_name(f"{engine.name}.cache").write_bytes(content)
    with Generator.open(bundle_copy, backend=backend) as generator:
        generator.generate(class_ids=[0], steps=1)
    cache = next((bundle_copy / "engines").glob("decoder.fp32*.cache"))
    assert cache.read_bytes() not in (b"", b"garbage", bytes(4096))


def test_a_runtime_cache_that_cannot_be_kept_does_no_harm(
    bundle_copy: Path, backend: EngineBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(**_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fewstep.runtime.files.tempfile.mkstemp", full)
    with Generator.open(bundle_copy, backend=backend) as generator:
        generator.generate(class_ids=[0], steps=1)
    assert not list((bundle_copy / "engines").glob("*.cache"))


def _edit(bundle: Path, change: dict[str, Any]) -> None:
    manifest = json.loads((bundle / "bundle.json").read_text())
    for engine in manifest["engines"]:
        engine.update(change)
    (bundle / "bundle.json").write_text(json.dumps(manifest))


def _engines(generator: Generator) -> list[Any]:
    return list(generator.engines.values())
