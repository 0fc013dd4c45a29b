"""Session fixtures for every test folder: tiny random checkpoints and the bundles made of them.

Bundles come from the tests' cache (``exported.py``), as copies that a session shares, so a test
that changes one works on a copy of its own. Nothing here imports torch, the exporter or the command
line until a test asks for it: the CUDA tests run on devices that have none of them.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.exported import copy_of

_LONGEST = (
    "emulated_cuda/test_suite.py",
    "packaging/test_docker.py",
    "samples/test_ci.py",
    "gpu/test_kit.py",
)
"""Files that take a minute or more."""

# Which backend is faster here is no matter of tests, and would be measured for every bundle.
os.environ.setdefault("FEWSTEP_CPU_BACKEND", "onnxruntime")

if "PYTEST_XDIST_WORKER" in os.environ:  # a worker a core, so a thread a worker
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, for the others to fill what workers are left."""
    items.sort(key=lambda item: not item.path.as_posix().endswith(_LONGEST))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What ran in sessions of its own, under the emulated driver."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == "emulated":
                terminalreporter.write_line(value)


def pytest_configure() -> None:
    """Ctrl-C reaches the tests of it also where a shell has its background jobs ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


# The same examples on every run, and no time limits: the machine may be busy with other work.
settings.register_profile(
    "fewstep", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("fewstep")


@pytest.fixture(scope="session")
def tiny_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What to export, by option: checkpoints in the authors' formats, with classes and a policy."""
    from tests import tiny

    return tiny.checkpoints(tmp_path_factory.mktemp("tiny-checkpoints"))


@pytest.fixture(scope="session")
def tiny_text_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """As :func:`tiny_checkpoints`, but conditioned on text, without policy, with empty text."""
    from tests import tiny

    return tiny.text_checkpoints(tmp_path_factory.mktemp("tiny-text-checkpoints"))


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An AdaNAT bundle: 4×4 tokens of 24 codes, 5 classes, policy with residuals, 8×8 images."""
    return copy_of("tiny", tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="session")
def tiny_text_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A MaskGIT bundle with text states ``[3, 12]`` as condition, and those of the empty text."""
    return copy_of("tiny-text", tmp_path_factory.mktemp("bundles") / "tiny-text")


@pytest.fixture(scope="session")
def cached_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As :func:`tiny_bundle`, of the same weights, with cached context and an image encoder."""
    return copy_of("tiny-cached", tmp_path_factory.mktemp("bundles") / "tiny-cached")


@pytest.fixture(scope="session")
def edit_bundle(cached_bundle: Path) -> Path:
    """The one that can edit pictures, for what needs no cached context."""
    return cached_bundle


@pytest.fixture(scope="session")
def var_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VAR bundle: scales 1, 2, 3, 4 of 40 codes, 5 classes, a policy, 8×8 images."""
    return copy_of("tiny-var", tmp_path_factory.mktemp("bundles") / "tiny-var")


@pytest.fixture(scope="session")
def mar_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A MAR bundle: 4×4 tokens, each a patch of 2×2 positions of 3 channels; 5 classes, 16×16
    images, a preset."""
    return copy_of("tiny-mar", tmp_path_factory.mktemp("bundles") / "tiny-mar")


@pytest.fixture
def bundle_copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the tiny bundle that a test may damage."""
    return shutil.copytree(tiny_bundle, tmp_path / "copy")


class Outcome:
    """Exit code and output of one command."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


class Terminal:
    """Runs ``fewstep`` commands in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: object) -> Outcome:
        from fewstep.cli import main

        self._monkeypatch.setattr(sys, "argv", ["fewstep", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        captured = self._capsys.readouterr()
        return Outcome(code, captured.out, captured.err)


@pytest.fixture
def fewstep(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Terminal:
    """A terminal to type commands in."""
    return Terminal(monkeypatch, capsys)


@pytest.fixture(scope="session")
def toy_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a family that lives in tests."""
    from fewstep.runtime.families import register
    from tests.toy.family import ToyFamily

    register(ToyFamily())
    return copy_of("toy", tmp_path_factory.mktemp("bundles") / "toy")


@pytest.fixture(scope="session")
def toy_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights that it was exported from; its form is known from then on."""
    from fewstep.export import source
    from fewstep.runtime.families import register
    from tests.toy.family import ToyFamily
    from tests.toy.source import ToySource, write_checkpoint

    register(ToyFamily())
    source.register(ToySource())
    return write_checkpoint(tmp_path_factory.mktemp("toy-checkpoint") / "toy.pt")


@pytest.fixture
def toy_copy(toy_bundle: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return Path(shutil.copytree(toy_bundle, tmp_path / "toy"))
