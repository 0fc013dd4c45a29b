"""The kit, made for this Python, and its ``run.sh`` in an environment with little but NumPy.

The GPU is the emulated one, and the run a quick one. Whatever a device without network, compiler
and torch would miss is missed here as well.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from tests.cache import key_of, once
from tests.emulated_cuda.build import (
    CannotBuild,
    build,
    default_cache,
    host_kernels,
    pip,
)
from tests.emulated_cuda.run import KERNELS, environment
from tests.gpu import bundles, kernels
from tests.gpu import kit as maker
from tests.gpu.run import ROOT

import fewstep

_CONSTRAINTS = ROOT / "constraints.txt"
_ON_A_DEVICE = (
    "numpy",
    "pytest",
    "numba",
    "onnxruntime",
    "cuda-bindings==13.0.3",  # what PyTorch of that time brings, and another than in development
)
_MAY_BE_MISSING = r"torch|tensorrt|compute-sanitizer|no CUDA provider"


@pytest.fixture(scope="module")
def bare() -> Path:
    """Python in an environment of its own, with what a device brings."""

    def make(target: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", target], check=True)
        options = ("install", "--quiet", f"--constraint={_CONSTRAINTS}")
        pip(*options, *_ON_A_DEVICE, python=target / "bin" / "python")

    key = key_of([*_ON_A_DEVICE, _CONSTRAINTS.read_bytes(), sys.version])
    try:
        return once(default_cache() / f"device-{key}", make) / "bin" / "python3"
    except CannotBuild as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources with a kit beside them."""
    copy = tmp_path_factory.mktemp("device") / "fewstep"
    # What numba compiled goes along: a device compiles for itself, for longer than the tests take.
    left_out = shutil.ignore_patterns(".*", "*.pyc", "data", "results", "gpu-report", "images")
    shutil.copytree(ROOT, copy, ignore=left_out)
    shutil.copytree(ROOT / "tests" / "data", copy / "tests" / "data")
    try:
        maker.make(copy / ".gpu", Path(sys.executable))
    except CannotBuild as error:
        pytest.skip(str(error))
    return copy


@pytest.fixture(scope="module")
def variables(bare: Path) -> dict[str, str]:
    """The emulated driver, without its pycuda, for the bare environment; no home."""
    found = environment(build(), host_kernels(KERNELS))
    for name in ("PYTHONPATH", "HOME", "VIRTUAL_ENV", "XDG_CACHE_HOME"):
        found.pop(name, None)
    return found | {"PATH": os.pathsep.join([str(bare.parent), found["PATH"]])}


def _run(
    tree: Path, variables: Mapping[str, str], *arguments: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", ".gpu/run.sh", *arguments],
        env=variables,
        cwd=tree,
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture(scope="module")
def done(tree: Path, variables: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """A quick run of the kit, with a report into ``here``."""
    return _run(tree, variables, "here", "--quick")


@pytest.fixture(scope="module")
def report(done: subprocess.CompletedProcess[str], tree: Path) -> dict[str, Any]:
    """What it reported."""
    found: dict[str, Any] = json.loads((tree / "here" / "report.json").read_text())
    return found


# --- the run


def test_nothing_fails(done: subprocess.CompletedProcess[str], report: dict[str, Any]) -> None:
    why = [f"{each['group']}: {each['why']}" for each in report["groups"] if each["why"]]
    states = {group["group"]: group["state"] for group in report["groups"]}
    assert "failed" not in states.values(), f"{why}\n{done.stdout}"
    assert set(states) >= {"machine", "first", "kernels", "faults", "loop", "benchmark"}
    assert done.returncode == 0


def test_only_what_a_device_may_lack_is_skipped(report: dict[str, Any]) -> None:
    skipped = [
        test["reason"]
        for group in report["groups"]
        for test in group["tests"]
        if test["outcome"] == "skipped"
    ]
    assert [reason for reason in skipped if not re.search(_MAY_BE_MISSING, reason)] == []


def test_the_report_says_what_ran_where(report: dict[str, Any], tree: Path) -> None:
    assert report["machine"]["GPU 0"].startswith("Emulated CUDA device sm_87")
    assert report["packages"]["numpy"] == version("numpy")
    assert report["machine"]["fewstep"] == fewstep.__version__  # of sources as they lie
    assert report["packages"]["torch"] is None
    unpacked = report["kit"]["unpacked"]
    assert {"pycuda", "pydantic", "pydantic-core", "hypothesis"} <= set(unpacked)
    assert {"numpy", "pytest"}.isdisjoint(unpacked)
    page = (tree / "here" / "report.md").read_text()
    assert "Emulated CUDA device sm_87" in page
    assert "| kernels | passed |" in page


def test_the_table_is_the_end_of_the_output(done: subprocess.CompletedProcess[str]) -> None:
    lines = done.stdout.splitlines()
    assert lines[-1].startswith(("passed; report: ", "FAILED; report: "))
    assert any(re.match(r"kernels +passed +\d+ +0 +\d+ ", line) for line in lines)


def test_the_report_is_a_few_plain_files(report: dict[str, Any], tree: Path) -> None:
    found = list((tree / "here").rglob("*"))
    assert len(found) <= 8
    assert all(path.is_file() and re.fullmatch(r"[\w.-]+", path.name, re.ASCII) for path in found)


def test_every_cuda_test_can_be_collected_there(
    tree: Path, bare: Path, variables: Mapping[str, str], tmp_path: Path
) -> None:
    """Also those that are not part of a quick run. They are named: without a GPU, as it may be
    here, the folder would be left out."""
    tests = sorted(str(each.relative_to(tree)) for each in (tree / "tests/cuda").glob("test_*.py"))
    for path in (tree / ".gpu" / "wheels").iterdir():
        with zipfile.ZipFile(path) as wheel:
            wheel.extractall(tmp_path)
    collected = subprocess.run(
        [bare, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *tests],
        env={**variables, "PYTHONPATH": str(tmp_path)},
        cwd=tree,
        capture_output=True,
        text=True,
    )
    assert collected.returncode == 0, collected.stdout


# --- the kit


def test_the_kit_is_small_and_complete(tree: Path) -> None:
    files = [path for path in (tree / ".gpu").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= maker.LIMIT_BYTES
    with tarfile.open(tree / ".gpu" / "bundles.tar.xz") as archive:
        names = {name.removeprefix("./") for name in archive.getnames()}
    assert {"tiny/bundle.json", "tiny-text/bundle.json", "official-logits.npz"} <= names
    for capability in bundles.CAPABILITIES:
        assert any(f"kernels/sm_{capability.replace('.', '')}-" in name for name in names)


def test_a_kit_for_another_python_is_one_line(tree: Path, variables: Mapping[str, str]) -> None:
    about = tree / ".gpu" / "kit.json"
    kept = about.read_text()
    about.write_text(json.dumps(json.loads(kept) | {"python": "3.7"}))
    refused = _run(tree, variables, "there")
    about.write_text(kept)
    assert (refused.returncode, refused.stdout) == (2, "")
    (line,) = refused.stderr.splitlines()
    assert line.startswith("error: the kit is for Python 3.7 on ")
    assert not (tree / "there").exists()


def test_without_python_is_one_line(tree: Path, variables: Mapping[str, str]) -> None:
    refused = _run(tree, {**variables, "PYTHON": "python3.99"})
    assert (refused.returncode, refused.stderr) == (
        2,
        "error: there is no python3.99; install Python\n",
    )


def test_a_kit_that_is_too_large_is_refused_and_the_last_one_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = tmp_path / "pycuda.whl"
    wheel.write_bytes(b"x" * 2000)
    monkeypatch.setattr(maker, "LIMIT_BYTES", 1000)
    monkeypatch.setattr(maker, "pycuda_wheel", lambda python, cuda: wheel)
    monkeypatch.setattr(maker, "pip", lambda *arguments, python: None)
    monkeypatch.setattr(kernels, "compile_for", lambda cuda, capabilities: None)
    monkeypatch.setattr(
        bundles, "make", lambda folder, kernels, with_sample: folder.mkdir(parents=True)
    )
    kept = tmp_path / "kit" / "kept"
    kept.parent.mkdir()
    kept.touch()
    with pytest.raises(CannotBuild, match="more than .*pycuda.whl"):
        maker.make(kept.parent, Path(sys.executable))
    assert kept.exists()
    maker.make(kept.parent, Path(sys.executable), with_sample=True)
    assert (kept.parent / "wheels" / "pycuda.whl").exists()
    assert not kept.exists()


# --- interpreters


def test_this_python_is_found() -> None:
    assert maker.find_python(f"{sys.version_info.major}.{sys.version_info.minor}") == Path(
        sys.executable
    )


def test_pythons_are_looked_for_on_the_path_and_in_pyenv(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that does not run, as pyenv's stand-ins for versions not chosen, is passed over."""
    shim, real = tmp_path / "bin", tmp_path / "pyenv" / "versions" / "3.99.1" / "bin"
    for folder, script in ((shim, "exit 127"), (real, "echo 3.99")):
        folder.mkdir(parents=True)
        (folder / "python3.99").write_text(f"#!/bin/sh\n{script}\n")
        (folder / "python3.99").chmod(0o755)
    monkeypatch.setenv("PATH", str(shim), prepend=os.pathsep)
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    assert maker.find_python("3.99") == real / "python3.99"


def test_a_python_that_is_not_there_is_named_with_what_installs_it() -> None:
    with pytest.raises(CannotBuild, match="no Python 3.42 here; install .*python3.42-dev"):
        maker.find_python("3.42")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--python", "3.9"), "PYTHON_VERSION has to be 3.10 or newer, such as 3.12; got 3.9"),
        (("--python", "rubbish"), "PYTHON_VERSION has to be 3.10 or newer"),
        (("--cuda", "12"), "with its minor number"),
        (("--cuda", "11.8"), "CUDA_VERSION has to be a version of CUDA 12 or 13"),
    ],
)
def test_versions_that_are_none_are_one_line(
    options: tuple[str, str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert maker.main(options) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
