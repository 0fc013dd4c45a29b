"""fp16 overflow: magnitudes of tensors on the golden rollouts, and nodes beyond the end of fp16."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from fewstep.build.overflow import instrument, measure_magnitudes, out_of_range, spread
from fewstep.runtime.bundle import Bundle


def test_every_tensor_is_measured_at_its_largest() -> None:
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["square"], "squared"),
        helper.make_node("Neg", ["square"], ["y"], "negated"),
    ]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch"]) for n in "xy")
    model = helper.make_model(
        helper.make_graph(nodes, "square", [x], [y]), opset_imports=[helper.make_opsetid("", 20)]
    )
    instrument(model)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    names = [output.name for output in session.get_outputs()]
    found = dict(
        zip(names, session.run(names, {"x": np.array([3, -5, 2], np.float32)}), strict=True)
    )
    measured = {name: float(found[f"largest/{name}"]) for name in ("x", "square", "y")}
    assert measured == {"x": 5, "square": 25, "y": 25}


def test_magnitudes_cover_every_graph_of_the_golden_rollouts(tiny_bundle: Path) -> None:
    bundle = Bundle.read(tiny_bundle)
    largest = measure_magnitudes(bundle)
    assert largest.keys() == bundle.manifest.graphs.keys()
    golden = bundle.arrays("golden.npz")
    recorded = max(np.abs(golden[key]).max() for key in golden if key.endswith("/logits"))
    assert largest["transformer"]["logits"] >= 0.999 * recorded
    assert 0.5 < largest["decoder"]["image"] <= 1


_NODES = onnx.GraphProto(
    node=[
        helper.make_node("Mul", ["x", "x"], ["square"], "squared"),
        helper.make_node("Reshape", ["square", "shape"], ["flat"], "reshaped"),
        helper.make_node("Neg", ["flat"], ["y"], "negated"),
    ]
)


def test_what_moves_numbers_has_their_magnitude() -> None:
    largest = {"square": 25.0}
    spread(_NODES, largest)
    assert largest == {"square": 25.0, "flat": 25.0}


@pytest.mark.parametrize(
    ("square", "precision", "nodes"),
    [
        (32_752.0, "fp16", []),  # half of the end of fp16
        (32_753.0, "fp16", ["squared", "reshaped"]),
        (1e30, "bf16", []),
        (math.nan, "fp16", ["squared", "reshaped"]),
        (math.nan, "bf16", ["squared", "reshaped"]),
    ],
)
def test_every_node_that_touches_a_large_tensor_is_out_of_range(
    square: float, precision: str, nodes: list[str]
) -> None:
    found = out_of_range(_NODES, {"x": 5.0, "square": square}, precision)
    assert list(found) == nodes
    assert all(value == square or math.isnan(square) for value in found.values())
