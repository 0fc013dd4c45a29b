"""Norms in fp16: the rule and verification that decide, and what a real builder makes of them."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.benchmarks.norms import build, layers
from tests.exported import copy_of

from fewstep.build.norms import reasons_for_fp32, shortfall
from fewstep.build.overflow import LARGEST_FP16, measure_magnitudes
from fewstep.build.precision import DELICATE, NORMS, lower
from fewstep.build.variants import GraphReport, add_variant, remade
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.devices import Array
from fewstep.runtime.errors import BundleError, EngineError
from fewstep.runtime.generator import Generator
from fewstep.runtime.verify import verify


@pytest.fixture
def bundle(bundle_copy: Path) -> Bundle:
    return Bundle.read(bundle_copy)


def _decoder(bundle: Bundle, precision: str = "fp32") -> onnx.ModelProto:
    return onnx.load(bundle.graph_path("decoder", precision))


def _norms(model: onnx.ModelProto) -> list[str]:
    return [node.name for node in model.graph.node if node.op_type in NORMS]


def _types(model: onnx.ModelProto) -> set[int]:
    """Types that norms read in a lowered graph."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    types = {each.name: each.type.tensor_type.elem_type for each in graph.value_info}
    return {types[node.input[0]] for node in graph.node if node.op_type in NORMS}


def _report(reports: tuple[GraphReport, ...], graph: str = "decoder") -> GraphReport:
    return next(each for each in reports if each.graph == graph)


# --- the rule

_EDGE = math.sqrt(LARGEST_FP16 / 2)


@pytest.mark.parametrize(
    ("largest", "stays"),
    [(1.0, False), (180.9, False), (181.0, True), (math.inf, True), (math.nan, True)],
)
def test_a_norm_is_fp16_while_the_square_of_its_input_keeps_the_distance(
    bundle: Bundle, largest: float, stays: bool
) -> None:
    assert 180.9 < _EDGE < 181.0
    graph = _decoder(bundle).graph
    names = {node.name: node.input[0] for node in graph.node if node.op_type in NORMS}
    seen = dict.fromkeys(names.values(), 1.0)
    first = next(iter(names))
    found = reasons_for_fp32(bundle, "decoder", graph, seen | {names[first]: largest}, "fp16")
    assert list(found) == ([first] if stays else [])
    assert all(f"{largest:.4g}, whose square" in reason for reason in found.values())


def test_the_rule_is_where_squares_leave_float16() -> None:
    """Twice the square is still a number in float16, and no longer so a little beyond."""
    with np.errstate(over="ignore"):
        at, beyond = (np.float16(2) * np.float16(value) ** 2 for value in (180.9, 182.0))
    assert np.isfinite(at)
    assert np.isinf(beyond)


def test_norms_stay_fp32_where_nothing_can_vouch_for_them(bundle: Bundle) -> None:
    graph = _decoder(bundle).graph
    seen = {node.input[0]: 1.0 for node in graph.node if node.op_type in NORMS}
    bare = Bundle(bundle.path, bundle.manifest.model_copy(update={"golden": None}))
    for reason, found in (
        ("was not measured", reasons_for_fp32(bundle, "decoder", graph, {}, "fp16")),
        ("no InstanceNormalization", reasons_for_fp32(bundle, "decoder", graph, seen, "bf16")),
        (
            "only norms of graphs that give images",
            reasons_for_fp32(bundle, "policy", graph, seen, "fp16"),
        ),
        ("no golden rollouts", reasons_for_fp32(bare, "decoder", graph, seen, "fp16")),
    ):
        assert list(found) == _norms(_decoder(bundle))
        assert all(reason in each for each in found.values())


def test_group_normalization_follows_the_same_rule(bundle: Bundle) -> None:
    node = helper.make_node("GroupNormalization", ["x", "s", "b"], ["y"], "norm", num_groups=2)
    graph = helper.make_graph([node], "g", [], [])
    assert reasons_for_fp32(bundle, "decoder", graph, {"x": 3.0}, "fp16") == {}
    assert list(reasons_for_fp32(bundle, "decoder", graph, {"x": 300.0}, "fp16")) == ["norm"]


# --- verification


def test_a_bundle_gets_fp16_norms_that_pass_verification(bundle: Bundle) -> None:
    made, reports = add_variant(bundle, "fp16")
    assert all(each.fp32_norms == {} for each in reports)
    assert not set(_norms(_decoder(bundle))) & set(_report(reports).kept)
    assert _types(_decoder(made, "fp16")) == {TensorProto.FLOAT16}
    with Generator.open(made.path, precision="fp16", threads=1) as generator:
        report = verify(generator)
    assert report.passed
    assert report.failing_graphs == ()


def test_bf16_keeps_them_and_says_why(bundle: Bundle) -> None:
    made, reports = add_variant(bundle, "bf16")
    assert _types(_decoder(made, "bf16")) == {TensorProto.FLOAT}
    assert list(_report(reports).fp32_norms) == _norms(_decoder(bundle))


def test_a_decoder_that_fails_verification_is_made_again_with_fp32_norms(bundle: Bundle) -> None:
    """Its images are not those recorded, by a tenth: 20 dB, where the tolerance is 40."""
    wrong = _with_golden(bundle, lambda image: (image + 0.1).astype(np.float32))
    made, reports = add_variant(wrong, "fp16")
    assert _types(_decoder(made, "fp16")) == {TensorProto.FLOAT}
    report = _report(reports)
    assert list(report.fp32_norms) == _norms(_decoder(bundle))
    assert set(report.fp32_norms) <= set(report.kept)
    assert report.as_dict()["fp32_norms"] == report.fp32_norms
    (reason,) = set(report.fp32_norms.values())
    assert reason == "with them in fp16 it reaches 20.0 dB, expected at least 40"


def test_an_input_out_of_the_rule_keeps_its_norm_alone(bundle: Bundle) -> None:
    """The convolution before the second norm is scaled, which that norm undoes."""
    model = _decoder(bundle)
    second = [node for node in model.graph.node if node.op_type in NORMS][1]
    producer = {name: node for node in model.graph.node for name in node.output}
    convolution = producer[producer[second.input[0]].input[0]]
    weight = next(each for each in model.graph.initializer if each.name == convolution.input[1])
    factor = np.float32(300 / measure_magnitudes(bundle)["decoder"][second.input[0]])
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * factor, weight.name))
    graphs = bundle.manifest.model_dump()["graphs"]
    graphs["decoder"]["file"] = "scaled.onnx"
    changed = bundle.update({"scaled.onnx": model.SerializeToString()}, graphs=graphs)
    made, reports = add_variant(changed, "fp16")
    report = _report(reports)
    assert list(report.fp32_norms) == [second.name]
    assert report.fp32_norms[second.name].startswith("its input reaches 300, whose square")
    assert report.out_of_range == {}
    assert _types(_decoder(made, "fp16")) == {TensorProto.FLOAT, TensorProto.FLOAT16}


def test_without_measured_magnitudes_a_graph_keeps_its_norms_in_fp32(bundle: Bundle) -> None:
    made = remade(bundle, "decoder", "fp16", heads=True)
    assert made.report is not None
    assert list(made.report.fp32_norms) == _norms(_decoder(bundle))


def test_images_that_are_no_numbers_fall_short(bundle: Bundle) -> None:
    assert shortfall(bundle, "decoder", _decoder(bundle)) == ""
    wrong = _with_golden(bundle, lambda image: np.full_like(image, np.nan))
    assert "reaches nan dB" in shortfall(wrong, "decoder", _decoder(bundle))


def test_what_cannot_be_verified_is_an_error(bundle: Bundle) -> None:
    model = _decoder(bundle)
    model.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(EngineError, match="ONNX Runtime refuses graph 'decoder'"):
        shortfall(bundle, "decoder", model)
    assert bundle.manifest.golden is not None
    (bundle.path / bundle.manifest.golden).unlink()
    with pytest.raises(BundleError, match="is missing"):
        shortfall(bundle, "decoder", _decoder(bundle))


# --- what a builder makes of them


@pytest.fixture(scope="module")
def rtx() -> Any:
    reason = "TensorRT-RTX is not installed; install it with: pip install 'fewstep[rtx]'"
    return pytest.importorskip("tensorrt_rtx", reason=reason)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A tiny bundle whose decoder has 64 channels: two in a group, as a GroupNorm needs."""
    return Bundle.read(copy_of("tiny-wide", tmp_path_factory.mktemp("wide") / "bundle"))


@pytest.mark.slow
@pytest.mark.usefixtures("rtx")
def test_the_builder_fuses_every_norm_of_the_decoder(wide: Bundle) -> None:
    """One kernel for norm, scale, shift and SiLU, where fp32 norms make three layers of two."""
    count = len(_norms(_decoder(wide)))
    fp32 = layers(build(wide, "decoder", lower(_decoder(wide), "fp16").model))
    assert (fp32["Inor"], fp32["SiluGnor"]) == (count, 0)
    made, _ = add_variant(wide, "fp16")
    fp16 = layers(build(wide, "decoder", _decoder(made, "fp16")))
    assert (fp16["Inor"], fp16["SiluGnor"]) == (0, count)
    assert fp16.total() == fp32.total() - count
    assert fp16["corrltn"] == fp32["corrltn"] > count  # convolutions are what they were


@pytest.mark.slow
@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize("name", ["transformer", "policy"])
def test_fp16_would_not_fuse_more_of_the_layer_norms(bundle: Bundle, name: str) -> None:
    """So they stay fp32, which costs no layer."""
    model = onnx.load(bundle.graph_path(name))
    norms = [node.name for node in model.graph.node if node.op_type == "LayerNormalization"]
    assert norms
    assert "LayerNormalization" in DELICATE - NORMS
    forms = (lower(model, "fp16", released=released).model for released in ((), norms))
    fp32, fp16 = (layers(build(bundle, name, form)).total() for form in forms)
    assert fp32 == fp16


def _with_golden(bundle: Bundle, change: Callable[[Array], Array]) -> Bundle:
    """The bundle with other recorded images."""
    assert bundle.manifest.golden is not None
    arrays: dict[str, Any] = bundle.arrays(bundle.manifest.golden)
    arrays |= {key: change(arrays[key]) for key in arrays if key.endswith("/image")}
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return bundle.update({"other.npz": stream.getvalue()}, golden="other.npz")
