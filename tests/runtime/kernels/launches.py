"""Launches beside the CUDA sources: entries as declared there, and what a launch says of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from fewstep.runtime.kernels.launch import Argument, Launch, launch_of

KERNELS = Path(__file__).parents[3] / "runtime" / "fewstep" / "runtime" / "kernels"
"""The folder of the sources."""

_LETTERS = {"int": "i", "double": "d"}
_ENTRY = re.compile(
    r'extern "C" __global__ void __launch_bounds__\((\d+)(?:, \d+)?\)\s+(\w+)\(([^)]*)\)', re.DOTALL
)


@dataclass(frozen=True)
class Entry:
    """A kernel as its source declares it."""

    threads: int
    names: tuple[str, ...]
    letters: str


def _sources() -> dict[str, Entry]:
    found = {}
    for path in sorted(KERNELS.glob("*.cu")):
        for threads, name, parameters in _ENTRY.findall(path.read_text()):
            declared = [each.rsplit(None, 1) for each in parameters.split(",")]
            letters = "".join(
                "P" if "*" in kind else _LETTERS[kind.strip()] for kind, _ in declared
            )
            found[name] = Entry(int(threads), tuple(name for _, name in declared), letters)
    return found


SOURCES = _sources()
"""Every entry of the sources."""


def by_name(launch: Launch) -> dict[str, int | float]:
    """The packed arguments by the names that the source gives them."""
    return dict(zip(SOURCES[launch.entry].names, launch.arguments, strict=True))


def bytes_of(kernel: str, arguments: dict[str, Argument]) -> int:
    """That a kernel moves."""
    return launch_of(kernel, arguments).bytes_moved


def covers(launch: Launch, elements: int) -> None:
    """Assert that there is a thread for every element, and no block without one."""
    blocks, threads = launch.grid[0], launch.block[0]
    assert (blocks - 1) * threads < elements <= blocks * threads
