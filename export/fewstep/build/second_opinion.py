"""A second opinion on a graph that the preflight refuses: polygraphy asks the backend's parser.

``polygraphy inspect capability`` needs no GPU (measured with 0.53.6 and TensorRT-RTX 1.7.1) and
names the nodes that the parser refuses, with its reasons. It runs as a process of its own, as a
parser that meets a bad file may crash. Without polygraphy or the backend there is none.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

_MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
_COMMAND = "import sys; from polygraphy.tools import main; sys.exit(main())"  # it has no __main__
_RESULTS = "results.txt"


def second_opinion(path: Path, backend: str, *, timeout_s: float = 60) -> str | None:
    """What the backend's parser says about the nodes of a graph that it does not support.

    Returns:
        The reasons, one per node, or ``None``: it supports every node, or nobody could be asked.
    """
    if any(importlib.util.find_spec(name) is None for name in ("polygraphy", _MODULES[backend])):
        return None
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", _COMMAND, "inspect", "capability", str(path.resolve())]
        try:
            subprocess.run(
                [*command, "-o", folder],
                env=_environment(backend),
                cwd=folder,
                capture_output=True,
                timeout=timeout_s,
                check=False,
            )
            table = (Path(folder) / _RESULTS).read_text(encoding="utf-8")
        except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
            return None  # no table is written for a graph that is supported, or at a crash
    return "; ".join(reasons(table)) or None


def reasons(table: str) -> tuple[str, ...]:
    """The last column of polygraphy's table: stack trace, operator, node, reason."""
    rows = [line.split(" | ", 3) for line in table.splitlines()]
    told = [row[3].strip() for row in rows if len(row) == 4]
    return tuple(dict.fromkeys(each for each in told if each != "Reason"))


def _environment(backend: str) -> dict[str, str]:
    """Ours, with the backend chosen and polygraphy kept from installing packages."""
    chosen = {
        "POLYGRAPHY_USE_TENSORRT_RTX": "1" if backend == "tensorrt-rtx" else "0",
        "POLYGRAPHY_AUTOINSTALL_DEPS": "0",
    }
    return {**os.environ, **chosen}
