"""Every test file is collected: pytest passes over folders with some names without a word."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[1]


def test_every_test_file_on_disk_is_collected() -> None:
    """Files that ``scripts`` holds are run by others, in processes of their own."""
    files = {path for path in (_ROOT / "tests").rglob("test_*.py") if "scripts" not in path.parts}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "--no-header", "tests"],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    lines = (line for line in done.stdout.splitlines() if "::" in line)
    collected = {_ROOT / line.partition("::")[0] for line in lines}
    assert done.returncode == 0, done.stdout[-3000:]
    assert files - collected == set()
