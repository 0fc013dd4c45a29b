"""Prints what a report on a GPU has to name, as JSON: card, driver, CUDA, packages, commit.

Run as a process of its own, since a driver may hang or crash.
"""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

from fewstep.runtime.doctor import diagnose

ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = (
    "numpy",
    "numba",
    "pytest",
    "hypothesis",
    "pydantic",
    "pycuda",
    "cuda-bindings",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnx",
    "torch",
    "tensorrt",
    "tensorrt-rtx-cu12",
)


def main() -> int:
    """Print it; the exit code is 1 where there is no GPU."""
    found = diagnose()
    facts = {
        "commit": commit(),
        "machine": found.machine,
        "packages": {name: _version(name) for name in _PACKAGES},
        "warnings": list(found.warnings),
    }
    print(json.dumps(facts))
    return 0 if "GPU 0" in found.machine else 1


def commit() -> str | None:
    """The commit of the tree, marked where files differ from it; ``None`` for a bare copy."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main())
