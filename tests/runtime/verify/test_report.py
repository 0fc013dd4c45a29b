"""The document of a verification: verdict, JSON without NaN, Markdown that stays in its cells."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from fewstep.runtime.errors import RequestError
from fewstep.runtime.verify import (
    Check,
    Divergence,
    Report,
    TensorError,
    Unavailable,
    Verification,
    as_markdown,
    divergence_lines,
    require_report_path,
    write_report,
)

_GOOD = Check("transformer", "cosine", "logit_error", 2e-4, 1e-3, True, (1e-4, 2e-4))
_BAD = Check("decoder", "cosine", "psnr_db", math.nan, 60.0, False)
_LOOP = Check("loop", "cosine", "token_agreement", 0.1, 0.99, False)
_REPORT = Report("a/bundle", "fp32", (_GOOD,), "onnxruntime", "cpu")
_ASKED = Unavailable("bf16", "ONNX Runtime has no\nbf16 | at all", asked=True)
_TENSOR = TensorError("t", "node_t", "MatMul", 0.5, 3.0)
_FOUND = Divergence(
    graph="decoder",
    precision="fp16",
    backend="onnxruntime on cpu",
    reference="fp32 of a/bundle",
    rollout="cosine",
    step=3,
    image=1,
    tolerance=0.02,
    compared=5,
    tensors=9,
    first=_TENSOR,
    before=(TensorError("s", "node_s", "Add", 1e-3, 2.0),),
    weights=("w",),
    first_not_finite=TensorError("n", "node_n", "Exp", math.inf, math.inf),
    worst=_TENSOR,
)


def _verification(*checks: Check, unavailable: tuple[Unavailable, ...] = ()) -> Verification:
    report = replace(_REPORT, checks=checks)
    machine, packages = {"system": "Linux | x"}, {"onnxruntime": "1.20", "torch": None}
    return Verification("tiny", "a/bundle", machine, packages, (report,), unavailable, (_FOUND,))


@pytest.mark.parametrize(
    ("verification", "passed"),
    [
        (_verification(_GOOD), True),
        (_verification(_GOOD, _BAD), False),
        (_verification(_GOOD, unavailable=(_ASKED,)), False),
        (_verification(_GOOD, unavailable=(replace(_ASKED, asked=False),)), True),
        (replace(_verification(_GOOD), reports=()), False),
    ],
)
def test_verdict(verification: Verification, passed: bool) -> None:
    assert verification.passed is passed
    verdict = "passed" if passed else "**failed**"
    assert as_markdown(verification).startswith(f"# Verification of tiny: {verdict}\n")


def test_the_loop_is_no_graph_of_its_own() -> None:
    assert replace(_REPORT, checks=(_LOOP, _BAD, _GOOD, _BAD)).failing_graphs == ("decoder",)
    assert replace(_REPORT, checks=(_LOOP,)).failing_graphs == ()


def test_json_holds_no_nan_and_no_infinity(tmp_path: Path) -> None:
    write_report(_verification(_GOOD, _BAD, unavailable=(_ASKED,)), tmp_path / "r.json")
    text = (tmp_path / "r.json").read_text()
    document = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert document["reports"][0]["checks"][1]["value"] is None
    assert document["reports"][0]["checks"][0]["steps"] == [1e-4, 2e-4]
    (found,) = document["divergences"]
    assert found["first"] == {
        "tensor": "t",
        "node": "node_t",
        "operator": "MatMul",
        "error": 0.5,
        "largest": 3.0,
        "finite": True,
    }
    odd = found["first_not_finite"]
    assert (odd["error"], odd["largest"], odd["finite"]) == (None, None, False)


def test_a_metric_that_is_not_judged_may_be_any_number_but_nan() -> None:
    unjudged = replace(_GOOD, tolerance=math.inf)
    assert (_GOOD.wanted, _BAD.wanted, unjudged.wanted) == ("≤ 0.001", "≥ 60", "any number")
    assert unjudged.passed
    assert not replace(unjudged, value=math.nan).passed
    assert unjudged.as_dict()["tolerance"] is None
    assert "| any number | passed |" in as_markdown(_verification(unjudged))


def test_markdown_keeps_its_tables_whole() -> None:
    text = as_markdown(_verification(_GOOD, _BAD, unavailable=(_ASKED,)))
    rows = [line for line in text.splitlines() if line.startswith("|")]
    widths = {row.replace("\\|", "").count("|") for row in rows}
    assert widths == {3, 6, 7}  # machine, worst steps, metrics
    assert "| system | Linux \\| x |" in rows
    assert "| onnxruntime | 1.20 |" in rows
    assert not any("torch" in row for row in rows)
    assert "| transformer | cosine | largest logit error | 1 of 0 … 1 | 0.0002 |" in rows
    assert "| decoder | cosine | PSNR, dB | nan | ≥ 60 | **failed** |" in rows
    assert "bf16 cannot run here (asked for, so this fails): ONNX Runtime has no bf16 \\|" in text


def test_a_divergence_in_words() -> None:
    assert divergence_lines(_FOUND) == [
        "decoder in fp16 (cosine, step 3, image 1): first differs from fp32 of a/bundle at t of "
        "node node_t (MatMul), error 0.5",
        "reads s of node node_s (Add), error 0.001",
        "reads weights w",
        "first NaN or infinite numbers: n of node node_n (Exp), which has NaN or infinite numbers",
        "looked at 5 of 9 tensors, with onnxruntime on cpu; a tensor may differ by 0.02 of its "
        "largest magnitude",
    ]


def test_nothing_found_in_words() -> None:
    nothing = replace(_FOUND, first=None, before=(), weights=(), first_not_finite=None)
    lines = divergence_lines(nothing)
    assert lines[0].endswith("no tensor differs from fp32 of a/bundle by more than 0.02")
    assert lines[1] == "the largest error: t of node node_t (MatMul), error 0.5"
    alone = divergence_lines(replace(nothing, reference="", worst=None))
    assert alone[0].endswith("all tensors are finite")
    assert alone[-1].endswith("from elsewhere with --reference")
    odd = replace(_TENSOR, error=None, largest=math.inf)
    begins = divergence_lines(replace(nothing, reference="", first=odd, first_not_finite=odd))
    assert "NaN or infinite numbers begin at t of node node_t (MatMul)" in begins[0]
    assert len(begins) == 2


@pytest.mark.parametrize("name", ["r.txt", "r", ".md"])
def test_other_endings_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RequestError, match=r"ends in \.md or \.json"):
        require_report_path(tmp_path / name)


def test_a_report_replaces_the_last_one_whole(tmp_path: Path) -> None:
    for verification in (_verification(_GOOD, _BAD), _verification(_GOOD)):
        write_report(verification, tmp_path / "report.md")
        assert (tmp_path / "report.md").read_text() == as_markdown(verification)
    assert [each.name for each in tmp_path.iterdir()] == ["report.md"]
