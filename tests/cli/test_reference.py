"""``docs/cli.md`` is what the commands say of themselves."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"


@functools.cache
def reference() -> str:
    """What the command prints; in a process of its own, without the family of the tests."""
    command = [sys.executable, "-m", "fewstep.cli.reference"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_the_page_is_current() -> None:
    """Made by ``python -m fewstep.cli.reference > docs/cli.md``."""
    assert PAGE.read_text("utf-8") == reference()


def test_the_page_has_every_command_with_its_arguments_and_options() -> None:
    page = reference()
    for command in ("doctor", "generate BUNDLE", "export adanat", "calibrate quantize BUNDLE"):
        assert f"    fewstep {command} [OPTIONS]\n" in page
    section = page.partition("## fewstep generate\n")[2].partition("\n## ")[0]
    for line in (
        "| `BUNDLE` | Bundle folder. |",
        "| `--seed VALUE` | Seed of the first image, 0 by default; others count up. |",
        "| `--batch VALUE` | Images decoded together. Default: `8`. |",
        "| Settings of the bundle's family | |",
        "| `--steps VALUE` | masked: Transformer passes. |",
    ):
        assert line in section
    assert "| `--adaptive`, `--fixed` | " in page and "Default: `--adaptive`. |" in page
    assert "--help" not in section
