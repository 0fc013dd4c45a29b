"""The first diverging tensor: damage of a single node is found and named, in every graph."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from fewstep.build import subgraph
from fewstep.build.layers import TOLERANCES, first_divergence, tensor_error
from fewstep.build.recorded_inputs import recorded_inputs
from fewstep.build.subgraph import SubgraphExtractor, Walk, run_onnxruntime
from fewstep.build.variants import add_variant
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.devices import Array
from fewstep.runtime.errors import BundleError, EngineError


@pytest.fixture(scope="module")
def intact(tiny_bundle: Path) -> Bundle:
    return Bundle.read(tiny_bundle)


@pytest.fixture(scope="module")
def lowered(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny bundle with fp16 graphs."""
    folder = shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("lowered") / "bundle")
    return add_variant(Bundle.read(folder), "fp16")[0]


Damage = Callable[[onnx.ModelProto], str]
"""Damages a graph and returns the name of the node that now computes something else."""


def _damaged(
    source: Bundle, folder: Path, graph: str, damage: Damage, precision: str = "fp32"
) -> tuple[Bundle, str]:
    """A copy of a bundle with one damaged graph, and the damaged node's name."""
    bundle = Bundle.read(shutil.copytree(source.path, folder / "damaged"))
    model = onnx.load(bundle.graph_path(graph, precision))
    node = damage(model)
    file = f"{graph}.damaged.onnx"
    field = "graphs" if precision == "fp32" else "variants"
    changed = bundle.manifest.model_dump()[field]
    (changed if precision == "fp32" else changed[precision])[graph]["file"] = file
    return bundle.update({file: model.SerializeToString()}, **{field: changed}), node


def _weighted(model: onnx.ModelProto, operator: str, which: int) -> tuple[onnx.NodeProto, Array]:
    """A node with a matrix of weights, and those weights."""
    weights = {each.name: each for each in model.graph.initializer}
    found = [
        (node, name)
        for node in model.graph.node
        for name in node.input[1:2]
        if node.op_type == operator and name in weights
    ]
    node, name = found[which]
    return node, numpy_helper.to_array(weights[name]).copy()


def _replace(model: onnx.ModelProto, node: onnx.NodeProto, values: Array) -> str:
    """Give one node weights of its own."""
    weight = numpy_helper.from_array(values, "damaged")
    model.graph.initializer.append(weight)
    node.input[1] = "damaged"
    return str(node.name)


def _one_weight(operator: str, which: int) -> Damage:
    def damage(model: onnx.ModelProto) -> str:
        node, values = _weighted(model, operator, which)
        values.flat[values.size // 2] += np.abs(values).max()
        return _replace(model, node, values)

    return damage


def _transposed(operator: str) -> Damage:
    def damage(model: onnx.ModelProto) -> str:
        index = 0
        while True:
            node, values = _weighted(model, operator, index)
            if values.ndim == 2 and values.shape[0] == values.shape[1]:
                return _replace(model, node, np.ascontiguousarray(values.T))
            index += 1

    return damage


def _nan_weight(operator: str, which: int) -> Damage:
    def damage(model: onnx.ModelProto) -> str:
        node, values = _weighted(model, operator, which)
        values.flat[0] = np.nan
        return _replace(model, node, values)

    return damage


def _other_operator(old: str, new: str, which: int) -> Damage:
    def damage(model: onnx.ModelProto) -> str:
        node = [each for each in model.graph.node if each.op_type == old][which]
        node.op_type = new
        return str(node.name)

    return damage


DAMAGES = {
    "one weight of an early matmul": ("transformer", _one_weight("MatMul", 0)),
    "one weight of a late matmul": ("transformer", _one_weight("MatMul", -2)),
    "a transposed weight": ("transformer", _transposed("MatMul")),
    "another operator": ("transformer", _other_operator("Add", "Sub", 4)),
    "one weight of the policy": ("policy", _one_weight("Gemm", 2)),
    "one weight of the decoder": ("decoder", _one_weight("Conv", 3)),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_the_damaged_node_is_named(intact: Bundle, tmp_path: Path, name: str) -> None:
    graph, damage = DAMAGES[name]
    bundle, node = _damaged(intact, tmp_path, graph, damage)
    found = first_divergence(bundle, graph, reference=intact)
    assert found.first is not None
    assert (found.graph, found.first.node) == (graph, node)
    assert found.first.error is not None
    assert found.first.error > TOLERANCES["fp32"]
    assert all(each.error is not None and each.error <= TOLERANCES["fp32"] for each in found.before)
    assert found.first_not_finite is None
    assert found.reference.endswith(str(intact.path))


@pytest.mark.parametrize("name", DAMAGES)
def test_the_damaged_node_is_named_in_lower_precision(
    lowered: Bundle, tmp_path: Path, name: str
) -> None:
    """Without another bundle: the fp32 graph of the same one is the reference."""
    graph, damage = DAMAGES[name]
    bundle, node = _damaged(lowered, tmp_path, graph, damage, "fp16")
    found = first_divergence(bundle, graph, "fp16")
    assert found.first is not None
    assert (found.precision, found.first.node) == ("fp16", node)
    assert found.compared <= found.tensors


@pytest.mark.parametrize("chunk_bytes", [1, 10_000, 1 << 30])
def test_chunks_change_nothing(intact: Bundle, tmp_path: Path, chunk_bytes: int) -> None:
    bundle, node = _damaged(intact, tmp_path, "transformer", _one_weight("MatMul", 5))
    found = first_divergence(bundle, "transformer", reference=intact, chunk_bytes=chunk_bytes)
    assert found.first is not None
    assert found.first.node == node


def test_weights_and_neighbours_of_the_node_are_named(intact: Bundle, tmp_path: Path) -> None:
    bundle, node = _damaged(intact, tmp_path, "transformer", _one_weight("MatMul", 4))
    found = first_divergence(bundle, "transformer", reference=intact)
    model = onnx.load(bundle.graph_path("transformer"))
    read = next(each.input for each in model.graph.node if each.name == node)
    assert found.weights == ("damaged",)
    assert [each.tensor for each in found.before] == [read[0]]
    assert found.worst is not None
    assert found.worst.error >= found.first.error  # type: ignore[union-attr, operator]


# --- NaN and infinite numbers


@pytest.mark.parametrize("with_reference", [True, False])
@pytest.mark.parametrize("graph", ["transformer", "decoder"])
def test_nan_is_traced_to_its_node(
    intact: Bundle, tmp_path: Path, graph: str, with_reference: bool
) -> None:
    operator = "MatMul" if graph == "transformer" else "Conv"
    bundle, node = _damaged(intact, tmp_path, graph, _nan_weight(operator, 3))
    found = first_divergence(bundle, graph, reference=intact if with_reference else None)
    assert found.first is not None
    assert found.first_not_finite == found.first
    assert (found.first.node, found.first.finite) == (node, False)
    assert found.first.error == (np.inf if with_reference else None)
    assert all(each.finite for each in found.before)
    assert found.as_dict()["first"]["largest"] is None


def test_nan_behind_another_divergence_is_found_too(intact: Bundle, tmp_path: Path) -> None:
    nodes: list[str] = []

    def damage(model: onnx.ModelProto) -> str:
        nodes.extend(each(model) for each in (_one_weight("MatMul", 1), _late_nan))
        return nodes[0]

    def _late_nan(model: onnx.ModelProto) -> str:
        node, values = _weighted(model, "MatMul", 6)
        values.flat[0] = np.nan
        weight = numpy_helper.from_array(values, "nan")
        model.graph.initializer.append(weight)
        node.input[1] = "nan"
        return str(node.name)

    bundle, _ = _damaged(intact, tmp_path, "transformer", damage)
    found = first_divergence(bundle, "transformer", reference=intact, chunk_bytes=1)
    assert found.first is not None
    assert found.first_not_finite is not None
    assert [found.first.node, found.first_not_finite.node] == nodes


# --- nothing to find, and what is refused


@pytest.mark.parametrize("graph", ["transformer", "policy", "decoder"])
def test_an_intact_graph_has_none(intact: Bundle, lowered: Bundle, graph: str) -> None:
    alone = first_divergence(intact, graph)
    assert (alone.first, alone.worst, alone.reference) == (None, None, "")
    beside = first_divergence(intact, graph, reference=lowered)
    assert beside.first is None
    assert beside.compared == beside.tensors
    low = first_divergence(lowered, graph, "fp16")
    assert low.first is None
    assert low.worst is not None
    assert 0 < low.worst.error < 5e-3  # type: ignore[operator]
    assert low.compared == low.tensors == beside.tensors


def test_a_bundle_conditioned_on_text(tiny_text_bundle: Path) -> None:
    bundle = Bundle.read(tiny_text_bundle)
    assert first_divergence(bundle, "transformer", reference=bundle).first is None


def test_a_damaged_transformer_is_not_held_against_the_policy(
    intact: Bundle, tmp_path: Path
) -> None:
    bundle, _ = _damaged(intact, tmp_path, "transformer", _one_weight("MatMul", 0))
    assert first_divergence(bundle, "policy", reference=intact).first is None


def test_a_reference_of_another_model_is_refused(intact: Bundle, tiny_text_bundle: Path) -> None:
    with pytest.raises(BundleError, match="is of another model"):
        first_divergence(intact, "transformer", reference=Bundle.read(tiny_text_bundle))


def test_a_reference_with_other_names_is_refused(intact: Bundle, tmp_path: Path) -> None:
    def rename(model: onnx.ModelProto) -> str:
        kept = {each.name for each in (*model.graph.input, *model.graph.output)}
        kept |= {each.name for each in model.graph.initializer}
        for node in model.graph.node:
            for names in (node.input, node.output):
                for index, name in enumerate(names):
                    names[index] = name if name in kept or not name else f"other_{name}"
        del model.graph.value_info[:]
        return ""

    reference, _ = _damaged(intact, tmp_path, "transformer", rename)
    with pytest.raises(BundleError, match="tensors have the names"):
        first_divergence(intact, "transformer", reference=reference)


def test_without_golden_rollouts_there_are_no_inputs(intact: Bundle) -> None:
    bare = Bundle(intact.path, intact.manifest.model_copy(update={"golden": None}))
    with pytest.raises(BundleError, match="no golden rollouts"):
        first_divergence(bare, "transformer")


def test_another_runner_runs_every_subgraph(intact: Bundle) -> None:
    seen = []

    def run(model: onnx.ModelProto, inputs: Mapping[str, Array]) -> dict[str, Array]:
        onnx.shape_inference.infer_shapes(model, strict_mode=True)
        seen.append(len(model.graph.node))
        return run_onnxruntime(model, inputs)

    found = first_divergence(intact, "decoder", reference=intact, run=run, backend="other")
    assert found.backend == "other"
    assert len(seen) >= 4  # the outputs of both graphs, then their tensors


# --- walking a graph by subgraphs


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("subgraph_bytes", [0, 1 << 30])
def test_subgraphs_give_what_the_whole_gives(
    intact: Bundle, monkeypatch: pytest.MonkeyPatch, size: int, subgraph_bytes: int
) -> None:
    monkeypatch.setattr(subgraph, "SUBGRAPH_BYTES", subgraph_bytes)
    path = intact.graph_path("transformer")
    inputs = recorded_inputs(intact, "transformer", intact)[0].inputs
    model = onnx.load(path)
    names = [name for node in model.graph.node for name in node.output if name]
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    expected = dict(zip(names, session.run(names, inputs), strict=True))
    walk = Walk(SubgraphExtractor(path), inputs, names, run_onnxruntime)
    for first in range(0, len(names), size):
        for name, value in walk.values(names[first : first + size]).items():
            assert value.shape == expected[name].shape
            np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-5)
    assert walk.held_bytes == 0


def test_a_walk_runs_no_node_twice_and_none_in_vain(tmp_path: Path) -> None:
    """x → a → b → y, and a branch that nobody asks for."""
    nodes = [
        helper.make_node("Neg", ["x"], ["a"], "first"),
        helper.make_node("Abs", ["a"], ["b"], "second"),
        helper.make_node("Exp", ["a"], ["unused"], "in vain"),
        helper.make_node("Add", ["a", "b"], ["y"], "third"),
    ]
    graph = _saved(tmp_path, nodes, ["x"], ["y", "unused"])
    ran: list[str] = []

    def run(model: onnx.ModelProto, inputs: Mapping[str, Array]) -> dict[str, Array]:
        ran.extend(node.name for node in model.graph.node)
        return run_onnxruntime(model, inputs)

    walk = Walk(graph, {"x": np.array([1, -2], np.float32)}, ["b", "y"], run)
    assert walk.values(["b"])["b"].tolist() == [1, 2]
    assert walk.values(["y"])["y"].tolist() == [0, 4]
    assert ran == ["first", "second", "third"]


def test_sizes_are_those_at_batch_one(tmp_path: Path) -> None:
    nodes = [helper.make_node("Cast", ["x"], ["y"], "cast", to=TensorProto.FLOAT16)]
    graph = _saved(tmp_path, nodes, ["x"], [], shape=["batch", 3, 5])
    assert (graph.size("x"), graph.size("y"), graph.size("absent")) == (60, 30, None)


def test_a_graph_that_cannot_run_is_an_error(tmp_path: Path) -> None:
    graph = _saved(tmp_path, [helper.make_node("NoSuchOperator", ["x"], ["y"], "odd")], ["x"], [])
    walk = Walk(graph, {"x": np.zeros(2, np.float32)}, ["y"], run_onnxruntime)
    with pytest.raises(EngineError, match="NoSuchOperator"):
        walk.values(["y"])


def _saved(
    folder: Path,
    nodes: list[onnx.NodeProto],
    inputs: list[str],
    outputs: list[str],
    shape: list[str | int] | None = None,
) -> SubgraphExtractor:
    def described(names: list[str]) -> list[onnx.ValueInfoProto]:
        kind, dims = TensorProto.FLOAT, shape or ["batch"]
        return [helper.make_tensor_value_info(name, kind, dims) for name in names]

    graph = helper.make_graph(nodes, "small", described(inputs), described(outputs))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path = folder / "small.onnx"
    onnx.save(model, path)
    return SubgraphExtractor(path)


# --- the error of a tensor

_numbers = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=20)


@given(_numbers, st.floats(-10, 10))
def test_errors_are_free_of_scale(values: list[float], power: float) -> None:
    expected = np.array(values)
    actual = expected + np.linspace(0, 1, len(values))
    scaled = tensor_error(actual * 2**power, expected * 2**power)
    if np.abs(expected).max() > 0:
        assert scaled == pytest.approx(tensor_error(actual, expected), rel=1e-9, abs=1e-12)
    assert tensor_error(expected, expected) == 0


def test_errors_by_hand() -> None:
    nan, inf = np.nan, np.inf
    assert tensor_error(np.array([4.0, 1.0]), np.array([4.0, 2.0])) == 0.25
    assert tensor_error(np.array([0.5]), np.array([0.0])) == 0.5
    assert tensor_error(np.array([-inf, nan, 1.0]), np.array([-inf, nan, 1.0])) == 0
    assert tensor_error(np.array([nan]), np.array([1.0])) == inf
    assert tensor_error(np.array([1.0]), np.array([inf])) == inf
    assert tensor_error(np.zeros(2), np.zeros(3)) == inf
    assert tensor_error(np.array([True, False]), np.array([True, True])) == 1
    assert tensor_error(np.zeros((0,)), np.zeros((0,))) == 0


@given(st.lists(st.integers(0, 50), max_size=30), st.integers(1, 60))
def test_groups_keep_order_and_limit(sizes: list[int], limit: int) -> None:
    named = [(str(index), size) for index, size in enumerate(sizes)]
    groups = list(subgraph.grouped(iter(named), limit))
    assert [name for group in groups for name in group] == [name for name, _ in named]
    for group in groups:
        assert len(group) == 1 or sum(sizes[int(name)] for name in group) <= limit
