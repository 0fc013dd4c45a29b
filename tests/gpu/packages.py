"""The kit's packages on a device: those that it lacks, unpacked into a folder of their own.

Nothing is installed into the device's environment. A wheel is a zip file, and the kit's work
without what an installer would add.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import platform
import sys
import zipfile
from email import message_from_bytes
from pathlib import Path

_PAIR = ("pydantic", "pydantic-core")  # each of one version works with one version of the other


class UnfitKit(Exception):
    """The kit was made for another Python or another machine; the message says which."""


def check(kit: Path) -> None:
    """Whether this is the Python and the machine that the kit was made for.

    Raises:
        UnfitKit: it is not, or there is no kit.
    """
    try:
        made_for = json.loads((kit / "kit.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UnfitKit(f"{kit} is no GPU kit ({error}); make one with: make gpu-kit") from error
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    here = {"python": version, "machine": platform.machine()}
    wanted = {name: str(made_for[name]) for name in here}
    if here != wanted:
        raise UnfitKit(
            f"the kit is for Python {wanted['python']} on {wanted['machine']}, this is Python "
            f"{version} on {here['machine']}; make one on such a machine with: make gpu-kit "
            f"PYTHON_VERSION={version}"
        )


def require_packages() -> None:
    """What a device has to bring.

    Raises:
        UnfitKit: something is absent.
    """
    modules = {"cuda": "cuda-bindings"} | {
        name: name for name in ("numpy", "pytest", "numba", "onnxruntime")
    }
    absent = [package for name, package in modules.items() if not _is_installed(name)]
    if absent:
        raise UnfitKit(
            f"{sys.executable} lacks {', '.join(absent)}; install them with: pip install "
            f"{' '.join(absent)}, or name another Python with: PYTHON=… bash .gpu/run.sh"
        )


def unpack_missing(wheels: Path, target: Path) -> list[str]:
    """Unpack the wheels whose packages are not installed here, or not as the others need them.

    Returns their names. What lies in ``target`` has to come first on the path.
    """
    files = {_name(path): path for path in sorted(wheels.glob("*.whl"))}
    chosen = {name for name in files if not _is_installed(name)}
    if not chosen.isdisjoint(_PAIR):
        chosen |= files.keys() & set(_PAIR)
    while more := _unsatisfied([files[name] for name in chosen]) & files.keys() - chosen:
        chosen |= more
    for name in chosen:
        with zipfile.ZipFile(files[name]) as wheel:
            wheel.extractall(target)
    return sorted(chosen)


def _name(wheel: Path) -> str:
    return wheel.name.partition("-")[0].replace("_", "-").lower()


def _is_installed(name: str) -> bool:
    return importlib.util.find_spec(name.replace("-", "_")) is not None


def _unsatisfied(wheels: list[Path]) -> set[str]:
    """What these wheels require and the packages installed here are too old or too new for."""
    from packaging.requirements import Requirement  # comes with pytest
    from packaging.utils import canonicalize_name

    found = set()
    for wheel in wheels:
        for line in _metadata(wheel).get_all("Requires-Dist", []):
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                name = canonicalize_name(requirement.name)
                if not requirement.specifier.contains(_version(name), prereleases=True):
                    found.add(str(name))
    return found


def _metadata(wheel: Path):  # type: ignore[no-untyped-def]
    with zipfile.ZipFile(wheel) as archive:
        name = next(each for each in archive.namelist() if each.endswith(".dist-info/METADATA"))
        return message_from_bytes(archive.read(name))


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "0"
