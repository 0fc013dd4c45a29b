"""What a graph computes, touches and starts, counted in its file.

Independent references: PyTorch's counter and the U-ViT's formula for operations, small graphs by
hand and the engines that TensorRT-RTX builds for launches. Then damage and the absent counter.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch.utils.flop_counter import FlopCounterMode

from fewstep.build.graph_work import _with_whole_shapes, graph_launches, graph_work
from fewstep.export.models import PolicyNet, UViT, VQModel
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import BundleError, MissingDependencyError

_TOKENS, _WIDTH, _CODES, _BLOCKS = 16, 32, 24, 3  # of the tiny bundle; depth 2 and one between
_GRAPHS = ("transformer", "policy", "decoder")
_ONE = {"batch": 1}


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.read(tiny_bundle)


# Operations


def _torch_flops(module: torch.nn.Module, *inputs: torch.Tensor) -> int:
    call: Callable[..., Any] = module.decode if isinstance(module, VQModel) else module
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call(*inputs)
    return int(counter.get_total_flops())


@pytest.fixture(scope="module")
def modules(tiny_checkpoints: dict[str, Any]) -> dict[str, torch.nn.Module]:
    config = json.loads(tiny_checkpoints["config"].read_text())
    made = {
        "transformer": UViT(**config["transformer"]),
        "policy": PolicyNet(**config["policy"]),
        "decoder": VQModel(**config["tokenizer"]),
    }
    return {name: module.eval() for name, module in made.items()}


@pytest.mark.parametrize("images", [1, 2, 5])
@pytest.mark.parametrize("graph", _GRAPHS)
def test_operations_are_those_that_torch_counts(
    bundle: Bundle, modules: dict[str, torch.nn.Module], graph: str, images: int
) -> None:
    ids = torch.zeros(images, dtype=torch.int64)
    tokens = torch.zeros(images, _TOKENS, dtype=torch.int64)
    inputs: dict[str, tuple[torch.Tensor, ...]] = {
        "transformer": (tokens, ids),
        "policy": (torch.zeros(images, _TOKENS, _WIDTH), ids),
        "decoder": (tokens.reshape(images, 4, 4),),
    }
    work = graph_work(bundle, graph, [{"batch": images}])
    assert work.flops_at({"batch": images}) == _torch_flops(modules[graph], *inputs[graph])


def test_operations_of_the_transformer_by_hand(bundle: Bundle) -> None:
    length, width = _TOKENS + 1, _WIDTH  # one more for the condition
    projections = 2 * length * width * (3 * width + width + 2 * 4 * width)
    attention = 2 * 2 * length * length * width
    skip = 2 * length * 2 * width * width
    head = 2 * _TOKENS * width * (width + _CODES + 1)
    expected = _BLOCKS * (projections + attention) + skip + head
    assert graph_work(bundle, "transformer", [_ONE]).flops_at(_ONE) == expected


def test_weights_of_matmuls_are_the_parameters_but_embeddings_norms_and_biases(
    bundle: Bundle, modules: dict[str, torch.nn.Module]
) -> None:
    work = graph_work(bundle, "policy", [_ONE])
    matrices = [each.numel() for each in modules["policy"].parameters() if each.ndim > 1]
    assert work.mac_weights == sum(matrices)
    path = bundle.graph_path("policy")
    every = sum(int(np.prod(each.dims)) for each in onnx.load(path).graph.initializer)
    assert work.mac_weights + work.other_weights == every


@pytest.mark.parametrize("limits", [{}, {"start": 1}, {"end": 1}, {"start": -1}, {"end": -1}])
def test_part_of_a_shape_is_cut_out_by_a_node_of_its_own(limits: dict[str, Any]) -> None:
    """onnx-tool gives all sizes, whatever the attributes say."""
    info = helper.make_tensor_value_info
    outputs = [info("y", TensorProto.INT64, [None])]
    shape = helper.make_node("Shape", ["x"], ["y"], **limits)
    graph = helper.make_graph([shape], "some", [info("x", TensorProto.FLOAT, [2, 3])], outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    x = {"x": np.zeros((2, 3), np.float32)}
    (before,) = ReferenceEvaluator(model).run(None, x)
    _with_whole_shapes(model.graph)
    assert not any(node.attribute for node in model.graph.node)
    (after,) = ReferenceEvaluator(model).run(None, x)
    np.testing.assert_array_equal(after, before)


# Launches


def _node(kind: str, *inputs: str) -> NodeProto:
    return helper.make_node(kind, inputs, [f"{kind}_{'_'.join(inputs)}"])


@pytest.mark.parametrize(
    ("nodes", "launches"),
    [
        ([], 0),
        ([_node(kind, "x") for kind in ("Reshape", "Identity", "Cast", "Transpose", "Gelu")], 0),
        ([_node("Add", "x", "w"), _node("Mul", "x", "y"), _node("Concat", "x", "y")], 0),
        ([_node("MatMul", "x", "w"), _node("Add", "MatMul_x_w", "w"), _node("Gelu", "y")], 1),
        ([_node("Gemm", "x", "w", "w"), _node("Conv", "y", "w")], 2),
        ([_node("MatMul", "w", "x")], 1),
        ([_node("MatMul", "q", "k"), _node("Softmax", "s"), _node("MatMul", "p", "v")], 1),
        ([_node("LayerNormalization", "x", "w", "w"), _node("InstanceNormalization", "y")], 2),
    ],
)
def test_launches_by_hand(nodes: list[NodeProto], launches: int) -> None:
    weight = numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 4])
    assert graph_launches(helper.make_graph(nodes, "some", [value], [], [weight])) == launches


def test_launches_of_the_transformer_by_hand(bundle: Bundle) -> None:
    block = 4 + 1 + 2  # four matmuls, attention, two norms
    skip, embeddings, head = 1, 2, 1 + 1 + 1 + 1  # two norms; norm, matmul, norm, matmul
    expected = _BLOCKS * block + skip + embeddings + head
    assert graph_work(bundle, "transformer", [_ONE]).launches == expected


@pytest.mark.parametrize("graph", _GRAPHS)
def test_an_engine_has_more_kernels_but_not_many_times_as_many(bundle: Bundle, graph: str) -> None:
    estimated = graph_work(bundle, graph, [_ONE]).launches
    assert estimated <= _kernels(bundle.graph_path(graph)) <= 3 * estimated


def _kernels(path: Path) -> int:
    """Kernels in the engine that TensorRT-RTX builds, as its log lists them."""
    reason = "TensorRT-RTX is not installed; install it with: pip install 'fewstep[rtx]'"
    trt = pytest.importorskip("tensorrt_rtx", reason=reason)

    class Log(trt.ILogger):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.messages: list[str] = []

        def log(self, severity: object, message: str) -> None:
            self.messages.append(message)

    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    assert parser.parse_from_file(str(path))
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = 1
    assert config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        one, four = ([n if size < 0 else size for size in tensor.shape] for n in (1, 4))
        profile.set_shape(tensor.name, one, one, four)
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config) is not None
    layers = [each for each in log.messages if each.startswith("Layers:")]
    if not layers:
        pytest.skip(f"TensorRT-RTX {trt.__version__} does not log the layers of its engines")
    on_the_host = ("shape_call", "reshape", "cast")
    kinds = re.findall(r"LayerType: (\w+)", layers[-1])
    return sum(kind not in on_the_host for kind in kinds)


# Damage


def _with_decoder(folder: Path, content: bytes) -> Bundle:
    bundle = Bundle.read(folder)
    graphs = {name: each.model_dump() for name, each in bundle.manifest.graphs.items()}
    graphs["decoder"]["file"] = "other.onnx"
    return bundle.update({"other.onnx": content}, graphs=graphs)


def _foreign_graph() -> bytes:
    tokens = helper.make_tensor_value_info("tokens", TensorProto.INT32, ["batch", _TOKENS])
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8])
    node = helper.make_node("Unheard", ["tokens"], ["image"], domain="elsewhere")
    graph = helper.make_graph([node], "foreign", [tokens], [image])
    content: bytes = helper.make_model(graph).SerializeToString()
    return content


@pytest.mark.filterwarnings("ignore:node Unheard")
@pytest.mark.parametrize("content", [b"no graph", _foreign_graph()], ids=["garbage", "foreign"])
def test_a_graph_that_cannot_be_counted_is_named(bundle_copy: Path, content: bytes) -> None:
    with pytest.raises(BundleError, match="graph 'decoder' cannot be counted.*export the bundle"):
        graph_work(_with_decoder(bundle_copy, content), "decoder", [_ONE])


def test_absent_counter_names_its_extra(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx_tool", None)
    with pytest.raises(MissingDependencyError, match=r"onnx-tool .*fewstep\[build\]"):
        graph_work(bundle, "decoder", [_ONE])
