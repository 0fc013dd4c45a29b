"""What is uploaded: all that the package needs and nothing else, described as PyPI takes it."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from tests.packaging.conftest import ROOT, build
from trove_classifiers import classifiers

pytestmark = pytest.mark.slow

_PACKAGES = ("runtime/fewstep", "export/fewstep", "calibration/fewstep")
_HEAVY = {"torch", "onnx", "onnxscript", "tensorrt-rtx-cu12", "pycuda", "matplotlib"}


@pytest.fixture(scope="module")
def names(distributions: tuple[Path, Path]) -> list[str]:
    """The files of the wheel."""
    with zipfile.ZipFile(distributions[1]) as wheel:
        return wheel.namelist()


@pytest.fixture(scope="module")
def metadata(distributions: tuple[Path, Path], names: list[str]) -> Message:
    """What the wheel says of itself; the payload is its description."""
    file = next(name for name in names if name.endswith(".dist-info/METADATA"))
    with zipfile.ZipFile(distributions[1]) as wheel:
        return Parser().parsestr(wheel.read(file).decode())


def test_the_wheel_is_the_package_and_nothing_else(names: list[str]) -> None:
    inside = [name for name in names if ".dist-info/" not in name]
    folders = [ROOT / each for each in _PACKAGES]
    wanted = {
        path.relative_to(folder.parent).as_posix()
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert len(inside) == len(set(inside))
    assert set(inside) == wanted


def test_data_and_sources_of_kernels_are_in_the_wheel(names: list[str]) -> None:
    typed = {name for name in names if name.endswith("/py.typed")}
    assert typed == {
        f"fewstep/{each}/py.typed" for each in ("runtime", "export", "build", "calibration")
    }
    kernels = {Path(name).name for name in names if name.endswith((".cu", ".cuh"))}
    assert {"kernels.cu", "sample_tokens.cu", "philox.cuh"} <= kernels
    assert {"fewstep/export/imagenet_classes.txt", "fewstep/export/published.json"} <= set(names)
    assert {"fewstep/server/page/index.html", "fewstep/server/page/app.js"} <= set(names)


def test_the_tree_and_the_source_distribution_give_the_same_wheel(
    distributions: tuple[Path, Path], tmp_path: Path
) -> None:
    (direct,) = build(tmp_path, "--wheel")
    assert direct.read_bytes() == distributions[1].read_bytes()


def test_the_source_distribution_has_what_its_tests_and_samples_need(
    distributions: tuple[Path, Path],
) -> None:
    with tarfile.open(distributions[0]) as sdist:
        inside = {name.partition("/")[2] for name in sdist.getnames()}
    wanted = {
        "LICENSE",
        "README.md",
        "CHANGELOG.md",
        "Makefile",
        "constraints.txt",
        ".dockerignore",
    }
    wanted |= {"tests/conftest.py", "samples/fashion/weights/transformer.safetensors"}
    assert wanted <= inside
    assert not [name for name in inside if ".venv" in name or name.startswith("demo-output")]


def test_twine_finds_nothing(distributions: tuple[Path, Path]) -> None:
    command = [sys.executable, "-m", "twine", "check", "--strict", *map(str, distributions)]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_classifiers_are_known_and_name_the_pythons(metadata: Message) -> None:
    given = metadata.get_all("Classifier") or []
    assert set(given) <= classifiers
    pythons = [each for each in given if re.fullmatch(r".*Python :: 3\.\d+", each)]
    least = str(metadata["Requires-Python"]).removeprefix(">=")
    assert pythons[0].endswith(least)
    for kind in ("Operating System ::", "Topic ::", "Development Status ::", "Typing ::"):
        assert any(each.startswith(kind) for each in given)
    assert metadata["License-Expression"] == "Apache-2.0"


def test_the_description_needs_nothing_beside_it(metadata: Message) -> None:
    text = metadata.get_payload()
    assert isinstance(text, str)
    assert text.lstrip().startswith("# fewstep")
    targets = re.findall(r"\]\(([^)]*)\)", text)
    assert [target for target in targets if not target.startswith("https://")] == []


def test_urls_lead_into_the_web(metadata: Message) -> None:
    urls = metadata.get_all("Project-URL") or []
    assert urls
    assert all(re.fullmatch(r"[^,]+, https://\S+", each) for each in urls)


@pytest.mark.parametrize("extra", ["", "cpu"])
def test_running_a_bundle_brings_no_frameworks(metadata: Message, extra: str) -> None:
    required = [Requirement(each) for each in metadata.get_all("Requires-Dist") or []]
    wanted = {
        each.name
        for each in required
        if each.marker is None or each.marker.evaluate({"extra": extra})
    }
    assert {"numpy", "pillow", "typer"} <= wanted
    assert wanted.isdisjoint(_HEAVY)
