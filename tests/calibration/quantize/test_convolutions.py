"""Convolutions of graphs that give images: which are quantized, their arithmetic against PyTorch's
fake quantization, what the lint refuses, and the PSNR that they are judged by."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional

from fewstep.build.precision import lower
from fewstep.calibration.quantize.activations import measure
from fewstep.calibration.quantize.judge import Judge
from fewstep.calibration.quantize.lint import lint
from fewstep.calibration.quantize.matmuls import blocks, weighted_matmuls
from fewstep.calibration.quantize.qdq import quantized
from fewstep.calibration.quantize.readout import Readout
from fewstep.calibration.quantize.rollouts import Pass, Rollouts
from fewstep.calibration.quantize.sensitivity import fewest_kept, rank
from fewstep.calibration.quantize.settings import tolerances
from fewstep.runtime.errors import EngineError, RequestError
from fewstep.runtime.records import Metrics

from .graphs import node_of, run, weight_of

Floats = npt.NDArray[np.float32]
_INNER = ("first", "middle", "up", "project")
_READ = {"first": "x", "middle": "r", "up": "m", "project": "flat"}


def _decoder() -> onnx.ModelProto:
    """``tokens [B, 4]`` → ``image [B, 3, 4, 4]``: first, middle and transposed convolution, a
    matmul, last convolution. The transposed one has more outputs than inputs."""
    random = np.random.default_rng(3)

    def weight(name: str, *shape: int) -> TensorProto:
        values = 0.4 * random.standard_normal(shape).astype(np.float32)
        return numpy_helper.from_array(values, name)

    node = helper.make_node
    nodes = [
        node("Gather", ["codes", "tokens"], ["z"], "embed"),
        node("Transpose", ["z"], ["zt"], "turn", perm=[0, 2, 1]),
        node("Reshape", ["zt", "square"], ["x"], "grid"),
        node("Conv", ["x", "w_first", "b_first"], ["f"], "first", pads=[1, 1, 1, 1]),
        node("Relu", ["f"], ["r"], "relu"),
        node("Conv", ["r", "w_middle", "b_middle"], ["c"], "middle", pads=[1, 1, 1, 1]),
        node("Add", ["r", "c"], ["m"], "residual"),
        node("ConvTranspose", ["m", "w_up", "b_up"], ["u"], "up", strides=[2, 2]),
        node("Transpose", ["u"], ["flat"], "last_axis", perm=[0, 2, 3, 1]),
        node("MatMul", ["flat", "w_project"], ["p"], "project"),
        node("Transpose", ["p"], ["back"], "first_axis", perm=[0, 3, 1, 2]),
        node("Conv", ["back", "w_last", "b_last"], ["i"], "last", pads=[1, 1, 1, 1]),
        node("Clip", ["i", "zero", "one"], ["image"], "clamp"),
    ]
    weights = [
        weight("codes", 5, 4),
        *(weight("w_first", 6, 4, 3, 3), weight("b_first", 6)),
        *(weight("w_middle", 6, 6, 3, 3), weight("b_middle", 6)),
        *(weight("w_up", 6, 8, 2, 2), weight("b_up", 8), weight("w_project", 8, 8)),
        *(weight("w_last", 3, 8, 3, 3), numpy_helper.from_array(np.full(3, 0.5, "f4"), "b_last")),
        numpy_helper.from_array(np.array([0, 4, 2, 2]), "square"),
        numpy_helper.from_array(np.array(0, np.float32), "zero"),
        numpy_helper.from_array(np.array(1, np.float32), "one"),
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "decoder",
        [info("tokens", TensorProto.INT32, ["batch", 4])],
        [info("image", TensorProto.FLOAT, ["batch", 3, 4, 4])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def _rollouts(count: int, seed: int) -> Rollouts:
    tokens = np.random.default_rng(seed).integers(0, 5, (count, 4)).astype(np.int32)
    return Rollouts(tuple(Pass({"tokens": t}, {"tokens": t}) for t in np.array_split(tokens, 2)))


_RANGES = measure(_decoder(), _READ.values(), _rollouts(8, 0), method="min-max")
_HELD_OUT = _rollouts(6, 1)


def _made(names: Sequence[str] = _INNER) -> onnx.ModelProto:
    return quantized(_decoder(), names, _RANGES)


def _delicate(model: onnx.ModelProto) -> dict[str, str]:
    return {each.name: each.delicate for each in weighted_matmuls(model.graph, convolutions=True)}


# --- which


def test_the_one_that_gives_the_image_is_delicate() -> None:
    assert _delicate(_decoder()) == {**dict.fromkeys(_INNER, ""), "last": "gives the image"}
    assert [each.name for each in weighted_matmuls(_decoder().graph)] == ["project"]


def test_a_transposed_one_in_groups_is_left_out_and_another_is_not() -> None:
    """In groups a ConvTranspose has no axis of its weight along which all output channels lie."""
    model = _decoder()
    for name in ("up", "middle"):
        node_of(model, name).attribute.append(helper.make_attribute("group", 2))
    assert _delicate(model).keys() == {"first", "middle", "project", "last"}


def test_each_convolution_is_a_block() -> None:
    graph = _decoder().graph
    found = blocks(graph, weighted_matmuls(graph, convolutions=True))
    assert [len(each) for each in found] == [1] * 5


# --- arithmetic


def _fake(values: Floats, tensor: str) -> torch.Tensor:
    scale = max(map(abs, _RANGES[tensor])) / 127
    return torch.fake_quantize_per_tensor_affine(torch.from_numpy(values), scale, 0, -128, 127)


def _fake_weight(name: str, axis: int) -> torch.Tensor:
    weight = torch.from_numpy(weight_of(_decoder(), name).copy())
    scale = weight.abs().amax([each for each in range(weight.ndim) if each != axis]) / 127
    zero = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, axis, -128, 127)


def test_quantized_convolutions_compute_what_pytorch_does() -> None:
    """Output channels are the first axis of a Conv's weight, the second of a ConvTranspose's; the
    bias stays as it is."""
    model = _made()
    r, c, m, u, flat, p = run(model, _HELD_OUT.passes[0].inputs, ["r", "c", "m", "u", "flat", "p"])
    biases = {n: torch.from_numpy(weight_of(model, n).copy()) for n in ("b_middle", "b_up")}
    expected = functional.conv2d(
        _fake(r, "r"), _fake_weight("w_middle", 0), biases["b_middle"], padding=1
    )
    np.testing.assert_allclose(c, expected, rtol=1e-4, atol=1e-5)
    up = functional.conv_transpose2d(
        _fake(m, "m"), _fake_weight("w_up", 1), biases["b_up"], stride=2
    )
    np.testing.assert_allclose(u, up, rtol=1e-4, atol=1e-5)
    product = _fake(flat, "flat") @ _fake_weight("w_project", 1)
    np.testing.assert_allclose(p, product, rtol=1e-4, atol=1e-5)
    exact = torch.from_numpy(weight_of(_decoder(), "w_middle").copy())
    assert np.abs(c - functional.conv2d(torch.from_numpy(r), exact, padding=1).numpy()).max() > 1e-3


def test_nothing_is_quantized_after_a_convolution_and_others_stay() -> None:
    model = _made()
    onnx.checker.check_model(model, full_check=True)
    assert lint(model, "int8") == ()
    read = {node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    assert read == set(_READ.values())
    for name in ("residual", "last"):
        assert node_of(model, name).input == node_of(_decoder(), name).input
    stored = {each.name: each.data_type for each in model.graph.initializer}
    assert stored["b_middle"] == TensorProto.FLOAT and "w_middle" not in stored


def test_other_layers_in_fp16() -> None:
    made = quantized(_decoder(), _INNER, _RANGES, fp16_scales=True)
    low = lower(made, "fp16").model
    assert lint(low, "int8") == ()
    expected, found = (run(e, _HELD_OUT.passes[0].inputs, ["image"])[0] for e in (made, low))
    assert np.abs(found - expected).mean() < 1e-2


# --- the lint


def _axis(model: onnx.ModelProto, weight: str) -> onnx.AttributeProto:
    node = node_of(model, f"{weight}_DequantizeLinear")
    found: onnx.AttributeProto = next(each for each in node.attribute if each.name == "axis")
    return found


def _wrong_axis(model: onnx.ModelProto) -> None:
    _axis(model, "w_middle").i = 1


def _wrong_transposed_axis(model: onnx.ModelProto) -> None:
    weight = next(each for each in model.graph.initializer if each.name == "w_up_quantized")
    square = numpy_helper.to_array(weight)[:, :6]
    weight.CopyFrom(numpy_helper.from_array(square, weight.name))
    _axis(model, "w_up").i = 0


def _one_scale(model: onnx.ModelProto) -> None:
    for place in (1, 2):
        name = node_of(model, "w_middle_DequantizeLinear").input[place]
        tensor = next(each for each in model.graph.initializer if each.name == name)
        first = numpy_helper.to_array(tensor)[:1].reshape(())
        tensor.CopyFrom(numpy_helper.from_array(first, name))


def _weight_alone(model: onnx.ModelProto) -> None:
    node_of(model, "middle").input[0] = "r"


def _quantized_bias(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(6, np.int32), "b_int"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(1e-3, np.float32), "b_scale"))
    made = helper.make_node("DequantizeLinear", ["b_int", "b_scale"], ["b_float"], "bias_dq")
    model.graph.node.insert(0, made)
    node_of(model, "middle").input[2] = "b_float"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_wrong_axis, "not quantized by output channel: middle"),
        (_wrong_transposed_axis, "not quantized by output channel: up"),
        (_one_scale, "not quantized by output channel: middle"),
        (_weight_alone, "one operand quantized and the other not: middle"),
        (_quantized_bias, "a quantized bias: middle"),
    ],
)
def test_each_rule_names_the_node(damage: Callable[[onnx.ModelProto], None], said: str) -> None:
    model = _made()
    damage(model)
    assert said in "\n".join(map(str, lint(model, "int8")))


def test_the_last_may_not_be_quantized() -> None:
    model = quantized(_decoder(), ["last"], {"back": (-1.0, 1.0)})
    said = "\n".join(map(str, lint(model, "int8")))
    assert "a quantized convolution that gives the image: last" in said


# --- what it is judged by

_IMAGES = Readout(own={"image": 0}, images=True)


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge(_decoder(), _IMAGES, _HELD_OUT)


def test_psnr_is_that_of_numpy(judge: Judge) -> None:
    found = judge.metrics(_made())
    errors = [
        run(_made(), each.own, ["image"])[0].astype(np.float64)
        - run(_decoder(), each.own, ["image"])[0]
        for each in _HELD_OUT.passes
    ]
    squares = np.concatenate([np.square(each).ravel() for each in errors])
    assert found.psnr_db == pytest.approx(-10 * np.log10(squares.mean()), abs=0.1)
    assert found.cost == pytest.approx(squares.mean(), rel=3e-2)
    assert found.psnr_db is not None and 20 < found.psnr_db < 80
    assert found.text == f"PSNR {found.psnr_db:.1f} dB"
    assert (found.kl_nats, found.relative_error) == (None, None)


def test_the_graph_itself_has_the_highest_psnr(judge: Judge) -> None:
    assert judge.metrics(_decoder()).psnr_db == 120


def test_nan_is_refused(judge: Judge) -> None:
    model = _decoder()
    weight = next(each for each in model.graph.initializer if each.name == "b_middle")
    weight.CopyFrom(numpy_helper.from_array(np.full(6, np.nan, np.float32), "b_middle"))
    with pytest.raises(EngineError, match="NaN or infinite"):
        judge.metrics(model)


def test_metrics_are_of_one_kind() -> None:
    with pytest.raises(ValueError, match="relative_error or psnr_db"):
        Metrics(psnr_db=40.0, relative_error=0.1)
    with pytest.raises(ValueError, match="relative_error or psnr_db"):
        Metrics(psnr_db=40.0, kl_nats=0.1, token_agreement=1.0)
    assert Metrics(psnr_db=40.0).within(tolerances("layer", min_psnr=40.0))
    assert not Metrics(psnr_db=39.0).within(tolerances("layer", min_psnr=40.0))


def test_auto_spares_the_fewest(judge: Judge) -> None:
    ranking = rank(judge, _made, [[name] for name in _INNER])
    alone = [judge.metrics(_made(list(each.nodes))).psnr_db for each in ranking]
    assert [each.psnr_db for each in ranking] == alone == sorted(alone)  # type: ignore[type-var]
    together = judge.metrics(_made()).psnr_db
    assert together is not None and alone[0] is not None

    def spared(least: float) -> int:
        wanted = tolerances("layer", min_psnr=least).model_copy(update={"ranking": ranking})
        return fewest_kept(judge, _made, wanted)

    assert spared(together - 1) == 0 and spared(alone[0] + 1) >= 1
    with pytest.raises(RequestError, match="within a PSNR in dB of 119: .* loosen --min-psnr"):
        spared(119.0)
