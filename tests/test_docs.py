"""The documents: every relative link leads somewhere, and every command they name exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fewstep.cli import app

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    page
    for pattern in ("*.md", "docs/*.md", "samples/*/*.md", "tests/data/*.md")
    for page in ROOT.glob(pattern)
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_exist(page: Path) -> None:
    known = {command.name for command in app.registered_commands}
    known |= {str(group.name) for group in app.registered_groups}
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"^\s*fewstep ([a-z]+) ", text, re.MULTILINE))
    assert named <= known


def test_there_are_pages_with_links_and_commands() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(PAGES) >= 6
    assert "](docs/architecture.md)" in readme
    assert "\nfewstep generate " in readme
