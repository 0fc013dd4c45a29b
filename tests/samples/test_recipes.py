"""The recipes of ``samples/ci`` and ``samples/jetson``: every command that they show parses.

Options are checked as well as names, by the command line's own parser, so that a renamed option
is noticed where it is documented.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer
from typer.main import get_command

from fewstep.cli import app

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "samples").glob("*/README.md"))
_RECIPES = {"ci", "jetson"}


def commands(page: Path) -> list[list[str]]:
    """Every line of shell in a page, as words, without comments and with lines joined."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def parse(words: list[str]) -> None:
    """Parse a ``fewstep`` command line without running it."""
    name, *arguments = words[1:]
    group = get_command(app)
    context = typer.Context(group)
    command = group.get_command(context, name)  # type: ignore[attr-defined]
    assert command is not None, f"no command {name}"
    command.make_context(name, arguments, parent=context)


def _shown() -> list[tuple[Path, list[str]]]:
    return [(page, words) for page in PAGES for words in commands(page) if words[0] == "fewstep"]


@pytest.mark.parametrize(
    ("page", "words"),
    _shown(),
    ids=lambda value: value.parent.name if isinstance(value, Path) else " ".join(value[:3]),
)
def test_commands_parse(page: Path, words: list[str]) -> None:
    try:
        parse(words)
    except Exception as error:
        pytest.fail(f"{page.relative_to(ROOT)}: {shlex.join(words)}: {error}")


def test_both_recipes_show_the_whole_way() -> None:
    shown = {(page.parent.name, words[1]) for page, words in _shown()}
    wanted = {"doctor", "inspect", "build", "verify", "generate", "bench"}
    assert {("jetson", name) for name in wanted} <= shown
    assert {("ci", "doctor"), ("ci", "verify"), ("ci", "generate")} <= shown


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent.name in _RECIPES])
def test_extras_exist(page: Path) -> None:
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    section = project.partition("[project.optional-dependencies]")[2].partition("\n[project.")[0]
    known = set(re.findall(r"^([a-z0-9]+) = \[", section, re.MULTILINE))
    installs = [words for words in commands(page) if words[:2] == ["pip", "install"]]
    assert installs
    for words in installs:
        extras = re.findall(r"\[([a-z0-9,]+)\]", " ".join(words))
        assert extras, words
        assert {name for each in extras for name in each.split(",")} <= known


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent.name in _RECIPES])
def test_pages_say_what_was_not_run(page: Path) -> None:
    assert re.search(r"not (been )?run", page.read_text("utf-8"))


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("fewstep build bundle --no-such", "No such option"),
        ("fewstep bench", "Missing parameter"),
        ("fewstep verify bundle --report", "requires an argument"),
        ("fewstep no", "no command no"),
    ],
)
def test_the_parser_above_refuses(line: str, why: str) -> None:
    with pytest.raises(Exception, match=why):
        parse(shlex.split(line))
