"""From the start of a process to its first image: ``fewstep generate``, and the Python API.

    python -m tests.benchmarks.first_image BUNDLE [BUNDLE…] [--runs 7]

Each backend for CPUs in the precisions given, turn by turn, each run a process of its own, with the
bundle's defaults and one image. The command ends when the PNG is written and the process is gone;
the API's time is that at which the image is there. One run of each comes before those that count,
so that kernels and graphs are compiled and kept. CPU time is of all threads, and tells more than
the clock where other programs run. Peak memory is of the whole process. Measures and prints;
asserts nothing.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from fewstep.runtime.doctor import processor_name
from fewstep.runtime.engines.on_cpu import BACKENDS
from fewstep.runtime.machine import cores

_API = """
import sys, time
import fewstep
with fewstep.open(sys.argv[1], backend=sys.argv[2], precision=sys.argv[3]) as generator:
    generator(int(sys.argv[4])).images[0]
    print(time.time())
"""


@dataclass
class Case:
    """A command, and what its runs took: seconds by the clock and of CPU time, peak GB."""

    name: str
    command: list[str]
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    peak: float = 0.0

    def run(self) -> None:
        """Run it once; what it prints last may be the time at which it was done."""
        start = time.time()
        process = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        said = process.stdout.read().split()
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            sys.exit(f"{' '.join(self.command)} ended with {status}")
        end = float(said[-1]) if "-c" in self.command else time.time()
        self.wall.append(end - start)
        self.cpu.append(usage.ru_utime + usage.ru_stime)
        self.peak = max(self.peak, usage.ru_maxrss * 1024 / 1e9)


def cases(bundle: Path, precisions: list[str], class_id: int, png: Path) -> list[Case]:
    """The command and the API on every backend in every precision."""
    found = []
    for backend, precision in itertools.product(reversed(BACKENDS), precisions):
        how, python = [backend, precision], sys.executable
        options = ["--backend", backend, "--precision", precision, "--out", str(png), "--quiet"]
        generate = ["-m", "fewstep", "generate", str(bundle), "--class", str(class_id), *options]
        api = ["-c", _API, str(bundle), *how, str(class_id)]
        found.append(Case(f"fewstep generate | {' | '.join(how)}", [python, *generate]))
        found.append(Case(f"Python | {' | '.join(how)}", [python, *api]))
    return found


def main() -> None:
    """Measure and print a Markdown table of each bundle."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument(
        "--runs", type=int, default=7, help="of each, after one that is not counted"
    )
    parser.add_argument("--class", dest="class_id", type=int, default=3)
    parser.add_argument("--precision", nargs="+", default=["fp32", "int8"])
    given = parser.parse_args()
    for bundle in given.bundles:
        with tempfile.TemporaryDirectory() as folder:
            found = cases(bundle, given.precision, given.class_id, Path(folder) / "first.png")
            for run, case in itertools.product(range(given.runs + 1), found):
                case.run()
                if not run:
                    case.wall, case.cpu = [], []
        load = os.getloadavg()[0]
        print(f"\n{bundle}: {processor_name()}, {cores()} cores, load {load:.1f}\n")
        print("| what | backend | precision | median s | least s | least CPU s | peak GB |")
        print("|---|---|---|---|---|---|---|")
        for case in found:
            wall = f"{statistics.median(case.wall):.2f} | {min(case.wall):.2f}"
            print(f"| {case.name} | {wall} | {min(case.cpu):.2f} | {case.peak:.2f} |", flush=True)


if __name__ == "__main__":
    main()
