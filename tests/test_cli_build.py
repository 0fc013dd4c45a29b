"""``fewstep build``, ``inspect --plan``, and commands for a GPU that is not there."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fewstep.cli import spaced_capabilities

if TYPE_CHECKING:
    from tests.conftest import Terminal


# --- kernels


def _never(*_: object) -> None:
    raise AssertionError("nothing is to be compiled")


def test_build_compiles_once_and_then_only_by_force(
    fewstep: Terminal, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = shutil.copytree(tiny_bundle, tmp_path / "with a space")
    command = ["build", bundle, "--kernels", "--compute-capability", "8.7"]
    first = fewstep(*command)
    assert (first.code, first.err) == (0, "")
    assert "sample_tokens_float" in first.out
    assert len(list((bundle / "kernels").iterdir())) == 1
    forced = json.loads(fewstep(*command, "--force", "--json").out)
    assert forced["kernels"]["cubin_bytes"].keys() == {"8.7"}
    assert {each["spill_bytes"] for each in forced["kernels"]["resources"]} == {0}
    monkeypatch.setattr("fewstep.runtime.kernels.compile.KernelCompiler.compile", _never)
    assert fewstep(*command).out == "everything is up to date\n"
    again = json.loads(fewstep(*command, "--json").out)
    assert again == {"up_to_date": True, "graphs": [], "engines": [], "kernels": None}
    assert "8.7 (NVRTC" in fewstep("inspect", bundle).out


@pytest.mark.parametrize(
    "spelled",
    [
        ["--compute-capability", "7.5", "8.7"],
        ["--compute-capability", "7.5", "--compute-capability", "8.7"],
        ["--compute-capability=7.5", "--compute-capability=8.7"],
    ],
)
def test_several_capabilities_in_every_spelling(
    fewstep: Terminal,
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spelled: list[str],
) -> None:
    from fewstep.runtime.kernels.compile import KernelCompiler

    monkeypatch.setattr(KernelCompiler, "_compile", lambda self, name: (name.encode(), ""))
    bundle = shutil.copytree(tiny_bundle, tmp_path / "copy")
    for arguments in ([bundle, *spelled], [*spelled, bundle]):
        outcome = fewstep("build", "--kernels", "--force", "--json", *arguments)
        assert outcome.code == 0
        assert json.loads(outcome.out)["kernels"]["cubin_bytes"] == {"7.5": 3, "8.7": 3}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("build b --compute-capability 8.7", "build b --compute-capability 8.7"),
        (
            "build b --compute-capability 8.7 12.0 9.0 --force",
            "build b --compute-capability 8.7 --compute-capability 12.0 --compute-capability 9.0 "
            "--force",
        ),
        ("--compute-capability 8.7 b 8.9", "--compute-capability 8.7 b 8.9"),
        ("--compute-capability sm_87 8.9", "--compute-capability sm_87 8.9"),
        ("--compute-capability 8.7 8", "--compute-capability 8.7 8"),
        ("generate b --guidance 1.5 2.5", "generate b --guidance 1.5 2.5"),
        ("--compute-capability", "--compute-capability"),
        ("", ""),
    ],
)
def test_capabilities_are_spaced_only_behind_their_option(given: str, expected: str) -> None:
    spaced = spaced_capabilities(given.split())
    assert spaced == expected.split()
    assert spaced_capabilities(spaced) == spaced


def test_graphs_of_lower_precision_are_built_and_then_used(
    fewstep: Terminal, tiny_bundle: Path, tmp_path: Path
) -> None:
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    built = json.loads(fewstep("build", bundle, "--precision", "fp16", "--json").out)
    assert [each["graph"] for each in built["graphs"]] == ["transformer", "policy", "decoder"]
    verified = json.loads(fewstep("verify", bundle, "--precision", "fp16", "--json").out)
    (report,) = verified["reports"]
    assert (report["precision"], report["passed"]) == ("fp16", True)
    picture = tmp_path / "one.png"
    made = fewstep("generate", bundle, "--class", 0, "--precision", "fp16", "--out", picture)
    assert (made.code, picture.exists()) == (0, True)
    assert "fp32, fp16" in fewstep("inspect", bundle).out


def test_build_without_the_compiler_is_one_line(
    fewstep: Terminal, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    outcome = fewstep("build", tiny_bundle, "--kernels")
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err == (
        "error: cuda-bindings is not installed; install it with: pip install 'fewstep[kernels]'\n"
    )
    assert not (tiny_bundle / "kernels").exists()


# --- engines

_GRAPHS = ("transformer", "policy", "decoder")
_STORED = "".join(f"stored the engine of {name}\n" for name in _GRAPHS)
_ENGINES = ("--backend", "tensorrt-rtx", "--precision", "fp16", "--compute-capability")
_SLOW = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from fewstep.build import builder_process
from fewstep.cli import main

told = '{"phase": "slow", "done": 0}'
builder_process._START = f"import time; print({told!r}, flush=True); time.sleep(60)"
talk = builder_process._talk

def loudly(process, request, report):
    def told(phase, done):
        print("building", process.pid, flush=True)
        report(phase, done)
    return talk(process, request, told)

builder_process._talk = loudly
main()
"""


@pytest.fixture(scope="module")
def rtx() -> Any:
    reason = "TensorRT-RTX is not installed; install it with: pip install 'fewstep[rtx]'"
    return pytest.importorskip("tensorrt_rtx", reason=reason)


@pytest.fixture(scope="module")
def with_engines(
    rtx: Any, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A bundle with fp16 engines for 8.6 and 8.9, and what the command printed."""
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("engines") / "bundle"))
    command = [sys.executable, "-m", "fewstep", "build", str(bundle), *_ENGINES, "8.9", "8.6"]
    done = subprocess.run([*command, "--no-kernels"], capture_output=True, text=True, check=False)
    return bundle, done


@pytest.fixture
def engines_copy(with_engines: tuple[Path, object], tmp_path: Path) -> Path:
    return Path(shutil.copytree(with_engines[0], tmp_path / "engines"))


def _files(bundle: Path) -> dict[Path, bytes]:
    return {each: each.read_bytes() for each in bundle.rglob("*") if each.is_file()}


def test_engines_are_built_with_a_line_for_each(
    with_engines: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    bundle, done = with_engines
    assert (done.returncode, done.stderr) == (0, _STORED)  # nothing that TensorRT prints itself
    assert "fp16 engines for 8.6, 8.9" in done.stdout
    assert all(name in done.stdout for name in _GRAPHS)
    assert len(list((bundle / "engines").iterdir())) == 3
    assert not (bundle / "kernels").exists()


def test_engines_again_are_up_to_date_in_words_and_json(
    fewstep: Terminal, with_engines: tuple[Path, object]
) -> None:
    command = ["build", with_engines[0], *_ENGINES, "8.6", "--no-kernels"]
    again = fewstep(*command)
    assert (again.code, again.out, again.err) == (0, "everything is up to date\n", "")
    data = json.loads(fewstep(*command, "--json").out)
    assert (data["up_to_date"], data["graphs"], data["kernels"]) == (True, [], None)
    assert [(each["graph"], each["built"]) for each in data["engines"]] == [
        (name, False) for name in _GRAPHS
    ]
    assert data["engines"][0]["compute_capabilities"] == ["8.6", "8.9"]
    assert data["engines"][0]["profiles"][0]["tokens"]["max"] == [16, 16]


def test_forced_engines_in_json(fewstep: Terminal, engines_copy: Path) -> None:
    command = ["build", engines_copy, *_ENGINES, "8.6", "8.9", "--no-kernels", "--force"]
    forced = fewstep(*command, "--json")
    assert (forced.code, forced.err) == (0, _STORED)
    data = json.loads(forced.out)
    assert [each["built"] for each in data["engines"]] == [True] * 3
    for each in data["engines"]:
        assert each["size_bytes"] == (engines_copy / each["file"]).stat().st_size


def test_kernels_come_with_engines_and_those_that_were_there_stay(
    fewstep: Terminal, engines_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fewstep.runtime.kernels.compile import KernelCompiler

    monkeypatch.setattr(KernelCompiler, "_compile", lambda self, name: (name.encode(), ""))
    fewstep("build", engines_copy, "--kernels", "--compute-capability", "8.7", "12.0")
    command = ["build", engines_copy, *_ENGINES, "8.6", "8.9"]
    built = fewstep(*command)
    assert (built.code, built.err) == (0, "")
    assert "CUDA kernels for 8.6, 8.9, 8.7, 12.0 are compiled" in built.out
    assert {each.read_text() for each in (engines_copy / "kernels").iterdir()} == {
        *("8.6", "8.7", "8.9", "12.0"),
    }
    assert fewstep(*command).out == "everything is up to date\n"


def test_check_exits_with_1_if_anything_is_stale(fewstep: Terminal, engines_copy: Path) -> None:
    everything = ["build", engines_copy, "--check"]
    engines = [*everything, *_ENGINES, "8.6", "--no-kernels"]
    for command in (everything, engines):
        current = fewstep(*command)
        assert (current.code, current.out) == (0, "everything is up to date\n")
    before = _files(engines_copy)
    stale = fewstep(*engines, "--max-batch", 4, "--json")
    assert (stale.code, stale.err) == (1, "")
    assert json.loads(stale.out)["stale"].keys() == {f"engine of {name}" for name in _GRAPHS}
    assert fewstep(*everything, *_ENGINES, "8.6").out.startswith("CUDA kernels: are not")
    assert _files(engines_copy) == before
    file = next((engines_copy / "engines").glob("policy*"))
    file.write_bytes(b"?" + file.read_bytes()[1:])
    damaged = fewstep(*engines)
    expected = "engine of policy: does not have the manifest's SHA-256\n"
    assert (damaged.code, damaged.out) == (1, expected)
    assert (fewstep(*everything).code, fewstep(*everything).out.count("\n")) == (1, 1)


def test_preflight_says_what_stands_in_the_way(fewstep: Terminal, engines_copy: Path) -> None:
    before = _files(engines_copy)
    good = fewstep("build", engines_copy, *_ENGINES, "8.6", "--preflight")
    assert (good.code, good.err) == (0, "")
    assert good.out == "preflight found nothing that stands in the way\n"
    bad = fewstep("build", engines_copy, *_ENGINES, "7.5", "--preflight")
    assert (bad.code, bad.out) == (1, "")
    assert "--no-fp32-heads --force" in bad.err
    assert bad.err.count("\n") == 1
    assert _files(engines_copy) == before


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        ("tensorrt_rtx", ["tensorrt-rtx"], "tensorrt_rtx is not installed; install it with: pip"),
        ("onnx", ["tensorrt-rtx"], "onnx is not installed; install it with: pip"),
        ("cuda.bindings", ["tensorrt-rtx"], "cuda-bindings is not installed; install it with: pip"),
        ("pycuda", ["tensorrt"], "there is no CUDA driver on this machine; build on the device"),
    ],
)
@pytest.mark.usefixtures("rtx")
def test_engines_without_a_module_are_one_line(
    fewstep: Terminal,
    bundle_copy: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: str,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    before = _files(bundle_copy)
    command = ["build", bundle_copy, "--precision", "fp16", "--backend", *arguments]
    outcome = fewstep(*command, "--compute-capability", "8.6")
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (1, "", 1)
    assert message in outcome.err
    assert _files(bundle_copy) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--backend tensorrt_rtx", "Did you mean 'tensorrt-rtx'?"),
        ("--backend tensorrt-rtx --compute-capability 8.7", "received 8.7; build for others"),
        ("--backend tensorrt-rtx --max-batch 2 --opt-batch 4", "4, exceeds the largest, 2"),
        ("--backend tensorrt-rtx --workspace 0", "--workspace must be greater than 0, got 0"),
        ("--backend tensorrt-rtx --optimization-level 6", "less than or equal to 5"),
        ("--precision fp8", "fp8 graphs are made with: fewstep calibrate quantize"),
        ("--compute-capability 8.6", "nothing to build: pass --backend"),
    ],
)
def test_wrong_options_of_engines_are_one_line(
    fewstep: Terminal, tiny_bundle: Path, arguments: str, message: str
) -> None:
    outcome = fewstep("build", tiny_bundle, *arguments.split())
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (1, "", 1)
    assert message in outcome.err


@pytest.mark.usefixtures("rtx")
def test_ctrl_c_leaves_the_bundle_as_it_was(bundle_copy: Path) -> None:
    before = _files(bundle_copy)
    arguments = [str(bundle_copy), *_ENGINES[:2], *_ENGINES[4:], "8.6", "--no-kernels"]
    command = [sys.executable, "-c", _SLOW, "build", *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        builder = int(process.stdout.readline().removeprefix("building "))
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert said == "interrupted; nothing half-written was left behind\n"
    with pytest.raises(ProcessLookupError):  # it did not outlive the command
        os.kill(builder, 0)
    assert _files(bundle_copy) == before


# --- the memory of a plan


def test_inspect_plan_lists_every_buffer(fewstep: Terminal, tiny_bundle: Path) -> None:
    wish = ["inspect", tiny_bundle, "--plan", "--batch", 3, "--steps", 2, "--schedule", "policy"]
    shown = fewstep(*wish)
    assert (shown.code, shown.err) == (0, "")
    assert "batch 3, 2 steps, guided, policy" in shown.out
    data = json.loads(fewstep(*wish, "--json").out)
    assert (data["batch"], data["steps"], data["policy"]) == (3, 2, "policy")
    assert all(name in shown.out for name in data["buffers"] if not name.startswith("shared/"))
    assert f"{data['total_bytes']:,}" in shown.out


# --- a GPU that is not there


@pytest.mark.parametrize(
    "command",
    [
        ["generate", "--class", "0", "--out", "x.png"],
        ["verify"],
        ["bench", "--runs", "1"],
    ],
)
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_gpu_without_pycuda_is_one_line(
    fewstep: Terminal,
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
    device: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "pycuda", None)
    outcome = fewstep(command[0], tiny_bundle, *command[1:], "--device", device)
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err == (
        "error: pycuda is not installed; install it with: pip install 'fewstep[cuda]'\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_gpu_without_a_driver_is_one_line(tiny_bundle: Path, tmp_path: Path) -> None:
    """A stand-in for pycuda fails as pycuda does where there is no ``libcuda.so.1``."""
    (tmp_path / "pycuda").mkdir()
    (tmp_path / "pycuda" / "__init__.py").touch()
    failing = 'raise ImportError("libcuda.so.1: cannot open shared object file")'
    (tmp_path / "pycuda" / "driver.py").write_text(failing)
    command = [sys.executable, "-m", "fewstep", "generate", str(tiny_bundle), "--class", "0"]
    done = subprocess.run(
        [*command, "--device", "cuda"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: no CUDA driver on this machine (libcuda.so.1: cannot")
    assert done.stderr.count("\n") == 1
    assert "use device cpu" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["pycuda"]
