"""Doctor: what works follows from the packages or from trying; remedies say what to install."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fewstep.runtime import doctor
from fewstep.runtime.errors import DeviceError


def _without(monkeypatch: pytest.MonkeyPatch, *absent: str, **extra: str) -> doctor.Diagnosis:
    real = doctor._version

    def version(package: str) -> str | None:
        return None if package in absent else extra.get(package) or real(package)

    monkeypatch.setattr(doctor, "_version", version)
    return doctor.diagnose()


def test_everything_installed() -> None:
    diagnosis = doctor.diagnose()
    *software, gpu = diagnosis.abilities  # a machine for tests need not have a GPU
    assert len(software) == 3
    assert all(ability.works for ability in software)
    assert gpu.works or gpu.remedy
    assert all(ability.name and ability.detail for ability in diagnosis.abilities)
    assert diagnosis.warnings == ()
    assert int(diagnosis.machine["cores"]) >= 1


@pytest.mark.parametrize(
    ("absent", "works", "remedies"),
    [
        ("torch", [True, False], ["", "pip install 'fewstep[export]'"]),
        (
            "onnxruntime",
            [False, False],
            ["pip install 'fewstep[cpu]'", "pip install 'fewstep[export]'"],
        ),
    ],
)
def test_remedy_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, absent: str, works: list[bool], remedies: list[str]
) -> None:
    tried = doctor.diagnose().abilities[2:]
    diagnosis = _without(monkeypatch, absent)
    abilities = diagnosis.abilities[:2]
    assert diagnosis.abilities[2:] == tried  # they need neither package
    assert [ability.works for ability in abilities] == works
    assert [ability.remedy for ability in abilities] == remedies
    assert all(absent in ability.detail for ability in abilities if not ability.works)


@pytest.mark.parametrize(("look", "place"), [("_kernel_compiler", 2), ("_gpus", 3)])
def test_what_only_trying_tells_repeats_the_error_and_its_remedy(
    monkeypatch: pytest.MonkeyPatch, look: str, place: int
) -> None:
    def fail() -> str:
        raise DeviceError("no such thing; buy one; soon")

    before = doctor.diagnose().abilities
    monkeypatch.setattr(doctor, look, fail)
    failed = doctor.diagnose().abilities
    assert failed[place] == doctor.Ability(
        before[place].name, False, "no such thing", "buy one; soon"
    )
    assert [a for i, a in enumerate(failed) if i != place] == [
        a for i, a in enumerate(before) if i != place
    ]
    monkeypatch.setattr(doctor, look, lambda: "two of them")
    found = doctor.diagnose().abilities[place]
    assert (found.works, found.detail, found.remedy) == (True, "two of them", "")


def test_a_defect_is_not_taken_for_an_absent_ability(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash() -> str:
        raise AttributeError

    monkeypatch.setattr(doctor, "_gpus", crash)
    with pytest.raises(AttributeError):
        doctor.diagnose()


def test_two_onnxruntimes_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    diagnosis = _without(monkeypatch, **{"onnxruntime-gpu": "1.0"})
    assert "own the same module" in diagnosis.warnings[0]


def test_diagnosis_is_json() -> None:
    assert json.loads(json.dumps(doctor.diagnose().as_dict()))["machine"]["python"]


# --- GPU and kernel compiler


_COMPILE, _GPU = "compile CUDA kernels", "run on an NVIDIA GPU"
_NO_LIBRARY = 'raise ImportError("libcuda.so.1: cannot open shared object file")'
_NO_DEVICE = """
class Error(Exception): ...
def init(): raise Error("cuInit failed: no CUDA-capable device is detected")
"""
_TWO_GPUS = """
class Error(Exception): ...
def init(): ...
class Device:
    def __init__(self, ordinal): self._ordinal = ordinal
    @staticmethod
    def count(): return 2
    def name(self): return ["Orin", "NVIDIA RTX 2000 Ada"][self._ordinal]
    def compute_capability(self): return (8, 7 + 2 * self._ordinal)
    def total_memory(self): return (64 - 48 * self._ordinal) * 2**30
"""


def _ability(name: str) -> doctor.Ability:
    return next(each for each in doctor.diagnose().abilities if each.name == name)


@pytest.fixture
def pycuda(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """Put a package in the place of pycuda; the text is its module ``driver``."""

    def install(driver: str) -> None:
        (tmp_path / "pycuda").mkdir()
        (tmp_path / "pycuda" / "__init__.py").touch()
        (tmp_path / "pycuda" / "driver.py").write_text(driver)
        monkeypatch.syspath_prepend(tmp_path)

    real = {name: sys.modules.pop(name) for name in _imported_pycuda()}
    yield install
    for name in _imported_pycuda():
        del sys.modules[name]
    sys.modules.update(real)


def _imported_pycuda() -> list[str]:
    return [name for name in sys.modules if name.partition(".")[0] == "pycuda"]


def test_compiler_is_shown_with_what_it_compiles_for() -> None:
    detail = _ability(_COMPILE).detail
    assert detail.startswith("NVRTC ")
    assert {"8.6,", "8.7,", "8.9,"} <= set(detail.split())


@pytest.mark.parametrize("module", ["cuda.bindings", "cuda.pathfinder"])
def test_absent_compiler_names_its_extra(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    ability = _ability(_COMPILE)
    assert not ability.works
    assert ability.detail.endswith("is not installed")
    assert ability.remedy.endswith("pip install 'fewstep[kernels]'")


def test_absent_pycuda_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycuda", None)
    ability = _ability(_GPU)
    assert (ability.works, ability.detail) == (False, "pycuda is not installed")
    assert ability.remedy.endswith("pip install 'fewstep[cuda]'")


@pytest.mark.parametrize(
    ("driver", "detail", "remedy"),
    [
        (_NO_LIBRARY, "no CUDA driver on this machine (libcuda.so.1", "install NVIDIA's driver"),
        (_NO_DEVICE, "no CUDA-capable device is detected", "nvidia-smi"),
    ],
)
def test_absent_driver_or_gpu_says_what_to_do(
    pycuda: Callable[[str], None], driver: str, detail: str, remedy: str
) -> None:
    pycuda(driver)
    ability = _ability(_GPU)
    assert not ability.works
    assert detail in ability.detail
    assert remedy in ability.remedy


def test_gpu_without_a_backend_for_it_does_not_count_as_working(
    pycuda: Callable[[str], None],
) -> None:
    pycuda(_TWO_GPUS)
    ability = _ability(_GPU)
    assert not ability.works
    assert "onnxruntime-gpu" in ability.remedy


def test_every_gpu_is_shown_with_its_architecture_and_memory(
    pycuda: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    pycuda(_TWO_GPUS)
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider"])
    ability = _ability(_GPU)
    assert (ability.works, ability.remedy) == (True, "")
    assert ability.detail == (
        "Orin, compute capability 8.7, 64.0 GiB; "
        "NVIDIA RTX 2000 Ada, compute capability 8.9, 16.0 GiB"
    )


def test_gpu_without_the_bindings_does_not_count_as_working(
    pycuda: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening the device needs cuda-bindings besides pycuda."""
    pycuda(_TWO_GPUS)
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    assert not _ability(_GPU).works


def test_packages_for_gpus_are_listed() -> None:
    assert {"pycuda", "cuda-bindings"} <= doctor.diagnose().packages.keys()
