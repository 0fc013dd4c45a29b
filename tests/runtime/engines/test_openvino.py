"""OpenVINO engines: outputs in place, errors that name the graph, and what is kept of a graph.

The graph is built here with onnx: doubled = ids + ids, and product = values · weights with a matrix
of random weights, which NumPy computes as well. Golden rollouts, recorded by PyTorch, are
replayed for a bundle of every family.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.devices.cpu import CpuBuffer
from fewstep.runtime.engines import on_cpu, openvino
from fewstep.runtime.engines.compiled_cache import CompiledCache
from fewstep.runtime.engines.openvino import OpenVino, OpenVinoEngine
from fewstep.runtime.errors import DeviceError, EngineError, MissingDependencyError
from fewstep.runtime.generator import Generator
from fewstep.runtime.records import GraphInfo, TensorInfo
from fewstep.runtime.verify import verify

_WEIGHTS = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
_INFO = GraphInfo(
    file="graph.onnx",
    inputs={
        "ids": TensorInfo(dtype="int32", shape=("batch", 3)),
        "values": TensorInfo(dtype="float32", shape=("batch", 64)),
    },
    outputs={
        "doubled": TensorInfo(dtype="int32", shape=("batch", 3)),
        "product": TensorInfo(dtype="float32", shape=("batch", 32)),
    },
)


def _save(path: Path, product: str = "MatMul", domain: str = "") -> Path:
    graph = helper.make_graph(
        [
            helper.make_node("Add", ["ids", "ids"], ["doubled"]),
            helper.make_node(product, ["values", "weights"], ["product"], domain=domain),
        ],
        "graph",
        [
            helper.make_tensor_value_info("ids", TensorProto.INT32, ["batch", 3]),
            helper.make_tensor_value_info("values", TensorProto.FLOAT, ["batch", 64]),
        ],
        [
            helper.make_tensor_value_info("doubled", TensorProto.INT32, ["batch", 3]),
            helper.make_tensor_value_info("product", TensorProto.FLOAT, ["batch", 32]),
        ],
        [numpy_helper.from_array(_WEIGHTS, "weights")],
    )
    opset = [helper.make_opsetid("", 20), *([helper.make_opsetid(domain, 1)] if domain else [])]
    save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return path


@pytest.fixture(scope="module")
def graph_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _save(tmp_path_factory.mktemp("graph") / "graph.onnx")


def _engine(
    path: Path, precision: str = "fp32", cache: CompiledCache | None = None
) -> OpenVinoEngine:
    api = OpenVino.load()
    return OpenVinoEngine(api, "sums", path, _INFO, precision=precision, threads=1, cache=cache)


@pytest.fixture
def engine(graph_file: Path) -> OpenVinoEngine:
    return _engine(graph_file)


def _bindings(batch: int = 2, seed: int = 1) -> dict[str, CpuBuffer]:
    values = np.random.default_rng(seed).standard_normal((batch, 64)).astype(np.float32)
    return {
        "ids": CpuBuffer(np.arange(3 * batch, dtype=np.int32).reshape(batch, 3)),
        "values": CpuBuffer(values),
        "doubled": CpuBuffer(np.full((batch, 3), -1, np.int32)),
        "product": CpuBuffer(np.full((batch, 32), -1, np.float32)),
    }


def _error(bindings: dict[str, CpuBuffer]) -> float:
    """Largest error of the product, over its largest magnitude."""
    expected = bindings["values"].array.astype(np.float64) @ _WEIGHTS
    return float(np.abs(bindings["product"].array - expected).max() / np.abs(expected).max())


# --- running


def test_threads_that_load_at_once_share_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    made = list[object]()

    @functools.cache
    def slow() -> object:
        time.sleep(0.05)
        made.append(object())
        return made[-1]

    monkeypatch.setattr(openvino, "_loaded", slow)
    with ThreadPoolExecutor(4) as pool:
        found = [each.result() for each in [pool.submit(OpenVino.load) for _ in range(4)]]
    assert len(made) == 1 and all(each is made[0] for each in found)


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_outputs_are_written_in_place(engine: OpenVinoEngine, batch: int) -> None:
    bindings = _bindings(batch)
    engine.bind(bindings).run()
    assert (bindings["doubled"].array == 2 * np.arange(3 * batch).reshape(batch, 3)).all()
    assert _error(bindings) < 1e-5


def test_bindings_of_other_sizes_take_turns(engine: OpenVinoEngine) -> None:
    bindings = [_bindings(batch, seed=batch) for batch in (3, 1, 4)]
    runs = [engine.bind(each).run for each in bindings]
    for _ in range(2):
        for each in bindings:
            each["values"].array[:] *= 2
        for run in runs:
            run()
        assert max(map(_error, bindings)) < 1e-5


def test_what_is_bound_outlives_the_callers_buffers(engine: OpenVinoEngine) -> None:
    bound = engine.bind(_bindings(50))
    for _ in range(3):
        _bindings(50)  # would be given the memory
        bound.run()


def test_rows_of_larger_buffers_leave_the_rest_alone(engine: OpenVinoEngine) -> None:
    bindings = _bindings(4)
    engine.bind({name: buffer[1:3] for name, buffer in bindings.items()}).run()
    assert bindings["doubled"].array[:, 0].tolist() == [-1, 6, 12, -1]


def test_bf16_rounds_to_8_bits_and_fp32_does_not(graph_file: Path) -> None:
    if "bf16" not in OpenVino.load().precisions:
        pytest.skip("this CPU does not compute in bf16")
    bindings = _bindings()
    _engine(graph_file, "bf16").bind(bindings).run()
    assert 1e-4 < _error(bindings) < 2e-2


@pytest.mark.parametrize("family", ["tiny", "tiny_text", "var", "mar"])
def test_golden_rollouts_of_every_family_are_reproduced(
    family: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    shared = request.getfixturevalue(f"{family}_bundle")
    bundle = Bundle.read(shutil.copytree(shared, tmp_path / "copy"))
    with Generator.open(bundle, backend="openvino") as generator:
        report = verify(generator)
    assert report.passed and (report.backend, report.precision) == ("openvino", "fp32")


def test_threads_do_not_change_images(bundle_copy: Path) -> None:
    made = []
    for threads in (1, 2):
        with Generator.open(bundle_copy, backend="openvino", threads=threads) as generator:
            made.append(generator.generate(class_ids=[0, 1], seed=3).images)
    assert (made[0] == made[1]).all()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no stacks for signals")
def test_signals_still_come_after_generators_have_closed(bundle_copy: Path) -> None:
    """Where two of OpenVINO's Cores end in the order they came, the next signal kills."""
    code = f"""
        import signal
        from fewstep.runtime.generator import Generator

        signal.signal(signal.SIGTERM, lambda *_: print("came"))
        first, second = (
            Generator.open({str(bundle_copy)!r}, backend="openvino", threads=1) for _ in range(2)
        )
        first.close()
        second.close()
        del first, second
        signal.raise_signal(signal.SIGTERM)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, (signal.strsignal(-done.returncode), done.stderr)
    assert done.stdout == "came\n"


# --- errors


def test_buffers_that_do_not_fit_are_refused(engine: OpenVinoEngine) -> None:
    with pytest.raises(EngineError, match="graph 'sums', tensor 'values': expected float32"):
        engine.bind(_bindings() | {"values": CpuBuffer(np.zeros((2, 63), np.float32))})
    with pytest.raises(EngineError, match="no buffer bound to product"):
        engine.bind({name: each for name, each in _bindings().items() if name != "product"})


def test_a_closed_engine_says_so(engine: OpenVinoEngine) -> None:
    bound = engine.bind(_bindings())
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="'sums' is closed"):
        bound.run()
    with pytest.raises(EngineError, match="'sums' is closed"):
        engine.bind(_bindings())


def test_another_process_is_refused(
    engine: OpenVinoEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound = engine.bind(_bindings())
    monkeypatch.setattr(os, "getpid", lambda: 1)
    with pytest.raises(DeviceError, match="before a fork"):
        bound.run()


@pytest.mark.parametrize("damage", ["operator", "bytes", "tensor"])
def test_a_graph_that_is_refused_is_one_line(damage: str, tmp_path: Path) -> None:
    path = _save(tmp_path / "graph.onnx", *(("Odd", "vendor.x") if damage == "operator" else ()))
    if damage == "bytes":
        path.write_bytes(b"no graph")
    info = _INFO
    if damage == "tensor":
        info = _INFO.model_copy(
            update={"outputs": {**_INFO.outputs, "more": _INFO.outputs["product"]}}
        )
    with pytest.raises(EngineError, match="graph 'sums'") as raised:
        OpenVinoEngine(OpenVino.load(), "sums", path, info, precision="fp32")
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 2000


def test_a_precision_that_the_cpu_does_not_have(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = replace(OpenVino.load(), precisions=("fp32", "int8"))
    monkeypatch.setattr(openvino, "_loaded", lambda: api)
    with pytest.raises(
        EngineError, match="does not compute in bf16 on this CPU; it has fp32, int8"
    ):
        Generator.open(tiny_bundle, backend="openvino", precision="bf16")
    assert api.hint("int8") == "f32"


def test_an_absent_module_is_named_with_its_extra(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino, "_loaded", openvino._loaded.__wrapped__)  # what is kept stays
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'fewstep\[openvino\]'"):
        Generator.open(tiny_bundle, backend="openvino")


# --- what is kept


def _cache(folder: Path, version: str = "1") -> CompiledCache:
    return CompiledCache(folder, "sums-fp32", ("graph", version))


def test_a_compiled_graph_is_kept_and_used(graph_file: Path, tmp_path: Path) -> None:
    _engine(graph_file, cache=_cache(tmp_path))
    graph = _save(tmp_path / "other.onnx", "MatMul")
    graph.unlink()  # so only what is kept can be opened
    bindings = _bindings()
    _engine(graph, cache=_cache(tmp_path)).bind(bindings).run()
    assert _error(bindings) < 1e-5


@pytest.mark.parametrize("at", [0, 40, -1])
def test_a_damaged_file_is_compiled_again(graph_file: Path, tmp_path: Path, at: int) -> None:
    _engine(graph_file, cache=_cache(tmp_path))
    (kept,) = (tmp_path / "compiled").iterdir()
    content = bytearray(kept.read_bytes())
    content[at] ^= 1
    kept.write_bytes(content)
    bindings = _bindings()
    _engine(graph_file, cache=_cache(tmp_path)).bind(bindings).run()
    assert _error(bindings) < 1e-5
    assert _cache(tmp_path).read() is not None


@pytest.mark.parametrize("size", [0, 20, 32])
def test_a_file_that_was_cut_off_is_compiled_again(
    graph_file: Path, tmp_path: Path, size: int
) -> None:
    _engine(graph_file, cache=_cache(tmp_path)).close()
    (kept,) = (tmp_path / "compiled").iterdir()
    kept.write_bytes(kept.read_bytes()[:size])
    bindings = _bindings()
    _engine(graph_file, cache=_cache(tmp_path)).bind(bindings).run()
    assert _error(bindings) < 1e-5


def test_what_is_kept_may_go_while_it_is_used(graph_file: Path, tmp_path: Path) -> None:
    _engine(graph_file, cache=_cache(tmp_path)).close()
    engine, bindings = _engine(graph_file, cache=_cache(tmp_path)), _bindings()
    (kept,) = (tmp_path / "compiled").iterdir()
    kept.unlink()
    engine.bind(bindings).run()
    assert _error(bindings) < 1e-5


def test_a_file_of_something_else_is_compiled_again(graph_file: Path, tmp_path: Path) -> None:
    import io

    _cache(tmp_path).write(io.BytesIO(b"of another build"))
    bindings = _bindings()
    _engine(graph_file, cache=_cache(tmp_path)).bind(bindings).run()
    assert _error(bindings) < 1e-5


def test_only_the_last_of_a_name_is_kept(graph_file: Path, tmp_path: Path) -> None:
    for version in ("1", "2"):
        _engine(graph_file, cache=_cache(tmp_path, version))
    assert len(list((tmp_path / "compiled").iterdir())) == 1
    assert _cache(tmp_path).read() is None and _cache(tmp_path, "2").read() is not None


def test_a_folder_that_cannot_be_written_does_no_harm(graph_file: Path, tmp_path: Path) -> None:
    (tmp_path / "compiled").write_text("in the way")
    bindings = _bindings()
    _engine(graph_file, cache=_cache(tmp_path)).bind(bindings).run()
    assert _error(bindings) < 1e-5


def test_a_bundle_stays_whole(bundle_copy: Path) -> None:
    with Generator.open(bundle_copy, backend="openvino"):
        pass
    assert {each.suffix for each in (bundle_copy / "compiled").iterdir()} == {".bin"}
    assert not Bundle.read(bundle_copy).damage()


def test_what_is_kept_depends_on_the_contents_of_the_graph(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = []

    class Recorded(CompiledCache):
        def __init__(self, bundle: Path, name: str, key: tuple[str, ...]) -> None:
            keys.append((name, key))
            super().__init__(bundle, name, key)

    monkeypatch.setattr(on_cpu, "CompiledCache", Recorded)
    bundle = Bundle.read(bundle_copy)
    on_cpu.open_openvino(bundle, "decoder", "fp32", 1).close()
    ((name, key),) = keys
    assert name == "decoder-fp32" and bundle.graph_sha256("decoder") in key
