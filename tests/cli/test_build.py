"""``fewstep build`` of kernels and graphs, ``inspect --plan``, and commands without a GPU.

Engines are in test_build_engines.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from fewstep.runtime.devices import cuda_driver

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
    assert (again["up_to_date"], again["precision"], again["kernels"]) == (True, None, None)
    assert (again["graphs"], again["engines"]) == ([], [])
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


def test_norms_that_stay_in_fp32_are_named_with_the_reason(
    fewstep: Terminal, bundle_copy: Path
) -> None:
    command = ["build", bundle_copy, "--force", "--precision"]
    assert "norms of" not in fewstep(*command, "fp16").out
    said = [line for line in fewstep(*command, "bf16").out.splitlines() if "norms of" in line]
    assert len(said) == 1
    assert said[0].startswith("norms of decoder in fp32, node_InstanceNormalization_")
    assert said[0].endswith(" and 8 more: opset 20 has no InstanceNormalization in bf16")
    data = json.loads(fewstep(*command, "bf16", "--json").out)
    assert [len(each["fp32_norms"]) for each in data["graphs"]] == [0, 0, 9]


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


# --- the memory of a plan


def test_inspect_plan_lists_every_operation_and_buffer(
    fewstep: Terminal, tiny_bundle: Path
) -> None:
    wish = ["inspect", tiny_bundle, "--plan", "--batch", 3, "--steps", 2, "--schedule", "policy"]
    shown = fewstep(*wish)
    assert (shown.code, shown.err) == (0, "")
    assert "Plan: batch 3, steps 2, schedule policy" in shown.out
    data = json.loads(fewstep(*wish, "--json").out)
    assert (data["batch"], data["settings"]["steps"], data["key"]["policy"]) == (3, 2, "policy")
    assert all(name in shown.out for name in data["buffers"])
    assert all(each["what"] in shown.out for each in data["operations"])
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
    monkeypatch.setattr(cuda_driver, "ctypes", SimpleNamespace(CDLL=str))  # there is a driver
    outcome = fewstep(command[0], tiny_bundle, *command[1:], "--device", device)
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err == (
        "error: pycuda is not installed; install it with: pip install 'fewstep[cuda]'\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_without_a_driver_absent_packages_are_not_blamed(
    fewstep: Terminal, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    for module in ("pycuda", "tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(cuda_driver, "ctypes", SimpleNamespace(CDLL=absent))
    outcome = fewstep("verify", tiny_bundle, "--device", "cuda")
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert outcome.err.startswith("error: no CUDA driver on this machine (libcuda.so.1: cannot")
    assert "not installed" not in outcome.err


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
