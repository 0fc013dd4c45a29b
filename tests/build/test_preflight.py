"""The preflight: every kind of bad graph and profile ends in a message that names what is wrong and
what to do, and good bundles pass.

Bad graphs take the place of the tiny bundle's decoder, with a manifest whose hashes are right, as
after a faulty export.
"""

from __future__ import annotations

import random
from pathlib import Path

import onnx
import pytest
from onnx import helper
from tests.build.preflight_graphs import (
    Ranges,
    all_ranges,
    check,
    decoder,
    external,
    only_problem,
    square,
    using,
    weight,
    with_graph,
)

from fewstep.build.parser_report import parser_report, reasons
from fewstep.build.preflight import Problem, require
from fewstep.build.variants import add_variant
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import EngineError
from fewstep.runtime.records import EngineBackend, Precision, ShapeRange


@pytest.fixture
def bundle(bundle_copy: Path) -> Bundle:
    return Bundle.read(bundle_copy)


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_good_bundles_have_no_problem(
    bundle: Bundle, backend: EngineBackend, precision: Precision
) -> None:
    if precision != "fp32":
        bundle, _ = add_variant(bundle, precision)
    assert check(bundle, backend=backend, precision=precision) == ()
    assert Bundle.read(bundle.path).damage() == {}


def test_text_bundles_have_no_problem(tiny_text_bundle: Path) -> None:
    assert check(Bundle.read(tiny_text_bundle)) == ()


def test_the_decoder_that_bad_graphs_are_made_of_is_good(bundle: Bundle) -> None:
    assert check(with_graph(bundle, decoder([], []))) == ()


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
    found = {each.graph: str(each) for each in check(bundle)}
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
    problem = only_problem(with_graph(bundle, content))
    assert what in problem.what
    assert "bad.onnx" in problem.what
    assert "make it again" in problem.remedy


def test_a_truncated_file_with_the_right_hash(bundle: Bundle) -> None:
    content = decoder([], [])
    assert (
        "is not an ONNX file" in only_problem(with_graph(bundle, content[: len(content) // 2])).what
    )


@pytest.mark.parametrize("part", ["node", "input", "output"])
def test_a_graph_without_nodes_inputs_or_outputs(bundle: Bundle, part: str) -> None:
    model = onnx.load_from_string(decoder([], []))
    model.graph.ClearField(part)
    assert f"no {part}s" in only_problem(with_graph(bundle, model.SerializeToString())).what


def test_a_file_that_onnx_refuses(bundle: Bundle) -> None:
    node = helper.make_node("Add", ["x", "nowhere"], ["y"], "lost")
    problem = only_problem(with_graph(bundle, decoder([node], [])))
    assert "onnx.checker refuses bad.onnx" in problem.what
    assert "nowhere" in problem.what
    assert "lost" in problem.what


def test_shapes_that_contradict_each_other(bundle: Bundle) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "mismatched")
    problem = only_problem(with_graph(bundle, decoder([node], [weight("w", (5, 16))])))
    assert "onnx.checker refuses" in problem.what
    assert "mismatched" in problem.what


@pytest.mark.parametrize("seed", range(30))
def test_no_damage_raises_anything(bundle: Bundle, seed: int) -> None:
    draw = random.Random(seed)
    content = bytearray(decoder([helper.make_node("MatMul", ["x", "w"], ["y"], "p")], [square()]))
    for _ in range(draw.randint(1, 4)):
        content[draw.randrange(len(content))] = draw.randrange(256)
    if seed % 3 == 0:
        del content[draw.randrange(len(content)) :]
    assert all(each.remedy for each in check(with_graph(bundle, bytes(content))))


def test_damage_of_the_graphs_that_others_were_made_of_is_found(bundle: Bundle) -> None:
    """The fp16 graphs are whole; their sources would be missed when they are made again."""
    bundle, _ = add_variant(bundle, "fp16")
    file = bundle.path / "policy.onnx"
    file.write_bytes(b"?" + file.read_bytes()[1:])
    problem = only_problem(bundle, precision="fp16")
    assert problem.graph == "policy"
    assert "policy.onnx, the graph in fp32, does not have the manifest's SHA-256" in problem.what
    assert problem.remedy.startswith("copy the bundle again, or make it again, as before: pytest")


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
    content = external(location=location)
    (bundle.path.parent / "outside.data").write_bytes(bytes(1024))
    changed = with_graph(bundle, content, {"own.data": bytes(1024)}, listed=listed)
    if not what:
        assert check(changed) == ()
        return
    problem = only_problem(changed)
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
    content = external(location="own.data", **place)
    problem = only_problem(with_graph(bundle, content, {"own.data": bytes(1024)}, listed=True))
    assert what in problem.what
    assert problem.offenders == ("w",)


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
    ranges: Ranges = {**all_ranges(bundle), "policy": (profile,)}
    found = check(bundle, ranges=ranges)
    if not said:
        assert found == ()
        return
    (problem,) = found
    assert problem.graph == "policy"
    assert said in str(problem)
    assert problem.remedy


def test_every_profile_is_checked(bundle: Bundle) -> None:
    ranges: Ranges = {**all_ranges(bundle), "policy": (_GOOD, {"step": _GOOD["step"]})}
    (problem,) = check(bundle, ranges=ranges)
    assert str(problem).startswith("graph 'policy': profile 1, inputs without a range: features")


def test_a_graph_without_profiles(bundle: Bundle) -> None:
    ranges = all_ranges(bundle)
    del ranges["decoder"]
    (problem,) = check(bundle, ranges=ranges)
    assert problem.graph == "decoder"
    assert problem.offenders == ("tokens",)
    assert "received none" in problem.what


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


# ---- what the parser says --------------------------------------------------------------------


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
    assert parser_report(bundle.path / "decoder.onnx", "tensorrt-rtx") is None
    bad = with_graph(bundle, using("NonZero", ""))
    said = parser_report(bad.path / "bad.onnx", "tensorrt-rtx")
    assert said is not None
    assert "culprit" in said
    assert "its parser says: In node" in only_problem(bad).remedy


def test_nobody_can_be_asked_about_a_backend_that_is_not_installed(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert parser_report(bundle.path / "decoder.onnx", "tensorrt") is None
