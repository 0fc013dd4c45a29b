"""Doctor: what works follows from the packages or from trying; remedies say what to install.

GPUs and TensorRT are in ``test_doctor_gpu.py``.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys

import pytest
from rich.console import Console

from fewstep.cli.tables import doctor_tables
from fewstep.runtime import doctor, probe
from fewstep.runtime.errors import DeviceError

_EXPORT, _LOWER = "export checkpoints to ONNX", "preflight, graphs in fp16 and bf16"
_COMPILE, _BUILD_RTX = "compile CUDA kernels", "build TensorRT-RTX engines"


def _without(monkeypatch: pytest.MonkeyPatch, *absent: str, **extra: str) -> doctor.Diagnosis:
    real = doctor._version

    def version(package: str) -> str | None:
        return None if package in absent else extra.get(package) or real(package)

    monkeypatch.setattr(doctor, "_version", version)
    return doctor.diagnose()


def _found(name: str) -> doctor.Ability:
    return next(each for each in doctor.diagnose().abilities if each.name == name)


def test_everything_installed() -> None:
    diagnosis = doctor.diagnose()
    works = {ability.name: ability.works for ability in diagnosis.abilities}
    assert all(works[name] for name in (doctor.RUN_CPU, _EXPORT, _LOWER, _COMPILE, _BUILD_RTX))
    # A machine for tests need not have a GPU.
    assert all(each.works or each.remedy for each in diagnosis.abilities)
    assert all(each.name and each.detail for each in diagnosis.abilities)
    assert diagnosis.runs
    assert int(diagnosis.machine["cores"]) >= 1


@pytest.mark.parametrize(
    ("absent", "remedies"),
    [
        ("torch", {_EXPORT: "export"}),
        ("onnx", {_EXPORT: "export", _LOWER: "build"}),
        ("numba", {doctor.RUN_CPU: "cpu", _EXPORT: "export", _LOWER: "build"}),
        ("polygraphy", {}),
    ],
)
def test_remedy_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, absent: str, remedies: dict[str, str]
) -> None:
    before = doctor.diagnose().abilities
    diagnosis = _without(monkeypatch, absent)
    for ability, usual in zip(diagnosis.abilities, before, strict=True):
        if extra := remedies.get(ability.name):
            assert not ability.works
            assert ability.detail == f"missing: {absent}"
            assert ability.remedy == f"pip install 'fewstep[{extra}]'"
        else:
            assert ability == usual
    assert diagnosis.packages[absent] is None


def test_nothing_that_runs_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_driver", lambda: None)
    diagnosis = _without(monkeypatch, "numba")
    assert not diagnosis.runs
    assert any(ability.works for ability in diagnosis.abilities)  # but building is not running


@pytest.mark.parametrize(
    ("look", "name"), [("_kernel_compiler", _COMPILE), ("_runs_onnxruntime", doctor.RUN_GPU)]
)
def test_what_only_trying_tells_repeats_the_error_and_its_remedy(
    monkeypatch: pytest.MonkeyPatch, look: str, name: str
) -> None:
    def fail(*given: object) -> str:
        raise DeviceError("no such thing; buy one; soon")

    before = doctor.diagnose().abilities
    monkeypatch.setattr(doctor, look, fail)
    failed = doctor.diagnose().abilities
    assert doctor.Ability(name, False, "no such thing", "buy one; soon") in failed
    assert [each for each in failed if each.name != name] == [
        each for each in before if each.name != name
    ]
    monkeypatch.setattr(doctor, look, lambda *given: "two of them")
    assert _found(name) == doctor.Ability(name, True, "two of them")


def test_a_defect_is_not_taken_for_an_absent_ability(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash() -> str:
        raise AttributeError

    monkeypatch.setattr(doctor, "_kernel_compiler", crash)
    with pytest.raises(AttributeError):
        doctor.diagnose()


def test_two_onnxruntimes_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    diagnosis = _without(monkeypatch, **{"onnxruntime-gpu": "1.0"})
    assert "own the same module" in diagnosis.warnings[-1]


def test_diagnosis_is_json() -> None:
    assert json.loads(json.dumps(doctor.diagnose().as_dict()))["machine"]["python"]


def test_torch_is_not_imported() -> None:
    code = "import sys; from fewstep.runtime import doctor; doctor.diagnose(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "onnx", "tensorrt", "tensorrt_rtx"} & set(done.stdout.split())


def test_tables_show_everything() -> None:
    diagnosis = doctor.Diagnosis(
        {"GPU 0": "a [very] fast one"},
        {"onnx": "1.20", "polygraphy": None},
        (doctor.Ability("fly", False, "missing: [wings]", "pip install 'birds[wings]'"),),
        (),
    )
    console = Console(width=200, record=True, file=io.StringIO())
    for table in doctor_tables(diagnosis):
        console.print(table)
    shown = console.export_text()
    for text in ("a [very] fast one", "1.20", "polygraphy", "missing: [wings]", "'birds[wings]'"):
        assert text in shown


def test_packages_for_gpus_are_listed() -> None:
    assert {"pycuda", "cuda-bindings", "tensorrt", "tensorrt-rtx", "polygraphy"} <= (
        doctor.diagnose().packages.keys()
    )


# --- Kernel compiler


def test_compiler_is_shown_with_what_it_compiles_for() -> None:
    detail = _found(_COMPILE).detail
    assert detail.startswith("NVRTC ")
    assert {"8.6,", "8.7,", "8.9,"} <= set(detail.split())


@pytest.mark.parametrize("module", ["cuda.bindings", "cuda.pathfinder"])
@pytest.mark.parametrize(("cuda", "extra"), [("12.6", "kernels12"), ("13.0", "kernels")])
def test_absent_compiler_names_the_extra_for_this_driver(
    monkeypatch: pytest.MonkeyPatch, module: str, cuda: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(doctor, "find_driver", lambda: probe.Driver(cuda, ()))
    ability = _found(_COMPILE)
    assert not ability.works
    assert ability.detail.endswith("is not installed")
    assert ability.remedy.endswith(f"pip install 'fewstep[{extra}]'")


@pytest.mark.parametrize(("cuda", "warned"), [("12.6", True), ("13.0", False)])
def test_compiler_newer_than_the_driver_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, cuda: str, warned: bool
) -> None:
    monkeypatch.setattr(doctor, "_kernel_compiler", lambda: "NVRTC 13.5, for 8.7")
    monkeypatch.setattr(doctor, "find_driver", lambda: probe.Driver(cuda, ()))
    warnings = " ".join(doctor.diagnose().warnings)
    assert ("(NVRTC 13.5) do not load with this driver (CUDA 12.6)" in warnings) is warned
    assert ("'fewstep[kernels12]'" in warnings) is warned


@pytest.mark.parametrize(("capability", "warned"), [("8.7", True), ("8.6", False)])
def test_compiler_newer_by_a_minor_version_is_a_warning_on_a_jetson(
    monkeypatch: pytest.MonkeyPatch, capability: str, warned: bool
) -> None:
    gpu = probe.Gpu("some", capability, 8 << 30, integrated=warned)
    monkeypatch.setattr(doctor, "_kernel_compiler", lambda: "NVRTC 12.9, for 8.6, 8.7")
    monkeypatch.setattr(doctor, "find_driver", lambda: probe.Driver("12.6", (gpu,)))
    warnings = " ".join(doctor.diagnose().warnings)
    assert ("(NVRTC 12.9) do not load with this driver (CUDA 12.6)" in warnings) is warned
    assert ("'nvidia-cuda-nvrtc-cu12==12.6.*'" in warnings) is warned
