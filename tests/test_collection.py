"""Every test file is collected: pytest passes over folders with some names without a word."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[1]
_CUDA = _ROOT / "tests" / "cuda"

# Names the files that pytest would import, without importing them.
_COLLECT = """
import sys
import pytest

class File(pytest.Module):
    def collect(self):
        print(self.path)
        return []

class Files:
    def pytest_pycollect_makemodule(self, module_path, parent):
        return File.from_parent(parent, path=module_path)

pytest.main(["--collect-only", "-qqs", *sys.argv[1:]], plugins=[Files()])
"""


def _collected(*paths: Path) -> set[Path]:
    command = [sys.executable, "-c", _COLLECT, *map(str, paths)]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=300)
    return {Path(line) for line in done.stdout.splitlines() if line.endswith(".py")}


def test_every_test_file_on_disk_is_collected() -> None:
    """Files that ``scripts`` holds are run by others, in processes of their own. Those of
    ``tests/cuda`` are collected on a GPU only; ``emulated_cuda/test_suite.py`` runs all of them."""
    files = {path for path in (_ROOT / "tests").rglob("test_*.py") if "scripts" not in path.parts}
    assert files - _collected(_ROOT / "tests") <= set(_CUDA.glob("test_*.py"))


def test_the_cuda_tests_are_collected_where_they_are_named() -> None:
    files = set(_CUDA.glob("test_*.py"))
    assert files
    assert files == _collected(*files)
