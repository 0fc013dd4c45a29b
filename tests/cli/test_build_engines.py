"""``fewstep build --backend``: engines, their preflight, and what is said of their precision."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fewstep.runtime.bundle import Bundle

if TYPE_CHECKING:
    from tests.conftest import Terminal

pytestmark = pytest.mark.slow

_GRAPHS = ("transformer", "policy", "decoder")
_STORED = "".join(f"stored the engine of {name}\n" for name in _GRAPHS)
_ENGINES = ("--backend", "tensorrt-rtx", "--precision", "fp16", "--compute-capability")
_SLOW = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from fewstep.build import builder_process
from fewstep.cli import main

line = '{"phase": "slow", "done": 0}'
builder_process._START = f"import time; print({line!r}, flush=True); time.sleep(60)"
talk = builder_process._talk

def loudly(process, request, progress):
    def loud(phase, done):
        print("building", process.pid, flush=True)
        progress(phase, done)
    return talk(process, request, loud)

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
    assert f"-m fewstep verify {bundle} --backend tensorrt-rtx --device cuda" in done.stdout
    assert all(name in done.stdout for name in _GRAPHS)
    assert len(list((bundle / "engines").iterdir())) == 3
    assert not (bundle / "kernels").exists()


def test_the_command_that_builds_them_again(
    fewstep: Terminal, with_engines: tuple[Path, object]
) -> None:
    """One for all targets of the engines, of which nothing is stale."""
    from fewstep.cli.verdicts import rebuild_commands

    (command,) = rebuild_commands(Bundle.read(with_engines[0]))
    assert "--compute-capability 8.6 8.9" in command
    assert fewstep(*shlex.split(command)[1:], "--no-kernels", "--check").code == 0


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


def test_fp16_is_the_default_for_engines_and_said_aloud(
    fewstep: Terminal, engines_copy: Path
) -> None:
    """The bundle has them in fp16, so that nothing is left to do."""
    command = ["build", engines_copy, *_ENGINES[:2], "--compute-capability", "8.6", "--no-kernels"]
    said = "precision fp16, the default for engines; --precision fp32 for that of the export\n"
    for more in ((), ("--check",)):
        done = fewstep(*command, *more)
        assert (done.code, done.out, done.err) == (0, f"{said}everything is up to date\n", "")
        assert json.loads(fewstep(*command, *more, "--json").out)["precision"] == "fp16"
    preflight = fewstep(*command, "--preflight")
    assert preflight.out.startswith(said)
    assert "--precision fp16" in preflight.out
    data = json.loads(fewstep(*command, "--preflight", "--json").out)
    assert data["precision"] == "fp16"
    named = fewstep(*command, "--precision", "fp16")
    assert named.out == "everything is up to date\n"
    other = fewstep(*command, "--precision", "fp32", "--check")
    assert (other.code, other.out.count("is not there for 8.6")) == (1, 3)


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
    current = fewstep(*engines)
    assert (current.code, current.out) == (0, "everything is up to date\n")
    whole = fewstep(*everything)
    said = "everything that the bundle holds is intact and up to date\n"
    assert (whole.code, whole.out) == (0, said)
    before = _files(engines_copy)
    stale = fewstep(*engines, "--max-batch", 4, "--json")
    assert (stale.code, stale.err) == (1, "")
    assert json.loads(stale.out)["stale"].keys() == {f"engine of {name}" for name in _GRAPHS}
    kernels = "CUDA kernels: are not there\nthe same command without --check builds that\n"
    assert fewstep(*everything, *_ENGINES, "8.6").out == kernels
    assert _files(engines_copy) == before
    file = next((engines_copy / "engines").glob("policy*"))
    file.write_bytes(b"?" + file.read_bytes()[1:])
    damaged = fewstep(*engines)
    expected = "engine of policy: does not have the manifest's SHA-256\n"
    expected += "the same command without --check builds that\n"
    assert (damaged.code, damaged.out) == (1, expected)
    assert (fewstep(*everything).code, fewstep(*everything).out.count("\n")) == (1, 1)


def test_preflight_says_what_stands_in_the_way(fewstep: Terminal, engines_copy: Path) -> None:
    before = _files(engines_copy)
    good = fewstep("build", engines_copy, *_ENGINES, "8.6", "--preflight")
    assert (good.code, good.err) == (0, "")
    assert good.out.startswith("preflight found nothing that stands in the way\nchecked here:\n")
    assert "left to the build here:\n  whether the builder of TensorRT-RTX takes" in good.out
    assert "next:\n  1. here: fewstep build " in good.out
    bad = fewstep("build", engines_copy, *_ENGINES, "7.5", "--preflight")
    assert (bad.code, bad.out) == (1, "")
    assert "--no-fp32-heads --force" in bad.err
    assert bad.err.count("\n") == 1
    assert _files(engines_copy) == before


def test_preflight_of_a_jetson_needs_neither_gpu_nor_tensorrt(
    fewstep: Terminal, bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("tensorrt", "tensorrt_rtx", "pycuda", "cuda.bindings"):
        monkeypatch.setitem(sys.modules, module, None)
    command = ["build", bundle_copy, "--backend", "tensorrt", "--compute-capability", "8.7"]
    done = fewstep(*command, "--precision", "fp16", "--preflight", "--max-batch", 4)
    assert (done.code, done.err) == (0, "")
    assert "preflight found nothing that stands in the way" in done.out
    assert "the CUDA kernels compile: cuda-bindings is not installed" in done.out
    assert "left to the device:\n  whether the builder of TensorRT, from version 10.3" in done.out
    name, options = bundle_copy.name, "--backend tensorrt --device cuda --precision fp16"
    assert done.out.endswith(
        f"next:\n  1. here: rsync --archive --checksum {bundle_copy} USER@DEVICE:\n"
        "  2. on the device (8.7 with JetPack 6, which brings TensorRT: python3-libnvinfer): "
        "pip install 'PATH/TO/fewstep[cuda12,build,kernels12]' 'nvidia-cuda-nvrtc-cu12==12.6.*' "
        "'nvidia-cuda-runtime-cu12==12.6.*'\n"
        f"  3. on the device: fewstep build {name} --backend tensorrt --precision fp16 "
        "--max-batch 4 --opt-batch 1\n"
        f"  4. on the device: fewstep verify {name} {options} --report verify.md\n"
        f"  5. on the device: fewstep bench {name} {options} --report bench.json\n"
    )
    data = json.loads(fewstep(*command, "--preflight", "--json").out)
    assert (data["problems"], data["precision"], data["graphs"]) == ([], "fp16", [])
    assert data["steps"][2]["command"].endswith("--max-batch 8 --opt-batch 1")
    refused = fewstep(*command[:-1], "7.2", "--precision", "fp16", "--preflight")
    assert (refused.code, refused.err.count("\n")) == (1, 1)
    assert "7.2 is too old: Jetson Xavier" in refused.err
    building = fewstep(*command)
    assert (building.code, building.err.count("\n")) == (1, 1)
    assert "there is no CUDA driver on this machine" in building.err


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
    # in fp32, whose graphs are there: others would be stored before the builder starts
    arguments = [str(bundle_copy), *_ENGINES[:2], *_ENGINES[4:], "8.6", "--no-kernels"]
    arguments += ["--precision", "fp32"]
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
