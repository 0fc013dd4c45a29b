"""``fewstep verify``: several precisions, report files, ``--layers``, and the exit code."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from fewstep.build.variants import add_variant
from fewstep.runtime.bundle import Bundle

if TYPE_CHECKING:
    from tests.conftest import Terminal


@pytest.fixture(scope="module")
def variants(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with fp16 and bf16 graphs; the latter cannot run on the CPU."""
    folder = shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("variants") / "bundle")
    add_variant(add_variant(Bundle.read(folder), "fp16")[0], "bf16")
    return folder


@pytest.fixture(scope="module")
def broken(variants: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Another weight in the decoder's fp32 graph, and the name of the node that reads it."""
    folder = shutil.copytree(variants, tmp_path_factory.mktemp("broken") / "bundle")
    bundle = Bundle.read(folder)
    model = onnx.load(bundle.graph_path("decoder"))
    node = [each for each in model.graph.node if each.op_type == "Conv"][2]
    weight = next(each for each in model.graph.initializer if each.name == node.input[1])
    values = numpy_helper.to_array(weight).copy()
    values.flat[0] += 10 * np.abs(values).max()
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    graphs = bundle.manifest.model_dump()["graphs"]
    graphs["decoder"]["file"] = "broken.onnx"
    bundle.update({"broken.onnx": model.SerializeToString()}, graphs=graphs)
    return folder, str(node.name)


def _json(fewstep: Terminal, *arguments: object, code: int = 0) -> dict[str, Any]:
    outcome = fewstep("verify", *arguments, "--json")
    assert (outcome.code, outcome.err) == (code, "")
    document: dict[str, Any] = json.loads(outcome.out)
    return document


# --- precisions


def test_by_default_it_is_what_generators_open(fewstep: Terminal, tiny_bundle: Path) -> None:
    document = _json(fewstep, tiny_bundle)
    assert document["passed"] is True
    assert [each["precision"] for each in document["reports"]] == ["fp32"]
    assert (document["unavailable"], document["divergences"]) == ([], [])


def test_all_precisions_skip_what_cannot_run_here(fewstep: Terminal, variants: Path) -> None:
    document = _json(fewstep, variants, "--precision", "all")
    assert document["passed"] is True
    assert [each["precision"] for each in document["reports"]] == ["fp32", "fp16"]
    (skipped,) = document["unavailable"]
    assert (skipped["precision"], skipped["asked"]) == ("bf16", False)
    assert "NOT_IMPLEMENTED" in skipped["reason"]
    shown = fewstep("verify", variants, "--precision", "all")
    assert (shown.code, shown.err) == (0, "")
    assert "bf16 cannot run here (skipped): ONNX Runtime" in shown.out


@pytest.mark.parametrize("named", [["bf16"], ["fp32", "bf16"], ["all", "bf16"]])
def test_a_named_precision_that_cannot_run_fails(
    fewstep: Terminal, variants: Path, named: list[str]
) -> None:
    wish = [part for name in named for part in ("--precision", name)]
    document = _json(fewstep, variants, *wish, code=1)
    assert document["passed"] is False
    assert all(each["passed"] for each in document["reports"])
    assert [each["asked"] for each in document["unavailable"]] == [True]
    assert "(asked for, so this fails)" in fewstep("verify", variants, *wish).out


def test_a_precision_named_twice_is_verified_once(fewstep: Terminal, variants: Path) -> None:
    document = _json(fewstep, variants, "--precision", "fp16", "--precision", "fp16")
    assert [each["precision"] for each in document["reports"]] == ["fp16"]


def test_a_precision_that_is_not_there_is_one_line(fewstep: Terminal, tiny_bundle: Path) -> None:
    outcome = fewstep("verify", tiny_bundle, "--precision", "fp8")
    assert (outcome.code, outcome.out) == (1, "")
    assert "there are no fp8 graphs; make them with: fewstep calibrate quantize" in outcome.err


def test_a_graph_that_is_refused_is_not_skipped(
    fewstep: Terminal, variants: Path, tmp_path: Path
) -> None:
    """Only what the backend has no implementation for is; a graph that is wrong is an error."""
    folder = shutil.copytree(variants, tmp_path / "bundle")
    bundle = Bundle.read(folder)
    model = onnx.load(bundle.graph_path("decoder", "fp16"))
    model.graph.node[0].input[0] = "nothing"
    changed = bundle.manifest.model_dump()["variants"]
    changed["fp16"]["decoder"]["file"] = "refused.onnx"
    bundle.update({"refused.onnx": model.SerializeToString()}, variants=changed)
    outcome = fewstep("verify", folder, "--precision", "all")
    assert (outcome.code, outcome.out) == (1, "")
    assert "refuses graph 'decoder'" in outcome.err


# --- report files


@pytest.mark.parametrize("precision", ["fp32", "all"])
def test_report_in_json_is_what_is_printed(
    fewstep: Terminal, variants: Path, tmp_path: Path, precision: str
) -> None:
    file = tmp_path / "new" / "report.json"
    printed = _json(fewstep, variants, "--precision", precision, "--report", file)
    assert json.loads(file.read_text()) == printed
    assert [each.name for each in file.parent.iterdir()] == ["report.json"]


def test_report_in_markdown(fewstep: Terminal, broken: tuple[Path, str], tmp_path: Path) -> None:
    folder, node = broken
    file = tmp_path / "report.md"
    wish = ["--precision", "all", "--precision", "bf16", "--layers", "--reference", folder]
    outcome = fewstep("verify", folder, *wish, "--report", file)
    text = file.read_text()
    assert outcome.code == 1
    assert text.startswith("# Verification of tiny: **failed**\n")
    assert "## fp32: **failed** (onnxruntime on cpu)" in text
    assert "| decoder | cosine | PSNR, dB |" in text
    assert "bf16 cannot run here (asked for, so this fails)" in text
    assert "| onnxruntime | " in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in tables)


@pytest.mark.parametrize("name", ["report.txt", "report", "report.MD.html"])
def test_other_endings_are_refused_at_once(fewstep: Terminal, tmp_path: Path, name: str) -> None:
    outcome = fewstep("verify", tmp_path / "no-bundle", "--report", tmp_path / name)
    assert (outcome.code, outcome.out) == (1, "")
    assert "expected a file name that ends in .md or .json" in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_a_report_that_cannot_be_written_is_one_line(
    fewstep: Terminal, tiny_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    outcome = fewstep("verify", tiny_bundle, "--report", tmp_path / "file" / "report.md")
    assert outcome.code == 1
    assert outcome.err.startswith("error: cannot write")


# --- layers


def test_layers_name_the_broken_node(
    fewstep: Terminal, broken: tuple[Path, str], tiny_bundle: Path
) -> None:
    folder, node = broken
    wish = ["--layers", "--reference", tiny_bundle]
    document = _json(fewstep, folder, *wish, code=1)
    assert document["reports"][0]["failing_graphs"] == ["decoder"]
    (found,) = document["divergences"]
    assert (found["graph"], found["precision"]) == ("decoder", "fp32")
    assert found["first"]["node"] == node
    shown = fewstep("verify", folder, *wish)
    assert shown.code == 1
    assert f"of node {node} (Conv), error" in shown.out


def test_layers_of_a_lower_precision_need_no_reference(fewstep: Terminal, variants: Path) -> None:
    document = _json(fewstep, variants, "--precision", "fp16", "--layers")
    found = document["divergences"]
    assert [each["graph"] for each in found] == ["transformer", "policy", "decoder"]
    assert all(each["first"] is None and each["worst"]["error"] < 0.01 for each in found)
    assert all(each["reference"].startswith("fp32 of ") for each in found)


def test_layers_of_fp32_alone_look_for_nan_and_ask_for_a_reference(
    fewstep: Terminal, tiny_bundle: Path
) -> None:
    shown = fewstep("verify", tiny_bundle, "--layers")
    assert shown.code == 0
    assert "transformer in fp32 (cosine, step 0, image 0): all tensors are finite" in shown.out
    assert "name the same model's bundle from elsewhere with --reference" in shown.out


def test_a_reference_needs_layers(fewstep: Terminal, tiny_bundle: Path) -> None:
    outcome = fewstep("verify", tiny_bundle, "--reference", tiny_bundle)
    assert (outcome.code, outcome.out) == (1, "")
    assert "pass --layers too" in outcome.err


def test_layers_without_onnx_are_one_line(
    fewstep: Terminal, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    outcome = fewstep("verify", tiny_bundle, "--layers")
    assert outcome.code == 1
    assert "onnx is not installed; install it with: pip install 'fewstep[build]'" in outcome.err


def test_verifying_without_layers_needs_no_onnx(tiny_bundle: Path, tmp_path: Path) -> None:
    """On a device there is neither onnx nor torch."""
    script = (
        "import sys; sys.modules['onnx'] = sys.modules['torch'] = None\n"
        "from fewstep.cli import main\n"
        f"sys.argv = ['fewstep', 'verify', {str(tiny_bundle)!r}, '--report', 'report.md']\n"
        "main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "passed" in (tmp_path / "report.md").read_text()
