"""What of a kit is unpacked on a device: what it lacks, or has in a version that does not fit."""

from __future__ import annotations

import json
import platform
import sys
import zipfile
from pathlib import Path

import pytest
from tests.gpu import packages
from tests.gpu.packages import UnfitKit, check, unpack_missing


def _wheel(folder: Path, name: str, version: str, *requires: str) -> None:
    """A wheel of one module."""
    folder.mkdir(exist_ok=True)
    lines = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {r}" for r in requires)]
    module = name.replace("-", "_")
    with zipfile.ZipFile(folder / f"{module}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{module}.py", f"version = {version!r}\n")
        wheel.writestr(f"{module}-{version}.dist-info/METADATA", "\n".join(lines) + "\n\n")


def _unpacked(folder: Path) -> list[str]:
    names = unpack_missing(folder / "wheels", folder / "site")
    modules = {path.stem.replace("_", "-") for path in (folder / "site").glob("*.py")}
    assert modules == set(names)
    return names


def test_only_what_is_absent_is_unpacked(tmp_path: Path) -> None:
    _wheel(tmp_path / "wheels", "numpy", "1.0")
    _wheel(tmp_path / "wheels", "absent-here", "1.0")
    assert _unpacked(tmp_path) == ["absent-here"]


def test_a_requirement_that_is_installed_too_old_is_unpacked_too(tmp_path: Path) -> None:
    """And what that one requires; extras and other systems' requirements do not count."""
    _wheel(tmp_path / "wheels", "absent-here", "1.0", "pytest>=999", "numpy>=999; extra == 'x'")
    _wheel(tmp_path / "wheels", "pytest", "999.0", "packaging>=999")
    _wheel(tmp_path / "wheels", "packaging", "999.0")
    _wheel(tmp_path / "wheels", "numpy", "999.0")
    assert _unpacked(tmp_path) == ["absent-here", "packaging", "pytest"]


def test_a_requirement_that_is_installed_and_fits_stays(tmp_path: Path) -> None:
    _wheel(tmp_path / "wheels", "absent-here", "1.0", "pytest>=1")
    _wheel(tmp_path / "wheels", "pytest", "999.0")
    assert _unpacked(tmp_path) == ["absent-here"]


@pytest.mark.parametrize("absent", ["pydantic", "pydantic-core"])
def test_pydantic_is_a_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, absent: str) -> None:
    _wheel(tmp_path / "wheels", "pydantic", "2.0")
    _wheel(tmp_path / "wheels", "pydantic-core", "2.0")
    assert _unpacked(tmp_path) == []
    monkeypatch.setattr(packages, "_is_installed", lambda name: name != absent)
    assert _unpacked(tmp_path) == ["pydantic", "pydantic-core"]


# --- kits for others


def _kit(folder: Path, **changes: str) -> Path:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    about = {"python": version, "machine": platform.machine(), "cuda": "13.0"}
    (folder / "kit.json").write_text(json.dumps(about | changes))
    return folder


def test_a_kit_for_this_python_and_machine_is_taken(tmp_path: Path) -> None:
    check(_kit(tmp_path))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"python": "3.7"}, f"the kit is for Python 3.7 on {platform.machine()}, this is Python 3"),
        (
            {"machine": "riscv64"},
            f"on riscv64, this is Python .* on {platform.machine()}; make one",
        ),
    ],
)
def test_a_kit_for_another_python_or_machine_is_refused(
    tmp_path: Path, change: dict[str, str], told: str
) -> None:
    with pytest.raises(UnfitKit, match=told):
        check(_kit(tmp_path, **change))


def test_everything_that_a_device_lacks_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    packages.require_packages()
    lacking = ("numba", "cuda")
    monkeypatch.setattr(packages, "_is_installed", lambda name: name not in lacking)
    with pytest.raises(UnfitKit, match=r"lacks cuda-bindings, numba; .*pip install cuda-bindings"):
        packages.require_packages()
