"""The command line: every command on a tiny bundle, and every error as one line.

Commands run in this process through ``main``, which is what the console script calls.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

if TYPE_CHECKING:
    from tests.conftest import Terminal


def test_doctor(fewstep: Terminal) -> None:
    assert fewstep("doctor").code == 0
    assert json.loads(fewstep("doctor", "--json").out)["abilities"][0]["works"] is True


def test_inspect(fewstep: Terminal, tiny_bundle: Path) -> None:
    shown = fewstep("inspect", tiny_bundle)
    assert shown.code == 0
    assert "transformer" in shown.out
    assert json.loads(fewstep("inspect", tiny_bundle, "--json").out)["damage"] == {}


def test_inspect_fails_on_damage(fewstep: Terminal, tiny_bundle: Path, tmp_path: Path) -> None:
    for file in tiny_bundle.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "decoder.onnx").write_bytes(b"")
    outcome = fewstep("inspect", tmp_path)
    assert outcome.code == 1
    assert "decoder.onnx" in outcome.err


def test_verify(fewstep: Terminal, tiny_bundle: Path) -> None:
    outcome = fewstep("verify", tiny_bundle, "--json")
    assert outcome.code == 0
    assert json.loads(outcome.out)["passed"] is True


def test_verify_failure_sets_the_exit_code(
    fewstep: Terminal, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fewstep.runtime import verify

    strict = replace(verify.TOLERANCES["fp32"], psnr_db=1e9)
    monkeypatch.setitem(verify.TOLERANCES, "fp32", strict)
    assert fewstep("verify", tiny_bundle).code == 1


def test_generate_writes_picture_and_trace(
    fewstep: Terminal, tiny_bundle: Path, tmp_path: Path
) -> None:
    picture, gif = tmp_path / "x.png", tmp_path / "x.gif"
    wish = ["--class", "bag", "--class", 0, "--count", 2, "--steps", 3, "--guidance", "0:2"]
    outcome = fewstep("generate", tiny_bundle, *wish, "--out", picture, "--trace", gif, "--json")
    assert outcome.code == 0
    assert json.loads(outcome.out)["images"] == 4
    assert Image.open(picture).size > (8, 8)
    assert Image.open(gif).format == "GIF"


def test_generate_with_the_policy(fewstep: Terminal, tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.png"
    wish = ["--class", 1, "--schedule", "policy", "--out", out]
    assert fewstep("generate", tiny_bundle, *wish).code == 0
    assert Image.open(out).size == (8, 8)


def test_bench_writes_its_report(fewstep: Terminal, tiny_bundle: Path, tmp_path: Path) -> None:
    report = tmp_path / "bench.json"
    sizes = ["--batch", 1, "--batch", 2, "--runs", 2]
    shown = fewstep("-q", "bench", tiny_bundle, *sizes, "--report", report)
    assert (shown.code, shown.err) == (0, "")
    assert "images/s" in shown.out and "transformer" in shown.out
    measured = json.loads(report.read_text())["measurements"]
    assert [(m["name"], m["runs"]) for m in measured] == [("batch 1", 2), ("batch 2", 2)]
    best = max(measured, key=lambda each: each["images_per_s"])["name"]
    assert f"fastest: {best} with " in shown.out and shown.out.endswith(f"a run → {report}\n")


@pytest.mark.parametrize("kind", ["tiny_bundle", "tiny_text_bundle"])
def test_the_command_after_bench_runs(
    fewstep: Terminal,
    kind: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    bundle = request.getfixturevalue(kind)
    shown = fewstep("bench", bundle, "--runs", 1, "--steps", 2, 2, "--batch", 1, 1)
    assert shown.code == 0 and "batch 1, steps 2 with " in shown.out and "fastest" not in shown.out
    *_, after = shown.out.splitlines()
    words = shlex.split(after.removeprefix("next: "))
    assert words[:2] == ["fewstep", "generate" if kind == "tiny_bundle" else "compare"]
    assert words[words.index("--steps") + 1] == "2"
    assert fewstep(*words[1:]).code == 0


@pytest.mark.slow
def test_export_records_its_command(
    fewstep: Terminal, tiny_checkpoints: dict[str, Any], tmp_path: Path
) -> None:
    out, files = tmp_path / "bundle", tiny_checkpoints | {"out": tmp_path / "bundle"}
    given = [f"--{name}={path}" for name, path in files.items() if name != "policy"]
    assert fewstep("export", "maskgit", *given).code == 0
    manifest = json.loads((out / "bundle.json").read_text())
    assert manifest["provenance"]["command"].startswith("fewstep export maskgit --transformer")
    assert manifest["graphs"]["transformer"]["outputs"].keys() == {"logits"}
    again = fewstep("export", "maskgit", *given)
    assert again.code == 1
    assert "exists already" in again.err


_RTX = ["--backend", "tensorrt-rtx"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "{bundle}", "--class", 99], "class ids must be 0 … 4, got 99"),
        (["generate", "{bundle}", "--class", -1], "class ids must be 0 … 4, got -1"),
        (["generate", "{bundle}", "--class", 0, "--steps", 0], "steps must be 1 … 16"),
        (["generate", "{bundle}", "--class", 0, "--backend", "tensort"], "unknown backend"),
        (["generate", "{bundle}", "--class", 0, "--out", "x.bmpp"], "expected a folder or a file"),
        (["generate", "{bundle}", "--class", 0, "--out", "{file}/x.png"], "cannot write"),
        (["generate", "{bundle}"], "nothing to generate"),
        (["inspect", "nowhere"], "no bundle at nowhere"),
        (["generate", "{bundle}", "--class=--5"], "class"),
        (["generate", "{bundle}", "--class", "²"], "unknown class"),
        (["bench", "{bundle}", "--runs", 0], "runs must be at least 1"),
        (["bench", "{bundle}", "--batch", 0], "max_batch must be at least 1"),
        (["demo", "--sample", "nowhere"], "no trained sample in nowhere"),
        (["build", "{bundle}"], "nothing to build: pass --backend"),
        (["build", "{bundle}", "--backend", "tensort"], "Did you mean 'tensorrt'?"),
        (["build", "{bundle}", *_RTX], "Name their compute capabilities"),
        (["build", "{bundle}", *_RTX, "--compute-capability", "8.7"], "on the device itself"),
        (["build", "{bundle}", *_RTX, "--compute-capability", "sm_86"], "received sm_86"),
        (
            ["build", "{bundle}", *_RTX, "--max-batch", 2, "--opt-batch", 4],
            "exceeds the largest, 2",
        ),
        (
            ["build", "{bundle}", *_RTX, "--max-batch", 0],
            "--max-batch must be greater",
        ),
        (
            ["build", "{bundle}", *_RTX, "--optimization-level", 6],
            "--optimization-level must",
        ),
        (["build", "{bundle}", "--preflight", "--kernels"], "pass --backend"),
        (["generate", "{bundle}", "--class", 0, "--backend", "tensorrt"], "no engines of tensorrt"),
        (["verify", "{bundle}", "--backend", "tensorrt-rtx"], "fewstep build"),
        (["bench", "{bundle}", "--backend", "tensorrt", "--device", "cpu"], "needs device cuda"),
        (["build", "{bundle}", "--precision", "fp61"], "Did you mean 'fp16'?"),
        (["generate", "{bundle}", "--class", 0, "--precision", "fp16"], "fewstep build"),
        (["build", "nowhere", "--kernels"], "no bundle at nowhere"),
        (
            ["build", "{bundle}", "--kernels", "--compute-capability", "sm_87"],
            "unknown compute capability",
        ),
        (["build", "{bundle}", "--kernels", "--compute-capability", "8.7", "3.5"], "'3.5'"),
        (["inspect", "{bundle}", "--plan", "--batch", 0], "at least 1, got 0"),
        (["inspect", "{bundle}", "--batch", 1], "pass --plan too"),
        (["generate", "{bundle}", "--class", 0, "--device", "cudda"], "Did you mean 'cuda'?"),
        (["generate", "{bundle}", "--class", 0, "--device", "cuda:-1"], "unknown device"),
        (["generate", "{bundle}", "--class", 0, "--device", "cuda:²"], "unknown device"),
        (
            ["export", "adanat", "--transformer", "a", "--tokenizer", "b", "--out", "c"]
            + ["--policy", "d", "--untrained-policy"],
            "--policy and --untrained-policy exclude each other",
        ),
        (
            ["export", "adnat", "--transformer", "a", "--tokenizer", "b", "--out", "c"],
            "Did you mean 'adanat'?",
        ),
    ],
)
def test_bad_input_is_one_line(
    fewstep: Terminal,
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[object],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    filled = [str(a).format(bundle=tiny_bundle, file=tmp_path / "file") for a in arguments]
    outcome = fewstep(*filled)
    assert outcome.code == 1
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert message in outcome.err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_debug_shows_where_an_error_came_from(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fewstep", "inspect", "nowhere", "--debug"]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert finished.returncode != 0
    assert "Traceback" in finished.stderr


def test_export_without_torch_names_the_extra(tmp_path: Path) -> None:
    """A stand-in on the path makes ``find_spec`` miss torch, as on a deployment machine."""
    code = (
        "import importlib.util as u, sys; find = u.find_spec; "
        "u.find_spec = lambda name, *a: None if name == 'torch' else find(name, *a); "
        "sys.argv = ['fewstep', 'demo']; from fewstep.cli import main; main()"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "200"},
    )
    assert finished.returncode == 1
    assert "pip install 'fewstep[export]'" in finished.stderr
