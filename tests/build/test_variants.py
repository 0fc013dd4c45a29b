"""Variants in a bundle: what is kept in fp32 because of its magnitude, and how they are used."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from fewstep.build.overflow import LARGEST_FP16
from fewstep.build.variants import add_variant
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import BundleError, RequestError
from fewstep.runtime.generator import Generator
from fewstep.runtime.verify import verify


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Bundle:
    return Bundle.read(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def test_a_variant_passes_verification_and_generates(bundle: Bundle) -> None:
    made, reports = add_variant(bundle, "fp16")
    assert [each.graph for each in reports] == list(bundle.manifest.graphs)
    assert not any(each.out_of_range for each in reports)
    assert Bundle.read(made.path).damage() == {}
    with Generator.open(made.path, precision="fp16", threads=1) as generator:
        report = verify(generator)
        assert (report.precision, report.passed) == ("fp16", True)
        errors = [each.value for each in report.checks if each.metric == "logit_error"]
        assert 0 < max(errors) < 1e-2
        assert len(generator.generate(class_ids=[1, 2]).images) == 2


def test_a_tensor_that_float16_cannot_hold_is_named_and_kept(bundle: Bundle) -> None:
    large = _scaled(bundle, "transformer", 1e5)
    made, reports = add_variant(large, "fp16")
    beyond = reports[0].out_of_range
    assert reports[0].largest > LARGEST_FP16
    assert beyond.keys() <= set(reports[0].kept)
    assert max(beyond.values()) == reports[0].largest
    with Generator.open(made.path, precision="fp16", threads=1) as generator:
        assert len(generator.generate(class_ids=[1]).images) == 1  # NaN would be an error
    assert not add_variant(large, "bf16")[1][0].out_of_range  # bfloat16 goes as far as float32


def test_a_second_build_takes_the_place_of_the_first(bundle: Bundle) -> None:
    first, _ = add_variant(bundle, "fp16")
    second, _ = add_variant(first, "fp16", heads=False)
    old = {info.file for info in first.manifest.variants["fp16"].values()}
    new = {info.file for info in second.manifest.variants["fp16"].values()}
    assert old != new
    assert not any((second.path / file).exists() for file in old - new)
    assert second.damage() == {}


@pytest.mark.parametrize(
    ("precision", "kind", "said"),
    [
        ("fp16", BundleError, "there are no fp16 graphs; make them with: fewstep build .* fp16$"),
        ("fp61", RequestError, "unknown precision 'fp61'.*Did you mean 'fp16'.*--precision fp16$"),
    ],
)
def test_a_precision_that_is_not_there(
    bundle: Bundle, precision: str, kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=said):
        Generator.open(bundle, precision=precision, device="cpu")


def test_other_precisions_cannot_be_made(bundle: Bundle) -> None:
    with pytest.raises(RequestError, match="expected one of: bf16, fp16"):
        add_variant(bundle, "fp8")


def test_without_golden_rollouts_magnitudes_are_unknown(bundle: Bundle) -> None:
    bare = Bundle(bundle.path, bundle.manifest.model_copy(update={"golden": None}))
    with pytest.raises(BundleError, match="no golden rollouts.*, or build with --precision fp32"):
        add_variant(bare, "fp16")


def _scaled(bundle: Bundle, graph: str, factor: float) -> Bundle:
    """The bundle with the first matmul of a graph's layers ``factor`` times as large."""
    model = onnx.load(bundle.graph_path(graph))
    tensor = next(node for node in model.graph.node if node.op_type == "Gelu").input[0]
    producer = next(node for node in model.graph.node if tensor in node.output)
    weights = {each.name: each for each in model.graph.initializer}
    bias = next(weights[name] for name in producer.input if name in weights)
    values = numpy_helper.to_array(bias) + np.float32(factor)
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))
    info = bundle.manifest.graphs[graph].model_copy(update={"file": "scaled.onnx"})
    graphs = {**bundle.manifest.graphs, graph: info}
    dumped = {name: each.model_dump() for name, each in graphs.items()}
    return bundle.update({"scaled.onnx": model.SerializeToString()}, graphs=dumped)
