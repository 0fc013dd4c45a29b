"""The preflight: every kind of bad graph, target and profile ends in a message that names what is
wrong and what to do, and good bundles pass.

Bad graphs take the place of the tiny bundle's decoder, with a manifest whose hashes are right, as
after a faulty export.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fewstep.build.preflight import Problem, preflight, require
from fewstep.build.second_opinion import reasons, second_opinion
from fewstep.build.variants import add_variant
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import EngineError, RequestError
from fewstep.runtime.manifest import ShapeRange

Ranges = dict[str, tuple[Mapping[str, ShapeRange], ...]]


@pytest.fixture
def bundle(bundle_copy: Path) -> Bundle:
    return Bundle.read(bundle_copy)


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_good_bundles_have_no_problem(bundle: Bundle, backend: str, precision: str) -> None:
    if precision != "fp32":
        bundle, _ = add_variant(bundle, precision)
    assert _check(bundle, backend=backend, precision=precision) == ()
    assert Bundle.read(bundle.path).damage() == {}


def test_text_bundles_have_no_problem(tiny_text_bundle: Path) -> None:
    assert _check(Bundle.read(tiny_text_bundle)) == ()


def test_the_decoder_that_bad_graphs_are_made_of_is_good(bundle: Bundle) -> None:
    assert _check(_with(bundle, _decoder([], []))) == ()


# ---- files -----------------------------------------------------------------------------------


def test_damaged_files_are_reported_together(bundle: Bundle) -> None:
    transformer, policy, decoder = (
        bundle.path / f"{n}.onnx" for n in ("transformer", "policy", "decoder")
    )
    transformer.unlink()
    policy.write_bytes(policy.read_bytes()[:-10])
    content = bytearray(decoder.read_bytes())
    content[len(content) // 2] ^= 1
    decoder.write_bytes(content)
    found = {each.graph: str(each) for each in _check(bundle)}
    assert list(found) == list(bundle.manifest.graphs)
    assert "transformer.onnx is missing" in found["transformer"]
    assert "bytes where the manifest says" in found["policy"]
    assert "does not have the manifest's SHA-256" in found["decoder"]
    assert all("make it again, as before: pytest" in each for each in found.values())


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "no nodes and no inputs and no outputs"),
        (b"not an ONNX file at all", "is not an ONNX file"),
        (bytes(100), "is not an ONNX file"),
        (onnx.ModelProto(ir_version=10).SerializeToString(), "no nodes"),
    ],
)
def test_what_is_no_onnx_graph(bundle: Bundle, content: bytes, what: str) -> None:
    problem = _only(_with(bundle, content))
    assert what in problem.what
    assert "bad.onnx" in problem.what
    assert "make it again" in problem.remedy


def test_a_truncated_file_with_the_right_hash(bundle: Bundle) -> None:
    content = _decoder([], [])
    assert "is not an ONNX file" in _only(_with(bundle, content[: len(content) // 2])).what


@pytest.mark.parametrize("part", ["node", "input", "output"])
def test_a_graph_without_nodes_inputs_or_outputs(bundle: Bundle, part: str) -> None:
    model = onnx.load_from_string(_decoder([], []))
    model.graph.ClearField(part)
    assert f"no {part}s" in _only(_with(bundle, model.SerializeToString())).what


def test_a_file_that_onnx_refuses(bundle: Bundle) -> None:
    node = helper.make_node("Add", ["x", "nowhere"], ["y"], "lost")
    problem = _only(_with(bundle, _decoder([node], [])))
    assert "onnx.checker refuses bad.onnx" in problem.what
    assert "nowhere" in problem.what
    assert "lost" in problem.what


def test_shapes_that_contradict_each_other(bundle: Bundle) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "mismatched")
    problem = _only(_with(bundle, _decoder([node], [_weight("w", (5, 16))])))
    assert "onnx.checker refuses" in problem.what
    assert "mismatched" in problem.what


@pytest.mark.parametrize("seed", range(30))
def test_no_damage_raises_anything(bundle: Bundle, seed: int) -> None:
    draw = random.Random(seed)
    content = bytearray(_decoder([helper.make_node("MatMul", ["x", "w"], ["y"], "p")], [_square()]))
    for _ in range(draw.randint(1, 4)):
        content[draw.randrange(len(content))] = draw.randrange(256)
    if seed % 3 == 0:
        del content[draw.randrange(len(content)) :]
    assert all(each.remedy for each in _check(_with(bundle, bytes(content))))


# ---- weights in other files ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("location", "listed", "what"),
    [
        ("own.data", True, ""),
        ("own.data", False, "weights in 'own.data', expected in files that the manifest names"),
        ("gone.data", True, "weights in 'gone.data', expected in files that the manifest names"),
        ("../outside.data", True, "'../outside.data'"),
        ("/etc/passwd", True, "'/etc/passwd'"),
        ("", True, "weights in ''"),
        ("own\0.data", True, "weights whose place cannot be read"),
    ],
)
def test_weights_in_other_files(bundle: Bundle, location: str, listed: bool, what: str) -> None:
    content = _external(location=location)
    (bundle.path.parent / "outside.data").write_bytes(bytes(1024))
    changed = _with(bundle, content, {"own.data": bytes(1024)}, listed=listed)
    if not what:
        assert _check(changed) == ()
        return
    problem = _only(changed)
    assert what in problem.what
    assert problem.offenders == ("w",)
    assert "make it again" in problem.remedy


@pytest.mark.parametrize(
    ("place", "what"),
    [
        ({"length": "1020"}, "weights beyond the end of 'own.data'"),
        ({"offset": "4"}, "weights beyond the end of 'own.data'"),
        ({"offset": "-4"}, "weights beyond the end of 'own.data'"),
        ({"offset": "first"}, "weights whose place cannot be read"),
    ],
)
def test_weights_beyond_the_end_of_their_file(
    bundle: Bundle, place: dict[str, str], what: str
) -> None:
    content = _external(location="own.data", **place)
    problem = _only(_with(bundle, content, {"own.data": bytes(1024)}, listed=True))
    assert what in problem.what
    assert problem.offenders == ("w",)


# ---- operators -------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize(
    ("operator", "domain", "remedy"),
    [
        ("NonZero", "", "instead of boolean masks"),
        ("Multinomial", "", "make the random numbers an input"),
        ("DynamicQuantizeLinear", "", "QuantizeLinear and DequantizeLinear"),
        ("BitwiseNot", "ai.onnx", "plain tensor operators"),
        ("FusedMatMul", "com.microsoft", "without one runtime's own optimizations"),
    ],
)
def test_operators_that_backends_lack(
    bundle: Bundle, backend: str, operator: str, domain: str, remedy: str
) -> None:
    found = _check(_with(bundle, _using(operator, domain)), backend=backend)
    problem = next(each for each in found if each.offenders)
    name = f"{domain}::{operator}" if domain == "com.microsoft" else operator
    assert problem.offenders == (f"culprit ({name})",)
    title = "TensorRT-RTX" if backend == "tensorrt-rtx" else "TensorRT"
    assert problem.what == f"operators that {title} cannot build"
    assert remedy in problem.remedy


def test_operators_in_the_branches_of_a_condition(bundle: Bundle) -> None:
    branch = helper.make_graph(
        [helper.make_node("NonZero", ["x"], ["b"])],
        "branch",
        [],
        [helper.make_tensor_value_info("b", TensorProto.INT64, None)],
    )
    given = helper.make_tensor("given", TensorProto.BOOL, [], [True])
    nodes = [
        helper.make_node("If", ["given"], ["i"], "choice", then_branch=branch, else_branch=branch),
        helper.make_node("Identity", ["x"], ["y"]),
    ]
    problem = _check(_with(bundle, _decoder(nodes, [given])))[0]
    assert problem.offenders[0] == "choice/NonZero making b (NonZero)"


def test_only_the_first_offenders_are_written_out(bundle: Bundle) -> None:
    nodes = [helper.make_node("NonZero", ["x"], [f"i{n}"], f"mask{n}") for n in range(8)]
    content = _decoder([*nodes, helper.make_node("Identity", ["x"], ["y"])], [])
    problem = _only(_with(bundle, content))
    assert len(problem.offenders) == 8
    assert "mask4 (NonZero) and 3 more; " in str(problem)
    assert "mask5" not in str(problem)


@pytest.mark.parametrize(
    ("opset", "backend", "fine"),
    [
        (8, "tensorrt-rtx", False),
        (20, "tensorrt", True),
        (21, "tensorrt", False),
        (21, "tensorrt-rtx", True),
        (99, "tensorrt-rtx", False),
    ],
)
def test_opsets(bundle: Bundle, opset: int, backend: str, fine: bool) -> None:
    model = onnx.load_from_string(_decoder([], []))
    model.opset_import[0].version = opset
    found = _check(_with(bundle, model.SerializeToString()), backend=backend)
    if fine:
        assert found == ()
        return
    assert f"received {opset}" in found[0].what
    assert "opset 20" in found[0].remedy


# ---- inputs and outputs ----------------------------------------------------------------------


def _renamed_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = model.graph.node[0].input[0] = "ids"


def _wrong_type(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64


def _wrong_size(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 25


def _fixed_batch(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def _another_output(model: onnx.ModelProto) -> None:
    model.graph.output.add().CopyFrom(
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 16])
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_renamed_input, "inputs that only the graph or only the manifest has: ids, tokens"),
        (_wrong_type, "input 'tokens': expected int32 ['?', 16], received int64 ['?', 16]"),
        (_wrong_size, "input 'tokens': expected int32 ['?', 16], received int32 ['?', 25]"),
        (_fixed_batch, "input 'tokens': expected int32 ['?', 16], received int32 [1, 16]"),
        (_another_output, "outputs that only the graph or only the manifest has: x"),
    ],
)
def test_inputs_and_outputs_that_the_manifest_does_not_state(
    bundle: Bundle, change: Callable[[onnx.ModelProto], None], said: str
) -> None:
    model = onnx.load_from_string(_decoder([], []))
    change(model)
    problem = _only(_with(bundle, model.SerializeToString()))
    assert said in str(problem)
    assert "make it again" in problem.remedy


# ---- precision -------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_fp32_products_are_not_for_7_5(bundle: Bundle, precision: str) -> None:
    if precision == "fp16":
        bundle, _ = add_variant(bundle, "fp16")
    found = _check(bundle, precision=precision, capabilities=["7.5", "8.6"])
    assert [each.graph for each in found] == ["transformer", "policy"]
    for each in found:
        assert each.what.startswith("fp32 matrix products need compute capability 8.0")
        assert each.what.endswith("received 7.5")
        assert f"fewstep build {bundle.path} --precision fp16 --no-fp32-heads --force" in str(each)
        assert each.remedy.endswith("leave 7.5 out of --compute-capability")


def test_without_fp32_heads_fp16_is_for_7_5(bundle: Bundle) -> None:
    bundle, _ = add_variant(bundle, "fp16", heads=False)
    assert _check(bundle, precision="fp16", capabilities=["7.5"]) == ()


@pytest.mark.parametrize(("backend", "ending"), [("tensorrt", "fp16"), ("tensorrt-rtx", "ity")])
def test_bf16_is_not_for_7_5(bundle: Bundle, backend: str, ending: str) -> None:
    bundle, _ = add_variant(bundle, "bf16")
    found = _check(bundle, backend=backend, precision="bf16", capabilities=["7.5"])
    told = [each for each in found if each.what.startswith("bf16 tensors")]
    assert {each.graph for each in told} == set(bundle.manifest.graphs)
    assert all(f"use fp16 graphs: fewstep build {bundle.path}" in str(each) for each in told)
    assert all(each.remedy.endswith(ending) for each in told)  # no such option with tensorrt


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_fp8_is_for_8_9_and_newer(bundle: Bundle, backend: str) -> None:
    changed = _with(bundle, _quantized(TensorProto.FLOAT8E4M3FN))
    problem = _only(changed, backend=backend, capabilities=["8.6"])
    assert problem.what == "fp8 tensors need compute capability 8.9 or newer, received 8.6"
    assert "x/quantize" in problem.offenders
    assert _check(changed, backend=backend, capabilities=["8.9"]) == ()


def test_int8_products_of_fp32_tensors_are_not_for_7_5(bundle: Bundle) -> None:
    changed = _with(bundle, _quantized(TensorProto.INT8))
    found = [each for each in _check(changed, capabilities=["7.5"]) if each.graph == "decoder"]
    (problem,) = found
    assert problem.what.startswith("int8 matrix products with fp32 inputs and outputs need")
    assert problem.offenders == ("product",)
    assert _check(changed, capabilities=["8.6"]) == ()


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize(
    ("kind", "zero", "what"),
    [
        (TensorProto.UINT8, 128, "received uint8"),
        (TensorProto.INT16, 0, "received int16"),
        (TensorProto.INT8, 3, "expected zero points of 0"),
    ],
)
def test_quantization_that_backends_refuse(
    bundle: Bundle, backend: str, kind: int, zero: int, what: str
) -> None:
    opset = 21 if kind == TensorProto.INT16 else 20
    found = _check(_with(bundle, _quantized(kind, zero, opset)), backend=backend)
    problem = found[0]
    if backend == "tensorrt" and opset > 20:
        assert "received 21" in problem.what
        return
    assert what in problem.what
    assert set(problem.offenders) == {"x/quantize", "x/dequantize", "w/dequantize"}
    assert "QInt8" in problem.remedy


def test_products_of_integers(bundle: Bundle) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["i"], "ids", to=TensorProto.INT32),
        helper.make_node("MatMul", ["i", "w"], ["j"], "integers"),
        helper.make_node("Cast", ["j"], ["y"], "back", to=TensorProto.FLOAT),
    ]
    weight = numpy_helper.from_array(np.ones((16, 16), np.int32), "w")
    problem = _only(_with(bundle, _decoder(nodes, [weight])))
    assert "received int32" in problem.what
    assert problem.offenders == ("integers",)


# ---- targets ---------------------------------------------------------------------------------


def test_tensorrt_rtx_needs_a_target(bundle: Bundle) -> None:
    problem = _only(bundle, capabilities=[])
    assert problem.graph == ""
    assert "received none" in problem.what
    assert "--compute-capability" in problem.remedy
    assert _check(bundle, backend="tensorrt", capabilities=[]) == ()


@pytest.mark.parametrize("capability", ["8.7", "11.0", "9.0"])
def test_targets_that_build_on_the_device(bundle: Bundle, capability: str) -> None:
    problem = _only(bundle, capabilities=["8.6", capability])
    assert problem.offenders == (capability,)
    assert "7.5, 8.0, 8.6, 8.9, 12.0, 12.1" in problem.what
    assert "build on the device itself" in problem.remedy
    assert problem.remedy.endswith("--precision fp32 --backend tensorrt")
    assert _check(bundle, backend="tensorrt", capabilities=[capability]) == ()


@pytest.mark.parametrize("capability", ["86", "sm_86", "", "8.66"])
def test_targets_that_are_no_compute_capability(bundle: Bundle, capability: str) -> None:
    problem = _only(bundle, capabilities=["8.6", capability])
    assert problem.offenders == (capability,)
    assert "such as 8.9" in problem.what


@pytest.mark.parametrize(("precision", "make"), [("fp16", "fp16"), ("int8", "fp16"), ("x", "fp16")])
def test_a_precision_that_the_bundle_does_not_have(
    bundle: Bundle, precision: str, make: str
) -> None:
    problem = _only(bundle, precision=precision)
    assert f"unknown precision '{precision}'" in problem.what
    assert f"fewstep build {bundle.path} --precision {make}" in problem.remedy


def test_an_unknown_backend(bundle: Bundle) -> None:
    with pytest.raises(RequestError, match="Did you mean 'tensorrt-rtx'"):
        _check(bundle, backend="tensorrt_rtx")


# ---- profiles --------------------------------------------------------------------------------

_GOOD = {
    "features": ShapeRange(min=(1, 16, 32), opt=(2, 16, 32), max=(4, 16, 32)),
    "step": ShapeRange(min=(1,), opt=(2,), max=(4,)),
}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, ""),
        ({"step": None}, "profile 0, inputs without a range: step"),
        ({"stop": _GOOD["step"]}, "profile 0, ranges for inputs that do not exist: stop"),
        (
            {"step": ShapeRange(min=(1,), opt=(8,), max=(4,))},
            "profile 0, expected min ≤ opt ≤ max, received min [1], opt [8], max [4]: step",
        ),
        (
            {"step": ShapeRange(min=(5,), opt=(5,), max=(4,))},
            "profile 0, expected min ≤ opt ≤ max, received min [5], opt [5], max [4]: step",
        ),
        (
            {"step": ShapeRange(min=(1, 1), opt=(2,), max=(4,))},
            "profile 0, expected 1 dimensions, received min [1, 1], opt [2], max [4]: step",
        ),
        (
            {"features": ShapeRange(min=(1, 16, 32), opt=(2, 16, 32), max=(4, 16, 64))},
            "profile 0, expected the fixed size 32, received min [1, 16, 32]",
        ),
        (
            {"step": ShapeRange(min=(1,), opt=(2,), max=(8,))},
            "profile 0, dimension 'batch' is one and the same, but has several [min, opt, max]: "
            "features [1, 2, 4], step [1, 2, 8]",
        ),
    ],
)
def test_profiles(bundle: Bundle, changed: dict[str, ShapeRange | None], said: str) -> None:
    profile = {name: value for name, value in {**_GOOD, **changed}.items() if value is not None}
    ranges: Ranges = {**_ranges(bundle), "policy": (profile,)}
    found = _check(bundle, ranges=ranges)
    if not said:
        assert found == ()
        return
    (problem,) = found
    assert problem.graph == "policy"
    assert said in str(problem)
    assert problem.remedy


def test_every_profile_is_checked(bundle: Bundle) -> None:
    ranges: Ranges = {**_ranges(bundle), "policy": (_GOOD, {"step": _GOOD["step"]})}
    (problem,) = _check(bundle, ranges=ranges)
    assert str(problem).startswith("graph 'policy': profile 1, inputs without a range: features")


def test_a_graph_without_profiles(bundle: Bundle) -> None:
    ranges = _ranges(bundle)
    del ranges["decoder"]
    (problem,) = _check(bundle, ranges=ranges)
    assert problem.graph == "decoder"
    assert problem.offenders == ("tokens",)
    assert "received none" in problem.what


def test_profiles_of_a_graph_that_does_not_exist(bundle: Bundle) -> None:
    ranges: Ranges = {**_ranges(bundle), "encoder": ()}
    (problem,) = _check(bundle, ranges=ranges)
    assert problem.graph == "encoder"
    assert "Did you mean 'decoder'" in problem.remedy


# ---- what is raised --------------------------------------------------------------------------


def test_nothing_is_raised_without_problems() -> None:
    require(())


def test_one_problem_is_one_line() -> None:
    with pytest.raises(EngineError) as caught:
        require([Problem("decoder", "too many", ("a", "b"), "take one")])
    assert str(caught.value) == "graph 'decoder': too many: a, b; take one"


def test_several_problems_are_raised_together() -> None:
    with pytest.raises(EngineError) as caught:
        require([Problem("", "no target", (), "name one"), Problem("policy", "bad", (), "mend it")])
    assert str(caught.value).splitlines() == [
        "2 problems before building:",
        "(1) no target; name one",
        "(2) graph 'policy': bad; mend it",
    ]


# ---- a second opinion ------------------------------------------------------------------------


def test_reasons_are_the_last_column() -> None:
    table = """===== Summary =====
Stack trace  | Operator  | Node         | Reason
--------------------------------------------------
             | NonZero   | mask         | In node 0: no | plugin
             | NonZero   | other        | In node 3: no plugin"""
    assert reasons(table) == ("In node 0: no | plugin", "In node 3: no plugin")
    assert reasons("") == ()


def test_polygraphy_names_the_node_that_the_parser_refuses(bundle: Bundle) -> None:
    pytest.importorskip("polygraphy", reason="polygraphy is not installed: fewstep[build] has it")
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: fewstep[rtx] has it")
    assert second_opinion(bundle.path / "decoder.onnx", "tensorrt-rtx") is None
    bad = _with(bundle, _using("NonZero", ""))
    said = second_opinion(bad.path / "bad.onnx", "tensorrt-rtx")
    assert said is not None
    assert "culprit" in said
    assert "its parser says: In node" in _only(bad).remedy


def test_nobody_can_be_asked_about_a_backend_that_is_not_installed(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert second_opinion(bundle.path / "decoder.onnx", "tensorrt") is None


# ---- helpers ---------------------------------------------------------------------------------


def _check(
    bundle: Bundle,
    *,
    backend: str = "tensorrt-rtx",
    precision: str = "fp32",
    capabilities: Sequence[str] = ("8.6", "8.9", "12.0"),
    ranges: Ranges | None = None,
) -> tuple[Problem, ...]:
    return preflight(
        bundle,
        backend=backend,
        precision=precision,
        compute_capabilities=capabilities,
        profiles=_ranges(bundle) if ranges is None else ranges,
    )


def _only(bundle: Bundle, **options: Any) -> Problem:
    (problem,) = _check(bundle, **options)
    return problem


def _ranges(bundle: Bundle) -> Ranges:
    """Batches of 1 to 4, tuned for 2."""

    def shape(sizes: tuple[int | str, ...], batch: int) -> tuple[int, ...]:
        return tuple(batch if isinstance(size, str) else size for size in sizes)

    return {
        name: (
            {
                key: ShapeRange(
                    min=shape(info.shape, 1), opt=shape(info.shape, 2), max=shape(info.shape, 4)
                )
                for key, info in graph.inputs.items()
            },
        )
        for name, graph in bundle.manifest.graphs.items()
    }


def _with(
    bundle: Bundle, content: bytes, files: Mapping[str, bytes] | None = None, listed: bool = False
) -> Bundle:
    """The bundle with another decoder, and whether its further files are listed as its weights."""
    graphs = bundle.manifest.model_dump()["graphs"]
    graphs["decoder"]["file"] = "bad.onnx"
    graphs["decoder"]["external"] = tuple(files or ()) if listed else ()
    return bundle.update({"bad.onnx": content, **(files or {})}, graphs=graphs)


def _decoder(
    nodes: Sequence[onnx.NodeProto], weights: Sequence[TensorProto], opset: int = 20
) -> bytes:
    """tokens → x [batch, 16] → ``nodes`` → y [batch, …] → image, with the tiny decoder's shapes."""
    given = "y" if nodes else "x"
    around = [
        helper.make_node("Cast", ["tokens"], ["x"], "begin", to=TensorProto.FLOAT),
        *nodes,
        helper.make_node("ReduceMean", [given], ["mean"], "mean", keepdims=1),
        helper.make_node("Reshape", ["mean", "to"], ["one"], "reshape"),
        helper.make_node("Add", ["one", "base"], ["image"], "end"),
    ]
    others = [
        numpy_helper.from_array(np.array([-1, 1, 1, 1]), "to"),
        numpy_helper.from_array(np.zeros((1, 3, 8, 8), np.float32), "base"),
    ]
    graph = helper.make_graph(
        around,
        "decoder",
        [helper.make_tensor_value_info("tokens", TensorProto.INT32, ["batch", 16])],
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [*weights, *others],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    content: bytes = model.SerializeToString()
    return content


def _using(operator: str, domain: str) -> bytes:
    nodes = [
        helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT32),
        helper.make_node(operator, ["i" if operator == "BitwiseNot" else "x"], ["z"], "culprit"),
        helper.make_node("Identity", ["x"], ["y"]),
    ]
    nodes[1].domain = domain
    if operator == "Multinomial":
        nodes[1].attribute.append(helper.make_attribute("sample_size", 1))
    if operator == "DynamicQuantizeLinear":
        nodes[1].output.extend(["scale", "zero"])
    return _decoder(nodes, [])


def _quantized(kind: int, zero: int = 0, opset: int = 20) -> bytes:
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["x/q"], "x/quantize"),
        helper.make_node("DequantizeLinear", ["x/q", "scale", "zero"], ["x/d"], "x/dequantize"),
        helper.make_node("DequantizeLinear", ["w/q", "scale", "zero"], ["w/d"], "w/dequantize"),
        helper.make_node("MatMul", ["x/d", "w/d"], ["y"], "product"),
    ]
    weights = [
        numpy_helper.from_array(np.array(0.1, np.float32), "scale"),
        numpy_helper.from_array(np.array(zero).astype(dtype), "zero"),
        numpy_helper.from_array(np.ones((16, 16)).astype(dtype), "w/q"),
    ]
    return _decoder(nodes, weights, opset)


def _external(**place: str) -> bytes:
    """A decoder whose square weight, 1,024 bytes, is in another file."""
    model = onnx.load_from_string(
        _decoder([helper.make_node("MatMul", ["x", "w"], ["y"], "product")], [_square()])
    )
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in place.items():
        weight.external_data.add(key=key, value=value)
    content: bytes = model.SerializeToString()
    return content


def _square() -> TensorProto:
    return _weight("w", (16, 16))


def _weight(name: str, shape: tuple[int, ...]) -> TensorProto:
    return numpy_helper.from_array(np.ones(shape, np.float32), name)
