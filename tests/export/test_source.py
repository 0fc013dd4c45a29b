"""Forms: which are known, what the command line makes of their options, and how one is added."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fewstep.export import source
from fewstep.export.config import ExportConfig
from fewstep.export.source import Exportable, Option, register, sources
from fewstep.runtime.errors import CheckpointError

if TYPE_CHECKING:
    from tests.conftest import Terminal


class Told(CheckpointError):
    """What a source was given."""


class Other:
    """A form that reads nothing, and says so."""

    name, kind, summary = "other", "masked", "A form of another package."
    options = (
        Option("weights", "All of them.", required=True),
        Option("more_parts", "Parts, repeated.", "files"),
        Option("half", "Half of them.", "flag"),
    )

    def load(self, given: Mapping[str, Any], config: ExportConfig) -> Exportable:
        raise Told(repr((sorted(given.items()), config.name)))


@pytest.fixture
def other(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(source, "_registered", {})
    register(Other())
    yield


def test_a_module_of_the_folder_is_a_form_and_so_is_what_registers(other: None) -> None:
    own = [
        "adagen",
        "adanat",
        "amused",
        "halton",
        "mar",
        "maskgit",
        "maskgit-torch",
        "titok",
        "var",
    ]
    assert list(sources()) == sorted([*own, "other"])
    assert all(name == each.name for name, each in sources().items())
    assert [option.flag for option in Other.options] == ["--weights", "--more-parts", "--half"]


def test_its_command_has_its_options_and_those_of_all(fewstep: Terminal, other: None) -> None:
    shown = fewstep("export", "other", "--help").out
    for option in ("--weights", "--more-parts", "--half", "--out", "--config", "--force"):
        assert option in shown
    assert "A form of another package." in fewstep("export", "--help").out
    assert "--policy" in fewstep("export", "adanat", "--help").out


def test_options_are_known_without_torch() -> None:
    code = (
        "import sys; from fewstep.export.source import sources; "
        "print([len(each.options) for each in sources().values()]); "
        "assert not {'torch', 'onnx', 'onnxscript', 'numba'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stderr, done.stdout) == ("", "[10, 10, 2, 3, 3, 9, 3, 3, 6]\n")


def test_what_is_given_arrives_by_name(fewstep: Terminal, other: None, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text('{"name": "named"}')
    more = ["--more-parts", "a", "--more-parts", "b"]
    given = ["--weights", "w", *more, "--half", "--out", tmp_path / "out", "--config", config]
    expected = [("half", True), ("more_parts", [Path("a"), Path("b")]), ("weights", Path("w"))]
    outcome = fewstep("export", "other", *given)
    assert (outcome.code, " ".join(outcome.err.split())) == (1, f"error: {(expected, 'named')}")
    few = fewstep("export", "other", "--weights", "w", "--out", tmp_path / "out")
    assert " ".join(few.err.split()) == f"error: {([('weights', Path('w'))], None)}"


def test_a_missing_option_and_that_of_another_form_are_refused(fewstep: Terminal) -> None:
    assert fewstep("export", "maskgit", "--out", "x").code == 2
    assert fewstep("export", "maskgit", "--policy", "p", "--out", "x").code == 2


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("maskgti", "unknown form or published model 'maskgti'; expected one of: adagen, "),
        ("open-muse", "unknown form or published model 'open-muse'; expected one of: adagen, "),
    ],
)
def test_an_unknown_form_lists_those_that_are_known(
    form: str, message: str, fewstep: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "_registered", {})
    outcome = fewstep("export", form, "--out", "x")
    assert outcome.code == 1
    assert message in " ".join(outcome.err.split())
