"""What ``fewstep build`` says of kernels that the driver of this very machine will not load.

The driver and the compiler's version are played. Covered: no driver, no compiler, GPUs that nothing
is compiled for, Jetsons and others; and that a build says it, and builds all the same.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fewstep.build import kernels as building
from fewstep.build.kernels import kernel_notes
from fewstep.runtime.kernels.compile import KernelCompiler
from fewstep.runtime.probe import Driver, Gpu

if TYPE_CHECKING:
    from tests.conftest import Terminal


def _driver(monkeypatch: pytest.MonkeyPatch, cuda: str, *capabilities: str) -> None:
    gpus = tuple(Gpu("some", each, 8 << 30, integrated=False) for each in capabilities)
    monkeypatch.setattr(building, "find_driver", lambda: Driver(cuda, gpus))


def _compiler(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    initialise = KernelCompiler.__init__

    def other(self: KernelCompiler) -> None:
        initialise(self)
        self.version = version

    monkeypatch.setattr(KernelCompiler, "__init__", other)


def test_without_a_driver_there_is_nothing_to_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "find_driver", lambda: None)
    assert kernel_notes(["8.7"]) == ()


def test_without_a_compiler_there_is_nothing_to_note(monkeypatch: pytest.MonkeyPatch) -> None:
    _driver(monkeypatch, "12.6", "8.7")
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    assert kernel_notes(["8.7"]) == ()


@pytest.mark.parametrize(
    ("compiler", "cuda", "capability", "wanted", "noted"),
    [
        ("NVRTC 12.9", "12.6", "8.7", ["8.7"], True),
        ("NVRTC 12.9", "12.6", "8.7", [], True),  # for all
        ("NVRTC 12.9", "12.6", "8.7", ["8.6"], False),  # for machines elsewhere
        ("NVRTC 12.6", "12.6", "8.7", ["8.7"], False),
        ("NVRTC 12.9", "12.6", "8.6", ["8.6"], False),  # minor version compatibility
        ("NVRTC 13.0", "12.6", "8.6", ["8.6"], True),
        ("NVRTC 13.0", "11.4", "8.7", ["8.7"], True),
    ],
)
def test_kernels_that_the_driver_here_will_not_load_are_noted(
    monkeypatch: pytest.MonkeyPatch,
    compiler: str,
    cuda: str,
    capability: str,
    wanted: list[str],
    noted: bool,
) -> None:
    _compiler(monkeypatch, compiler)
    _driver(monkeypatch, cuda, capability)
    notes = kernel_notes(wanted)
    assert len(notes) == noted
    if noted:
        start = f"kernels for {capability} compiled by {compiler} do not load with the driver here"
        assert notes[0].startswith(f"{start}, which is for CUDA {cuda}; ")
        assert notes[0].endswith("update the driver") is (cuda == "11.4")


def test_a_build_says_what_will_not_load_and_builds_it_all_the_same(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch, fewstep: Terminal
) -> None:
    _compiler(monkeypatch, "NVRTC 12.9")
    _driver(monkeypatch, "12.6", "8.7")
    command = ("build", bundle_copy, "--kernels", "--compute-capability", "8.7")
    remedy = "pip install 'nvidia-cuda-nvrtc-cu12==12.6.*' 'nvidia-cuda-runtime-cu12==12.6.*'"
    for _ in range(2):  # built, then up to date
        built = fewstep(*command)
        assert (built.code, built.err.startswith("note: ")) == (0, True)
        assert remedy in built.err
    assert remedy in fewstep(*command, "--check").err
    assert len(list(bundle_copy.rglob("*.cubin"))) == 1
    notes = json.loads(fewstep(*command, "--json").out)["notes"]
    assert [remedy in each for each in notes] == [True]


def test_preflight_says_it_too(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch, fewstep: Terminal
) -> None:
    _compiler(monkeypatch, "NVRTC 13.0")
    _driver(monkeypatch, "12.6", "8.6")
    engines = ("--backend", "tensorrt-rtx", "--compute-capability", "8.6", "--precision", "fp32")
    seen = fewstep("build", bundle_copy, *engines, "--preflight")
    assert seen.code == 0
    assert "note: kernels for 8.6 compiled by NVRTC 13.0 do not load" in seen.err
    assert "pip install 'fewstep[kernels12]' in an environment of its own" in seen.err
    assert "note" not in fewstep("build", bundle_copy, *engines, "--preflight", "--no-kernels").err
