"""Session fixtures for every test folder: tiny random checkpoints and the bundles made of them.

Each bundle is exported once per session and shared, so a test that changes one works on a copy.
Nothing here imports torch, the exporter or the command line until a test asks for it: the CUDA
tests run on devices that have none of them.
"""

from __future__ import annotations

import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings


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
def tiny_bundle(tiny_checkpoints: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An AdaNAT bundle: 4×4 tokens of 24 codes, 5 classes, policy with residuals, 8×8 images."""
    from tests import tiny

    return tiny.export(tiny_checkpoints, tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="session")
def tiny_text_bundle(
    tiny_text_checkpoints: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A MaskGIT bundle with text states ``[3, 12]`` as condition, and those of the empty text."""
    from tests import tiny

    return tiny.export_text(tiny_text_checkpoints, tmp_path_factory.mktemp("bundles") / "tiny-text")


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
    """The bundle of a family that lives in tests; its checkpoint, toy.pt, lies beside it."""
    from tests.toy.source import export_toy

    folder = tmp_path_factory.mktemp("toy")
    return export_toy(folder / "toy.pt", folder / "bundle")


@pytest.fixture(scope="session")
def toy_checkpoint(toy_bundle: Path) -> Path:
    """Weights of the toy family."""
    return toy_bundle.parent / "toy.pt"


@pytest.fixture
def toy_copy(toy_bundle: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return Path(shutil.copytree(toy_bundle, tmp_path / "toy"))
