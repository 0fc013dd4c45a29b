"""What the backend's parser says of a graph that the preflight refuses, asked by polygraphy.

``polygraphy inspect capability`` needs no GPU (measured with 0.53.6 and TensorRT-RTX 1.7.1) and
names the nodes that the parser refuses, with its reasons. It runs as a process of its own, as a
parser that meets a bad file may crash. Without polygraphy or the backend there is no report.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from fewstep.runtime.engines.tensorrt_api import MODULES
from fewstep.runtime.records import EngineBackend

_COMMAND = "import sys; from polygraphy.tools import main; sys.exit(main())"  # it has no __main__
_RESULTS = "results.txt"


def parser_report(path: Path, backend: EngineBackend, *, timeout_s: float = 60) -> str | None:
    """What the backend's parser says about the nodes of a graph that it does not support.

    Returns:
        The reasons, one per node, or ``None``: it supports every node, or nobody could be asked.
    """
    if any(importlib.util.find_spec(name) is None for name in ("polygraphy", MODULES[backend])):
        return None
    settings = {
        "POLYGRAPHY_USE_TENSORRT_RTX": "1" if backend == "tensorrt-rtx" else "0",
        "POLYGRAPHY_AUTOINSTALL_DEPS": "0",  # or it installs packages
    }
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", _COMMAND, "inspect", "capability", str(path.resolve())]
        try:
            subprocess.run(
                [*command, "-o", folder],
                env={**os.environ, **settings},
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
    found = [row[3].strip() for row in rows if len(row) == 4]
    return tuple(dict.fromkeys(each for each in found if each != "Reason"))
