"""Preflight for a GPU that is not there: what is checked without TensorRT's module, what is left to
the builder and to the device, and commands that can be pasted there."""

from __future__ import annotations

import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto
from tests.build.preflight_graphs import decoder, quantized, with_graph
from typer import Context
from typer.main import get_command

from fewstep.build import target
from fewstep.build.checklist import Step
from fewstep.build.pipeline import BuildRequest, Preflight, build, preflight_only
from fewstep.cli import app
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import DeviceError, EngineError
from fewstep.runtime.kernels.compile import KernelCompiler
from fewstep.runtime.records import BuildOptions, EngineBackend


@pytest.fixture(autouse=True)
def _no_gpu_and_no_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "find_driver", lambda: None)
    for module in ("tensorrt", "tensorrt_rtx", "pycuda"):
        monkeypatch.setitem(sys.modules, module, None)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The compute capabilities that kernels were compiled for, without doing it."""
    asked: list[str] = []

    def compile_(_: object, capability: str) -> tuple[bytes, str]:
        asked.append(capability)
        return b"cubin", ""

    monkeypatch.setattr(KernelCompiler, "_compile", compile_)
    return asked


def _request(path: Path, *capabilities: str, **other: Any) -> BuildRequest:
    plain = BuildRequest(path, "tensorrt", None, capabilities or ("8.7",), kernels=False)
    return replace(plain, **other)


def _commands(found: Preflight) -> dict[str, str]:
    return {step.name: step.command for step in found.checklist.steps}


# --- what is checked


def test_a_good_bundle_is_checked_and_gets_its_fp16_graphs(bundle_copy: Path) -> None:
    found = preflight_only(_request(bundle_copy))
    assert (found.wanted.backend, found.wanted.precision) == ("tensorrt", "fp16")
    assert [each.graph for each in found.graphs] == ["transformer", "policy", "decoder"]
    bundle = Bundle.read(bundle_copy)
    assert bundle.damage() == {}
    assert bundle.precisions == ("fp32", "fp16")
    assert bundle.manifest.engines == ()
    assert preflight_only(_request(bundle_copy)).graphs == ()
    data = found.as_dict()
    assert (data["problems"], data["compute_capabilities"]) == ([], ["8.7"])
    assert (data["backend"], data["precision"]) == ("tensorrt", "fp16")
    assert [step["name"] for step in data["steps"]] == [
        "copy",
        "install",
        "build",
        "verify",
        "bench",
    ]


def test_building_for_it_stays_an_error(bundle_copy: Path) -> None:
    before = sorted(bundle_copy.rglob("*"))
    with pytest.raises(DeviceError, match="build on the device"):
        build(_request(bundle_copy))
    assert sorted(bundle_copy.rglob("*")) == before


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (decoder([], [], opset=21), "TensorRT reads opset 9 to 20, received 21"),
        (
            decoder([onnx.helper.make_node("HannWindow", ["n"], ["y"], "window")], []),
            "operators that TensorRT cannot build: window",
        ),
        (quantized(TensorProto.FLOAT8E4M3FN), "need compute capability 8.9 or newer, received 8.7"),
    ],
)
def test_what_tensorrt_would_refuse_is_found_without_it(
    bundle_copy: Path, graph: bytes, message: str
) -> None:
    with_graph(Bundle.read(bundle_copy), graph)
    with pytest.raises(EngineError, match=message):
        preflight_only(_request(bundle_copy, precision="fp32"))


def test_bf16_is_for_8_0_and_newer(bundle_copy: Path) -> None:
    preflight_only(_request(bundle_copy, precision="bf16"))
    with pytest.raises(EngineError, match="bf16 tensors need compute capability 8.0 or newer"):
        preflight_only(_request(bundle_copy, "7.5", precision="bf16"))


def test_what_was_checked_and_what_was_not(bundle_copy: Path, compiled: list[str]) -> None:
    options = BuildOptions(max_batch=4, opt_batch=(1, 2))
    found = preflight_only(_request(bundle_copy, "8.7", "11.0", kernels=None, options=options))
    points = (found.checklist.checked, found.checklist.left_on_device)
    checked, left = (" / ".join(each) for each in points)
    assert "fp16 graphs for compute capability 8.7, 11.0" in checked
    assert "opset 9 to 20" in checked
    assert "batch 1 to 4, tuned for 1, 2" in checked
    assert "overflow" in checked
    assert "compiles them for 8.7, 11.0" in checked
    assert compiled == ["8.7", "11.0"]
    assert "from version 10.3 for 8.7, 10.13 for 11.0, takes the graphs" in left
    assert found.checklist.left_here == ()
    assert "memory that building takes" in left
    assert "results, times and memory on the GPU" in left
    assert "load on 8.7: with JetPack 6 they have to be compiled by NVRTC 12.6 or older" in left
    assert "load on 11.0: with JetPack 7 they have to be compiled by NVRTC 13.0 or older" in left
    assert not (bundle_copy / "kernels").exists()


def test_kernels_that_cannot_be_compiled_here_are_left_to_the_device(
    bundle_copy: Path, compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(KernelCompiler, "known", lambda _: ["8.7", "11.0"])
    found = preflight_only(_request(bundle_copy, "10.1", kernels=None)).checklist
    assert not any("CUDA kernels" in each for each in found.checked)
    assert found.left_on_device[-1].startswith(
        "whether the CUDA kernels compile for 10.1, unknown to NVRTC"
    )
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    found = preflight_only(_request(bundle_copy, kernels=None)).checklist
    assert "cuda-bindings is not installed" in found.left_on_device[-1]
    found = preflight_only(_request(bundle_copy, kernels=False)).checklist
    assert not any("CUDA kernels" in each for each in (*found.checked, *found.left_on_device))
    assert compiled == []


# --- what comes next


def _parse(command: str) -> dict[str, Any]:
    """What the command line makes of a command, without running it."""
    program, name, *arguments = shlex.split(command)
    assert program == "fewstep"
    group = get_command(app)
    context = Context(group)
    found = group.get_command(context, name)  # type: ignore[attr-defined]
    made: dict[str, Any] = found.make_context(name, arguments, parent=context).params
    return made


def test_commands_for_a_jetson_can_be_pasted(bundle_copy: Path) -> None:
    path = Path(shutil.move(bundle_copy, bundle_copy.parent / "my bundle"))
    options = BuildOptions(max_batch=4, opt_batch=(1, 2), optimization_level=5, workspace_mib=512)
    request = _request(path, options=options, fp32_heads=True)
    found = preflight_only(request)
    places = [(step.name, step.where) for step in found.checklist.steps]
    device = [(name, "on the device") for name in ("install", "build", "verify", "bench")]
    assert places == [("copy", "here"), *device]
    commands = _commands(found)
    words = shlex.split(commands["copy"])
    assert words[0] == "rsync"
    assert words[-2:] == [str(path), "USER@DEVICE:"]
    parsed = _parse(commands["build"])
    assert str(parsed["bundle"]) == "my bundle"
    assert (parsed["backend"], parsed["precision"]) == ("tensorrt", "fp16")
    assert not parsed["compute_capability"]
    assert (parsed["max_batch"], parsed["opt_batch"]) == (4, [1, 2])
    assert (parsed["optimization_level"], parsed["workspace"]) == (5, 512)
    assert (parsed["fp32_heads"], parsed["kernels"]) == (True, False)
    for name in ("verify", "bench"):
        parsed = _parse(commands[name])
        assert str(parsed["bundle"]) == "my bundle"
        assert (parsed["backend"], parsed["device"]) == ("tensorrt", "cuda")
        assert "fp16" in str(parsed["precision"])


def test_engines_for_rtx_cards_are_built_here_first(bundle_copy: Path) -> None:
    found = preflight_only(_request(bundle_copy, "8.9", "8.6", backend="tensorrt-rtx"))
    first, second, *_ = found.checklist.steps
    assert (first.name, first.where) == ("build", "here")
    assert second == Step("copy", "here", _commands(found)["copy"])
    parsed = _parse(first.command)
    assert parsed["bundle"] == bundle_copy
    assert parsed["compute_capability"] == ["8.6", "8.9"]
    assert (parsed["fp32_heads"], parsed["optimization_level"]) == (None, None)
    assert "TensorRT-RTX takes the graphs" in found.checklist.left_here[0]
    assert not any("builder" in each for each in found.checklist.left_on_device)


def test_a_bundle_named_by_a_dot_goes_by_its_name(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bundle_copy)
    parsed = _parse(_commands(preflight_only(_request(Path())))["build"])
    assert str(parsed["bundle"]) == bundle_copy.name


@pytest.mark.parametrize(
    ("capabilities", "backend", "kernels", "commands"),
    [
        (
            ["8.7"],
            "tensorrt",
            None,
            {
                "8.7 with JetPack 6": "pip install 'PATH/TO/fewstep[cuda12,build,kernels12]' "
                "'nvidia-cuda-nvrtc-cu12==12.6.*' 'nvidia-cuda-runtime-cu12==12.6.*'"
            },
        ),
        (
            ["11.0", "8.6"],
            "tensorrt",
            None,
            {
                "11.0 with JetPack 7": "pip install 'PATH/TO/fewstep[cuda,build,kernels]' "
                "'nvidia-cuda-nvrtc==13.0.*' 'nvidia-cuda-runtime==13.0.*'",
                "a driver of CUDA 13": "pip install 'PATH/TO/fewstep[cuda,build,kernels]' tensorrt",
            },
        ),
        (
            ["8.7"],
            "tensorrt",
            False,
            {"8.7 with JetPack 6": "pip install 'PATH/TO/fewstep[cuda12,build]'"},
        ),
        (
            ["8.6", "8.9"],
            "tensorrt-rtx",
            None,
            {"a driver of CUDA 13": "pip install 'PATH/TO/fewstep[cuda,rtx]'"},
        ),
    ],
)
@pytest.mark.usefixtures("compiled")
def test_what_the_device_needs(
    bundle_copy: Path,
    capabilities: list[str],
    backend: EngineBackend,
    kernels: bool | None,
    commands: dict[str, str],
) -> None:
    """A Jetson's driver loads no kernels of a newer compiler, so that is held at its version."""
    request = _request(bundle_copy, *capabilities, backend=backend, kernels=kernels)
    steps = [each for each in preflight_only(request).checklist.steps if each.name == "install"]
    assert [each.command for each in steps] == list(commands.values())
    for step, note in zip(steps, commands, strict=True):
        assert step.note.startswith(note)
        assert step.where == "on the device"
