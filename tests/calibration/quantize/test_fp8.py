"""fp8 by nvidia-modelopt in another interpreter, which is played by a script.

The real one was run by hand; here a stand-in takes its place, with the same command line, so that
tests see what is asked of it and what becomes of what it leaves.
"""

from __future__ import annotations

import shutil
import stat
import sys
import textwrap
from pathlib import Path

import numpy as np
import onnx
import pytest

from fewstep.calibration.quantize import fp8
from fewstep.calibration.quantize.flow import QuantizeRequest, quantize
from fewstep.calibration.quantize.lint import lint
from fewstep.calibration.quantize.settings import Settings
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import EngineError, MissingDependencyError, RequestError
from fewstep.runtime.generator import Generator

from .graphs import MATMULS, only, rollouts, run, transformer

_FEW = Settings(precision="fp8", rollouts=3, held_out=2, generation={"steps": 2})

_STAND_IN = '''
"""``modelopt.onnx.quantization``: int8 graphs of ONNX Runtime, with fp8 in the place of int8."""
import argparse, re, sys
import numpy as np, onnx
from onnx import TensorProto, helper, numpy_helper

parser = argparse.ArgumentParser()
for name in ("onnx_path", "output_path", "quantize_mode", "calibration_data_path",
             "calibration_method", "high_precision_dtype", "log_level"):
    parser.add_argument(f"--{name}", required=True)
for name in ("disable_mha_qdq", "dq_only"):
    parser.add_argument(f"--{name}", action="store_true")
for name in ("calibration_eps", "op_types_to_quantize", "nodes_to_quantize"):
    parser.add_argument(f"--{name}", nargs="+", required=True)
asked = parser.parse_args()
assert (asked.quantize_mode, asked.calibration_method) == ("fp8", "max")
assert asked.dq_only and asked.disable_mha_qdq and asked.high_precision_dtype == "fp32"
data = np.load(asked.calibration_data_path)
model = onnx.load(asked.onnx_path)
assert {each.name for each in model.graph.input} == set(data.files)
chosen = [node for node in model.graph.node
          if any(re.fullmatch(each, node.name) for each in asked.nodes_to_quantize)]
assert len(chosen) == len(asked.nodes_to_quantize)
weights = {each.name: each for each in model.graph.initializer}
low = helper.tensor_dtype_to_np_dtype(TensorProto.FLOAT8E4M3FN)
scale = numpy_helper.from_array(np.float32(0.02), "scale")
zero = numpy_helper.from_array(np.zeros((), low), "zero")
model.graph.initializer.extend([scale, zero])
nodes = []
for node in model.graph.node:
    if node in chosen:
        given, weight = node.input[:2]
        values = (numpy_helper.to_array(weights[weight]) / np.float32(0.02)).astype(low)
        model.graph.initializer.append(numpy_helper.from_array(values, weight + "/fp8"))
        name, rest = node.name, ["scale", "zero"]
        nodes += [
            helper.make_node("QuantizeLinear", [given, *rest], [name + "/q"], name + "/Q"),
            helper.make_node("DequantizeLinear", [name + "/q", *rest], [name + "/d"], name + "/D"),
            helper.make_node(
                "DequantizeLinear", [weight + "/fp8", *rest], [name + "/w"], name + "/W"
            ),
        ]
        node.input[0], node.input[1] = name + "/d", name + "/w"
    nodes.append(node)
nodes = [onnx.NodeProto.FromString(each.SerializeToString()) for each in nodes]
del model.graph.node[:]
model.graph.node.extend(nodes)
open(asked.onnx_path, "w").close()  # as modelopt does: what it was given is gone
onnx.save(model, asked.output_path)
'''


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """An interpreter in whose environment the stand-in is ``modelopt``, version 9.8.7."""
    fp8.tool.cache_clear()
    packages = tmp_path / "packages"
    module = packages / "modelopt" / "onnx" / "quantization"
    module.mkdir(parents=True)
    for folder in (module, module.parent, module.parent.parent):
        (folder / "__init__.py").touch()
    (module / "__main__.py").write_text(_STAND_IN)
    (packages / "nvidia_modelopt-9.8.7.dist-info").mkdir()
    record = packages / "nvidia_modelopt-9.8.7.dist-info" / "METADATA"
    record.write_text("Metadata-Version: 2.1\nName: nvidia-modelopt\nVersion: 9.8.7\n")
    return _script(tmp_path / "python", f'PYTHONPATH={packages} exec {sys.executable} "$@"')


def _script(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\n{textwrap.dedent(body)}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_selected_matmuls_are_quantized_and_nothing_else(python: Path) -> None:
    model = transformer()
    made = fp8.quantized(model, MATMULS, rollouts(), python=python)
    assert model == transformer()
    assert lint(made, "fp8") == ()
    assert sum(node.op_type == "QuantizeLinear" for node in made.graph.node) == len(MATMULS)
    inputs = rollouts().passes[0].inputs
    names = ["features", "h"]
    for original, low in zip(run(model, inputs, names), run(made, inputs, names), strict=True):
        assert np.abs(original - low).max() < 0.3


def test_a_bundle_gets_a_variant(python: Path, bundle_copy: Path) -> None:
    outcome = quantize(QuantizeRequest(bundle_copy, _FEW, modelopt_python=python))
    assert only(outcome).record.tool == "nvidia-modelopt 9.8.7"
    bundle = Bundle.read(bundle_copy)
    assert bundle.graph("transformer", "fp8").precision == "fp8" and bundle.damage() == {}
    assert lint(onnx.load(bundle.graph_path("transformer", "fp8")), "fp8") == ()
    with Generator.open(bundle, precision="fp8", device="cpu", threads=1) as generator:
        assert len(generator.generate(class_ids=[0]).images) == 1
    again = quantize(QuantizeRequest(bundle_copy, _FEW, modelopt_python=python))
    assert not again.made


def test_its_last_words_are_quoted(tmp_path: Path, python: Path, bundle_copy: Path) -> None:
    failing = 'case "$1" in -c) echo 1;; *) echo "RuntimeError: no such thing" >&2; exit 3;; esac'
    broken = _script(tmp_path / "broken", failing)
    before = {path.name: path.read_bytes() for path in bundle_copy.iterdir()}
    with pytest.raises(EngineError, match=r"failed \(exit code 3\): …RuntimeError: no such thing;"):
        quantize(QuantizeRequest(bundle_copy, _FEW, modelopt_python=broken))
    silent = _script(tmp_path / "silent", 'case "$1" in -c) echo 1;; esac')
    with pytest.raises(EngineError, match=r"nvidia-modelopt failed \(exit code 0\)"):
        fp8.quantized(transformer(), MATMULS, rollouts(), python=silent)
    garbage = _script(tmp_path / "garbage", "echo garbage > made.onnx")
    with pytest.raises(EngineError, match="left no ONNX graph"):
        fp8.quantized(transformer(), MATMULS, rollouts(), python=garbage)
    assert {path.name: path.read_bytes() for path in bundle_copy.iterdir()} == before


def test_without_modelopt_it_is_said_how_to_get_it(
    tmp_path: Path, bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(python: Path | None) -> str:
        with pytest.raises(MissingDependencyError) as raised:
            quantize(QuantizeRequest(bundle_copy, _FEW, modelopt_python=python))
        return str(raised.value)

    monkeypatch.setattr("fewstep.calibration.quantize.flow.record", None)  # nothing is begun
    assert "is not installed here; give it an environment of its own" in asked(None)
    assert "does not start (No such file or directory)" in asked(tmp_path / "absent")
    without = _script(tmp_path / "without", f'exec {sys.executable} -I "$@"')
    assert "has no nvidia-modelopt; make one that has: python3 -m venv" in asked(without)


def test_options_of_int8_are_refused(bundle_copy: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="--cache is for int8"):
        quantize(QuantizeRequest(bundle_copy, _FEW, cache=tmp_path / "ranges.json"))
    with pytest.raises(RequestError, match="--modelopt-python goes with --precision fp8"):
        quantize(QuantizeRequest(bundle_copy, modelopt_python=Path(shutil.which("true") or "")))
