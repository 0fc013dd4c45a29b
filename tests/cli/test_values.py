"""Several values of one option, in all the ways to give them; arguments stay arguments."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.main import get_command

from fewstep.cli.values import ValuesCommand

_app = typer.Typer(add_completion=False)
_seen: list[Any] = []


@_app.command(cls=ValuesCommand)
def _command(
    bundle: Path,
    classes: Annotated[list[str] | None, typer.Option("--class", "-c")] = None,
    batches: Annotated[list[int] | None, typer.Option("--batch")] = None,
    seed: int = 0,
    fast: bool = False,
) -> None:
    _seen.append((str(bundle), classes, batches, seed, fast))


def _parsed(line: str) -> Any:
    get_command(_app).main(shlex.split(line), standalone_mode=False)
    return _seen.pop()


@pytest.mark.parametrize(
    "line",
    [
        "b --batch 1 --batch 2 --batch 4",
        "b --batch 1 2 4",
        "b --batch 1,2,4",
        "b --batch=1,2 4",
        "--batch 1 2 4 b",
        "--batch 1 2 4 -- b",
    ],
)
def test_all_ways_mean_the_same(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path)
    assert _parsed(line) == ("b", None, [1, 2, 4], 0, False)


def test_arguments_stay_arguments_wherever_they_stand() -> None:
    assert _parsed("--class Dress b") == ("b", ["Dress"], None, 0, False)
    assert _parsed("--class Dress Coat b --fast") == ("b", ["Dress", "Coat"], None, 0, True)
    assert _parsed("b -c 1 2 --seed 3 --class=4") == ("b", ["1", "2", "4"], None, 3, False)


def test_classes_keep_their_commas_and_values_may_look_like_options() -> None:
    assert _parsed("b --class 'tench, Tinca tinca' hen")[1] == ["tench, Tinca tinca", "hen"]
    assert _parsed("b --class -1 --class=--5")[1] == ["-1", "--5"]


def test_values_that_are_long_or_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = ",".join(map(str, range(1_000)))
    assert _parsed(f"b --class 1 {long}")[1] == ["1", long]
    assert _parsed(f"b --batch 1 {long}")[2] == [1, *range(1_000)]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "1,2").touch()
    with pytest.raises(typer.BadParameter):
        _parsed("b --batch 1,2")


@pytest.mark.parametrize("line", ["b --batch", "b --batch 1,,2", "b --seed 1 2", "b --batch 1 x"])
def test_what_is_wrong_stays_wrong(line: str) -> None:
    with pytest.raises(typer.BadParameter.__base__):  # type: ignore[arg-type]
        _parsed(line)
