"""The Dockerfiles: linted, and the steps that install fewstep run without a container.

What they leave is the package with the extra `cpu` alone, as users have it: no PyTorch, no ONNX, no
clone. It makes its first picture in a minute.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.packaging.conftest import ROOT

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.packed import pack

DOCKERFILES = sorted((ROOT / "samples/docker").glob("Dockerfile.*"))
Run = Callable[..., str]

_NO_INDEX = re.compile(
    r"No matching distribution|ConnectionError|NewConnectionError|Temporary failure"
)


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.suffix)
def test_hadolint_finds_nothing(file: Path) -> None:
    hadolint = shutil.which("hadolint", path=Path(sys.executable).parent)
    if hadolint is None:
        pytest.skip("hadolint has no wheel for this processor")
    found = subprocess.run(
        [hadolint, "--no-color", file], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.suffix)
def test_images_are_built_in_stages_and_run_without_rights(file: Path) -> None:
    instructions = _instructions(file)
    names = [name for name, _ in instructions]
    assert names.count("FROM") == 2
    assert ("USER", "1000") in instructions
    assert names.index("USER") > max(k for k, name in enumerate(names) if name in ("RUN", "COPY"))
    assert ("ENTRYPOINT", '["fewstep"]') in instructions
    pips = [text for _, text in instructions if re.search(r"pip (install|wheel)", text)]
    assert pips
    assert all("--no-cache-dir" in text for text in pips)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the steps of `Dockerfile.cpu` have run, with the paths that they name."""
    root = tmp_path_factory.mktemp("image")
    (root / "opt").mkdir()
    _copy_context(root / "src")
    python = root / "python"  # in the place of the base image's
    subprocess.run([sys.executable, "-m", "venv", python], check=True)
    stage = -1
    for name, text in _instructions(ROOT / "samples/docker/Dockerfile.cpu"):
        stage += name == "FROM"
        steps = text if name == "RUN" else ""
        steps = " && ".join(each for each in steps.split(" && ") if not each.startswith("useradd"))
        for path in ("/opt", "/wheels", "/var/cache/fewstep"):
            steps = re.sub(rf"(?<![\w.]){path}\b", f"{root}{path}", steps)
        if steps:
            _shell(steps, (python if stage == 0 else root / "opt/fewstep") / "bin", root)
    return root


@pytest.fixture
def run(image: Path, tmp_path: Path) -> Run:
    """Runs `fewstep` of the image, somewhere else, with a home of its own; what it prints."""

    def fewstep(*arguments: object, code: int = 0, timeout: float = 300) -> str:
        program = image / "opt/fewstep/bin/fewstep"
        finished = subprocess.run(
            [program, *map(str, arguments)],
            cwd=tmp_path,
            env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "LC_ALL": "C.UTF-8"},
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )
        assert finished.returncode == code, finished.stderr + finished.stdout
        return finished.stdout + finished.stderr

    return fewstep


@pytest.mark.slow
def test_no_framework_is_installed_and_the_kernels_are_there(image: Path) -> None:
    packages = {path.name for path in image.glob("opt/fewstep/lib/python*/site-packages/*")}
    assert {"fewstep", "numba", "onnxruntime"} <= packages
    assert packages.isdisjoint({"torch", "onnx", "tests"})
    assert list(image.glob("var/cache/fewstep/**/*.kernel"))


@pytest.mark.slow
def test_the_first_picture_takes_a_minute_at_most(
    run: Run, tiny_bundle: Path, tmp_path: Path
) -> None:
    run("generate", tiny_bundle, "--class", 0, "--out", "first.png", timeout=60)
    assert (tmp_path / "first.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_commands_that_run_bundles_work(run: Run, tiny_bundle: Path) -> None:
    assert "intact" in run("inspect", tiny_bundle)
    run("verify", tiny_bundle)
    run("bench", tiny_bundle, "--runs", 1)
    assert "onnxruntime" in run("doctor")


@pytest.mark.slow
def test_the_demo_takes_the_file_of_a_release(run: Run, tiny_bundle: Path, tmp_path: Path) -> None:
    pack(Bundle.read(tiny_bundle), tmp_path / "sample.zip")
    shown = run("demo", "--bundle", "sample.zip")
    assert {path.name for path in (tmp_path / "demo-output").iterdir()} == {
        *("bundle", "grid-8-steps.png", "grid-4-steps.png", "steps.gif")
    }
    assert "next: " in shown


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (["demo"], "fewstep demo --bundle fewstep-sample-"),
        (
            ["export", "adanat", "--transformer", "a", "--tokenizer", "b", "--out", "c"],
            "fewstep[export]",
        ),
        (["build", "{bundle}", "--precision", "fp16"], "fewstep[build]"),
        (["calibrate", "quantize", "{bundle}"], "fewstep[calibration]"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_what_needs_more_says_what(
    run: Run, tiny_bundle: Path, arguments: list[str], remedy: str
) -> None:
    given = [each.format(bundle=tiny_bundle) for each in arguments]
    assert remedy in run(*given, code=1)


def _instructions(file: Path) -> list[tuple[str, str]]:
    """Name and text of every instruction, with lines joined."""
    text = re.sub(r"^#.*\n", "", file.read_text("utf-8"), flags=re.MULTILINE)
    lines = re.sub(r"\s*\\\n\s*", " ", text).splitlines()
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines if line)]


def _copy_context(target: Path) -> None:
    """What `.dockerignore` lets in."""
    target.mkdir()
    rules = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    for name in (rule[1:] for rule in rules if rule.startswith("!")):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target / name)


def _shell(steps: str, programs: Path, root: Path) -> None:
    environment = os.environ | {
        "PATH": f"{programs}:/usr/bin:/bin",
        "NUMBA_CACHE_DIR": f"{root}/var/cache/fewstep",
    }
    environment.pop("PYTHONPATH", None)
    finished = subprocess.run(
        steps,
        shell=True,
        cwd=root / "src",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if finished.returncode and _NO_INDEX.search(finished.stderr):
        pytest.skip("no package index can be reached from here")
    assert finished.returncode == 0, f"{steps}\n{finished.stderr}"
