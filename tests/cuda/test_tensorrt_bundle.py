"""Bundles with TensorRT's engines: which backend is taken, what is refused, and what stays.

Under the emulated driver the modules are strict fakes, as in ``test_tensorrt.py``. Covered:
choosing a backend, and the reasons for not choosing one; damage; tensors inside graphs; the runtime
cache of TensorRT-RTX; that nothing is left, after errors too.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.devices import ALIGNMENT
from fewstep.runtime.devices.cuda_memory import CudaBuffer
from fewstep.runtime.errors import (
    BundleError,
    EngineError,
    MissingDependencyError,
)
from fewstep.runtime.generator import Generator
from fewstep.runtime.records import EngineBackend
from fewstep.runtime.result import Result

Alike = Callable[[Result, Result], None]
Counts = Callable[[], dict[str, int]]
Journal = Callable[[str], list[Any]]

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
        ({"compute_capabilities": ["5.0"]}, "for 5.0; the GPU here is"),
    ],
)
def test_an_engine_for_elsewhere_names_the_command_that_builds_one_for_here(
    engines_copy: Path, backend: EngineBackend, change: dict[str, Any], found: str
) -> None:
    _edit(engines_copy, change)
    command = f"fewstep build {engines_copy} --backend {backend}"
    with pytest.raises(EngineError, match=found) as raised:
        Generator.open(engines_copy, backend=backend)
    assert command in str(raised.value)
    assert "--precision fp32 --max-batch 4 --opt-batch 1" in str(raised.value)
    with Generator.open(engines_copy) as generator:
        assert generator.backend == "onnxruntime"
        assert found in generator.passed_over[backend]
        assert command in generator.passed_over[backend]


def test_a_damaged_engine_is_refused_by_name_and_passed_over_by_auto(
    engines_copy: Path, backend: EngineBackend
) -> None:
    file = next((engines_copy / "engines").glob("policy.fp32*"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(BundleError, match="SHA-256"):
        Generator.open(engines_copy, backend=backend)
    with Generator.open(engines_copy) as generator:
        assert generator.backend == "onnxruntime"
        assert "SHA-256" in generator.passed_over[backend]


def test_an_engine_that_is_none_is_refused(
    engines_copy: Path, backend: EngineBackend, live: Counts, tensorrt_module: Any
) -> None:
    """With a manifest that vouches for it, as after a build by other means."""
    before, engines = live(), None if tensorrt_module is None else tensorrt_module.live()
    records = [each.model_dump() for each in Bundle.read(engines_copy).manifest.engines]
    for record in records:
        if record["graph"] == "decoder":
            record["file"] = "engines/none.engine"
    bundle = Bundle.read(engines_copy).update({"engines/none.engine": bytes(999)}, engines=records)
    with pytest.raises(EngineError, match=r"does not begin like|does not load"):
        Generator.open(bundle, backend=backend)
    assert live() == before
    gc.collect()  # the traceback held on to the engines
    assert (None if tensorrt_module is None else tensorrt_module.live()) == engines


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
    from fewstep.build.layers import first_divergence
    from fewstep.build.subgraph_tensorrt import opened_walk

    bundle = Bundle.read(engine_bundle)
    with opened_walk(bundle, backend) as walk:
        found = first_divergence(bundle, graph, precision, walk=walk, backend=backend)
    assert found.first is None
    assert found.compared > 5


def test_layers_name_the_node_whose_weight_was_changed(
    engines_copy: Path, backend: EngineBackend
) -> None:
    import onnx

    from fewstep.build.layers import first_divergence
    from fewstep.build.subgraph_tensorrt import opened_walk

    bundle = Bundle.read(engines_copy)
    info = bundle.graph("decoder", "fp16")
    model = onnx.load(engines_copy / info.file)
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
    engines_copy: Path, backend: EngineBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    _edit(engines_copy, {"version": "9.9.9"})
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match="onnxruntime.* is not installed") as raised:
        Generator.open(engines_copy, device="cuda")
    assert f"{backend}: " in str(raised.value)
    assert f"fewstep build {engines_copy} --backend {backend}" in str(raised.value)


# --- what stays


def test_nothing_of_tensorrt_outlives_an_error(
    engine_bundle: Path, backend: EngineBackend, tensorrt_module: Any
) -> None:
    """The frames of an exception may live longer than the CUDA context."""
    before = None if tensorrt_module is None else tensorrt_module.live()
    with pytest.raises(ZeroDivisionError), Generator.open(engine_bundle) as generator:
        generator.generate(class_ids=[0], steps=1)
        raise ZeroDivisionError
    kept = None
    try:
        with Generator.open(engine_bundle, backend=backend) as generator:
            generator.engines["decoder"].bind(
                {
                    "tokens": CudaBuffer(ALIGNMENT, (99, 16), "int32"),
                    "image": CudaBuffer(ALIGNMENT, (99, 3, 8, 8), "float32"),
                }
            )
    except EngineError as error:
        kept = error
    assert kept is not None
    assert (None if tensorrt_module is None else tensorrt_module.live()) == before


@pytest.mark.parametrize("kind", ["link", "folder"])
def test_a_runtime_cache_elsewhere_is_left_alone(
    engines_copy: Path, backend: EngineBackend, tmp_path: Path, kind: str
) -> None:
    engine = next((engines_copy / "engines").glob("decoder.fp32*.engine"))
    cache, outside = engine.with_name(f"{engine.name}.cache"), tmp_path / "outside"
    outside.write_bytes(b"not to be read or written")
    cache.mkdir() if kind == "folder" else cache.symlink_to(outside)
    with Generator.open(engines_copy, backend=backend) as generator:
        generator.generate(class_ids=[0], steps=1)
    assert outside.read_bytes() == b"not to be read or written"
    assert cache.is_dir() if kind == "folder" else cache.is_symlink()


def test_nothing_is_left(
    engine_bundle: Path, backend: EngineBackend, live: Counts, tensorrt_module: Any
) -> None:
    before, engines = live(), None if tensorrt_module is None else tensorrt_module.live()
    with Generator.open(engine_bundle, backend=backend) as generator:
        generator.generate(class_ids=[0], steps=2)
    assert live() == before
    assert (None if tensorrt_module is None else tensorrt_module.live()) == engines


def test_the_runtime_cache_is_kept_beside_the_engine(
    engines_copy: Path, backend: EngineBackend, journal: Journal
) -> None:
    wish: dict[str, Any] = {"class_ids": [0, 1], "steps": 2, "schedule": "policy"}
    with Generator.open(engines_copy, backend=backend) as generator:
        first = generator.generate(**wish)
    caches = sorted((engines_copy / "engines").glob("*.cache"))
    if backend == "tensorrt":  # which compiles nothing as it runs
        assert not caches
        return
    assert [path.name.partition(".")[0] for path in caches] == ["decoder", "policy", "transformer"]
    assert journal("compiled")
    before, stamps = len(journal("compiled")), [path.stat().st_mtime_ns for path in caches]
    with Generator.open(engines_copy, backend=backend) as generator:
        np.testing.assert_array_equal(generator.generate(**wish).images, first.images)
    assert len(journal("compiled")) == before
    assert [path.stat().st_mtime_ns for path in caches] == stamps


@pytest.mark.parametrize("content", [b"", b"garbage", bytes(4096)])
def test_a_runtime_cache_that_does_not_fit_is_replaced(
    engines_copy: Path, backend: EngineBackend, content: bytes
) -> None:
    for engine in (engines_copy / "engines").glob("*.fp32*.engine"):
        engine.with_name(f"{engine.name}.cache").write_bytes(content)
    with Generator.open(engines_copy, backend=backend) as generator:
        generator.generate(class_ids=[0], steps=1)
    cache = next((engines_copy / "engines").glob("decoder.fp32*.cache"))
    replaced = cache.read_bytes() not in (b"", b"garbage", bytes(4096))
    assert replaced == (backend == "tensorrt-rtx")


def test_a_runtime_cache_that_cannot_be_kept_does_no_harm(
    engines_copy: Path, backend: EngineBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fewstep.runtime.unfinished.new_file", full)
    with Generator.open(engines_copy, backend=backend) as generator:
        generator.generate(class_ids=[0], steps=1)
    assert not list((engines_copy / "engines").glob("*.cache"))


def _edit(bundle: Path, change: dict[str, Any]) -> None:
    manifest = json.loads((bundle / "bundle.json").read_text())
    for engine in manifest["engines"]:
        engine.update(change)
    (bundle / "bundle.json").write_text(json.dumps(manifest))
