"""Decoders in int8, of every family: the variant, its record, what runs it, and what stays as it
was without them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tests.exported import copy_of

from fewstep.build.pipeline import BuildRequest, build, preflight_only
from fewstep.calibration.quantize.flow import QuantizeRequest, quantize
from fewstep.calibration.quantize.lint import lint
from fewstep.calibration.quantize.outcome import Outcome
from fewstep.calibration.quantize.settings import Settings, tolerances
from fewstep.calibration.quantize.tables import quality
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import RequestError
from fewstep.runtime.families import quantized_graphs
from fewstep.runtime.generator import Generator
from fewstep.runtime.records import QuantizationInfo
from fewstep.runtime.verify import verify

from .graphs import only

_FEW = Settings(rollouts=3, held_out=2)
_DECODER = frozenset({"decoder"})
_BUNDLES = ("tiny", "tiny-amused", "tiny-var", "tiny-mar")


def _quantize(path: Path, settings: Settings = _FEW, **options: Any) -> Outcome:
    return quantize(QuantizeRequest(path, settings, graphs=_DECODER, **options))


@pytest.fixture(scope="module", params=_BUNDLES)
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Outcome]:
    """A bundle whose decoder is int8, and nothing else."""
    path = copy_of(request.param, tmp_path_factory.mktemp("decoder") / "bundle")
    return path, _quantize(path)


@pytest.fixture
def path(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A bundle that a test may change."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


# --- of every family


def test_the_variant_and_its_record(made: tuple[Path, Outcome]) -> None:
    bundle, graph = Bundle.read(made[0]), only(made[1])
    assert bundle.damage() == {}
    variant = bundle.manifest.variants["int8"]
    assert {n for n, info in variant.items() if info.precision == "int8"} == _DECODER
    assert all(i.file == bundle.graph(n).file for n, i in variant.items() if n not in _DECODER)
    assert variant["decoder"].quantization == graph.record
    assert graph.record.psnr_db is not None and 20 < graph.record.psnr_db < 120
    assert graph.record.convolutions and set(graph.record.kept.values()) == {"rules"}
    assert graph.matmuls - len(graph.record.kept) >= 2 and graph.bytes < graph.fp32_bytes
    assert quality(made[1]) == f"images at {graph.record.psnr_db:.1f} dB from fp32"
    assert "ONNX Runtime" in "".join(made[1].notes)


def test_the_graph_passes_the_lint(made: tuple[Path, Outcome]) -> None:
    """Inputs of convolutions and weights alone are quantized, with a scale a channel."""
    model = onnx.load(Bundle.read(made[0]).graph_path("decoder", "int8"))
    assert lint(model, "int8") == ()
    readers = {
        node.op_type
        for node in model.graph.node
        if any(name.endswith("_DequantizeLinear_Output") for name in node.input)
    }
    assert "Conv" in readers and readers <= {"Conv", "MatMul", "Gemm"}


def test_onnx_runtime_runs_it_in_fp32(made: tuple[Path, Outcome]) -> None:
    """So the images are those of fp32, bit by bit, as all other graphs are fp32."""
    images = []
    for precision in ("fp32", "int8"):
        with Generator.open(
            made[0], precision=precision, device="cpu", backend="onnxruntime", threads=1
        ) as generator:
            condition = generator.model.info.condition.examples(2)
            request = generator.request(**_condition(condition), seed=7)
            images.append(generator.run(request).images)
    np.testing.assert_array_equal(images[0], images[1])


def _condition(condition: Any) -> dict[str, Any]:
    return {"class_ids" if condition.ndim == 1 else "text": condition}


def test_openvino_runs_it_in_int8(made: tuple[Path, Outcome]) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    with Generator.open(
        made[0], precision="int8", device="cpu", backend="openvino", threads=1
    ) as generator:
        report = verify(generator)
    found = [each.value for each in report.checks if each.metric == "psnr_db"]
    assert found and min(found) > 20 and max(found) < 100


def test_the_same_again_does_nothing_and_repeats(made: tuple[Path, Outcome]) -> None:
    assert not _quantize(made[0]).made
    again = quantize(QuantizeRequest(made[0], Settings(other_layers="fp32"), repeat=True))
    assert not again.made and [each.name for each in again.graphs] == ["decoder"]


# --- of one


def test_it_is_quantized_where_it_is_named(path: Path) -> None:
    bundle = Bundle.read(path)
    assert quantized_graphs(bundle) == ("transformer", "decoder")
    assert quantized_graphs(bundle, "fp8") == ("transformer",)
    outcome = quantize(QuantizeRequest(path, _FEW))
    assert [each.name for each in outcome.graphs] == ["transformer"]
    assert not only(outcome).record.convolutions
    both = quantize(QuantizeRequest(path, _FEW, graphs=frozenset({"transformer", "decoder"})))
    assert [each.name for each in both.graphs] == ["transformer", "decoder"]
    assert both.graphs[0].record == only(outcome).record
    again = quantize(QuantizeRequest(path, Settings(other_layers="fp32"), repeat=True))
    assert not again.made and len(again.graphs) == 2


def test_records_without_decoders_read_as_before(path: Path) -> None:
    """A record of an older version has neither of the new fields."""
    record = only(quantize(QuantizeRequest(path, _FEW))).record
    older = json.loads(record.model_dump_json())
    assert older.pop("psnr_db") is None and older.pop("convolutions") is False
    assert QuantizationInfo.model_validate(older) == record


def test_auto_keeps_what_costs_most(path: Path) -> None:
    least = only(_quantize(path)).record.psnr_db
    assert least is not None
    auto = tolerances("layer", min_psnr=least + 2)
    record = only(_quantize(path, Settings(rollouts=3, held_out=2, auto=auto))).record
    assert record.psnr_db is not None and record.psnr_db >= least + 2
    assert record.auto is not None and record.auto.max_error is None
    assert "auto" in record.kept.values()
    costs = [each.psnr_db for each in record.auto.ranking]
    assert costs == sorted(costs)  # type: ignore[type-var]


def test_tolerances_on_something_else_are_refused(path: Path) -> None:
    auto = tolerances("layer", max_kl=1.0)
    with pytest.raises(RequestError, match="leave --max-kl out: decoder is judged by images"):
        _quantize(path, Settings(auto=auto))
    with pytest.raises(RequestError, match="--min-psnr must be a number of dB above 0, got -1"):
        tolerances("layer", min_psnr=-1)
    with pytest.raises(RequestError, match="graph to quantize 'decoder'"):
        _quantize(path, Settings(precision="fp8"))


def test_a_decoder_of_matmuls_alone(toy_copy: Path) -> None:
    """It has a matmul, which ONNX Runtime runs in int8 as it does others."""
    outcome = _quantize(toy_copy)
    assert only(outcome).record.psnr_db is not None and not only(outcome).record.convolutions
    assert outcome.notes == ()


def test_a_decoder_without_weights_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fewstep.calibration.quantize.one_graph.matmuls_of", lambda *_: ())
    with pytest.raises(RequestError, match="decoder has no matmuls or convolutions with weights"):
        _quantize(path)


def test_for_tensorrt_other_layers_are_fp16_and_it_builds(path: Path) -> None:
    """Its norms are fp16 where those of the fp16 graph are."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    _quantize(path, Settings(rollouts=3, held_out=2, other_layers="fp16"))
    request = BuildRequest(path, "tensorrt-rtx", "int8", capabilities=("8.6",), kernels=False)
    preflight_only(request)
    built = {each.info.graph: each.info for each in build(request).engines}
    assert built["decoder"].precision == "int8"
