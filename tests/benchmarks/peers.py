"""Whole images by fewstep and by what else runs the same checkpoint, in turn, on the CPU.

    python -m tests.benchmarks.peers --folder FOLDER                  # everything
    python -m tests.benchmarks.peers --folder FOLDER --models sample 8m --rounds 3

One image a run, 8 steps with guidance and 4 steps by the learned policy. Contenders:

    pytorch     the authors' sampler of 2T + 1 passes: eager in fp32 and bf16, torch.compile in bf16
    openvino    the exported graphs under OpenVINO's defaults, driven by a loop of NumPy
    fewstep     each backend in each precision

Each is a process of its own with its own defaults, which waits while others run; a round runs each
once. *From nothing* is the time from the start of that process to its first image, with what
earlier runs left in caches: run it twice, and take the second. *Peak* is the most memory that the
process had. What is in the folder is used again; making AdaNAT-L's bundle takes 6 GB and some
minutes. Measures and prints; asserts nothing but that images are images.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.benchmarks.peers_models import MODELS, Prepared, prepared

from fewstep.runtime.doctor import processor_name
from fewstep.runtime.load import OthersLoad
from fewstep.runtime.machine import cores

CONTENDERS = (
    ("pytorch", "eager-fp32"),
    ("pytorch", "eager-bf16"),
    ("pytorch", "compile-bf16"),
    ("openvino", "fp32"),
    ("openvino", "int8"),
    ("fewstep", "onnxruntime-fp32"),
    ("fewstep", "onnxruntime-int8"),
    ("fewstep", "openvino-fp32"),
    ("fewstep", "openvino-bf16"),
    ("fewstep", "openvino-int8"),
)
_ROUNDS = {"sample": 15, "8m": 5, "adanat-l": 3}
_SETTLE_S = 0.1  # threads of the one before may still spin
_FLAGS = ("amx_int8", "amx_bf16", "avx512_vnni", "avx512_bf16", "avx_vnni")
_PACKAGES = ("torch", "openvino", "onnxruntime", "numba", "numpy")
_NAMES = {
    ("pytorch", "eager-fp32"): "PyTorch eager, fp32",
    ("pytorch", "eager-bf16"): "PyTorch eager, bf16",
    ("pytorch", "compile-bf16"): "PyTorch, torch.compile in bf16",
    ("openvino", "fp32"): "OpenVINO and NumPy, fp32 graphs",
    ("openvino", "int8"): "OpenVINO and NumPy, int8 graphs",
}


class AbsentError(Exception):
    """A contender makes no image here."""


@dataclass
class Contender:
    """A process that makes images when told to.

    ``times``: milliseconds by task. ``first_s``: from its start to its first image. ``peak_gb``:
    once it has ended.
    """

    name: str
    process: subprocess.Popen[str]
    times: dict[str, list[float]] = field(default_factory=dict)
    first_s: float = 0.0
    cpu_s: float = 0.0
    peak_gb: float = 0.0

    @classmethod
    def start(cls, kind: str, how: str, model: Prepared, threads: int) -> Contender:
        """Start it, and let it make a first image.

        Raises:
            AbsentError: it cannot.
        """
        started = time.perf_counter()
        command = [sys.executable, "-m", "tests.benchmarks.peers_worker", kind, how, str(threads)]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        process = subprocess.Popen(command, text=True, bufsize=1, **pipes)
        found = cls(_NAMES.get((kind, how), f"fewstep, {how.replace('-', ', ')}"), process)
        try:
            found._ask(json.dumps(model.as_dict()))
            found.run(next(iter(model.tasks)))
        except AbsentError:
            found.close()
            raise
        found.first_s = time.perf_counter() - started
        return found

    def run(self, task: str) -> float:
        """Make an image; milliseconds that it took."""
        answer = self._ask(task)
        self.cpu_s = answer["cpu_s"]
        return float(answer["ms"])

    def close(self) -> None:
        """End it, which tells its peak memory."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        _, status, usage = os.wait4(self.process.pid, 0)
        self.process.returncode = status
        self.peak_gb = usage.ru_maxrss * 1024 / 1e9

    def _ask(self, line: str) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(OSError):  # it has ended, and may have said why
            self.process.stdin.write(f"{line}\n")
        answer = json.loads(self.process.stdout.readline() or '{"absent": "it crashed"}')
        if "absent" in answer:
            raise AbsentError(answer["absent"])
        return answer


@dataclass
class Found:
    """What was measured of a model. ``absent``: why contenders are not here, by name."""

    model: Prepared
    contenders: list[Contender]
    absent: dict[str, str]
    rounds: int
    others: float | None

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        rows = [
            {"name": each.name, "ms": each.times, "first_s": each.first_s, "peak_gb": each.peak_gb}
            for each in self.contenders
        ]
        others = {"rounds": self.rounds, "others_load": self.others, "absent": self.absent}
        return {"model": self.model.name, "contenders": rows, **others}


def measured(model: Prepared, rounds: int, threads: int) -> Found:
    """All contenders' images, turn by turn."""
    contenders, absent = list[Contender](), dict[str, str]()
    with _closed(contenders):
        for kind, how in CONTENDERS:
            _say(f"{model.name}: {kind} {how}")
            try:
                contenders.append(Contender.start(kind, how, model, threads))
            except AbsentError as error:
                absent[_NAMES.get((kind, how), f"fewstep, {how}")] = str(error)
        load, started, cpu = OthersLoad(), time.perf_counter(), _cpu_s(contenders)
        for round_ in range(rounds + 1):
            _say(f"{model.name}: round {round_} of {rounds}")
            if round_ == 1:
                load, started, cpu = OthersLoad(), time.perf_counter(), _cpu_s(contenders)
            for task in model.tasks:
                for each in contenders:
                    time.sleep(_SETTLE_S)
                    taken = each.run(task)
                    if round_:
                        each.times.setdefault(task, []).append(taken)
        share, whole = load.share(), (time.perf_counter() - started) * cores()
        own = (_cpu_s(contenders) - cpu) / whole
    others = None if share is None else max(0.0, share - own)
    return Found(model, contenders, absent, rounds, others)


@contextlib.contextmanager
def _closed(contenders: list[Contender]) -> Iterator[None]:
    try:
        yield
    finally:
        for each in contenders:
            each.close()


def _cpu_s(contenders: list[Contender]) -> float:
    return sum(each.cpu_s for each in contenders)


def _say(text: str) -> None:
    print(f"{time.strftime('%X')} {text}", file=sys.stderr, flush=True)


def show(found: Found) -> None:
    """Print a Markdown table of each task."""
    busy = "unknown" if found.others is None else f"{found.others:.0%}"
    load = os.getloadavg()[0]
    print(f"\n{found.model.name}: {found.rounds} rounds; other programs took {busy} of the cores,")
    print(f"load {load:.1f} with the contenders\n")
    for task in found.model.tasks:
        print(f"| {task} | median ms | least ms | eager / it | best peer / it ", end="")
        print("| from nothing, s | peak, GB |\n|---|---|---|---|---|---|---|")
        peers = [each for each in found.contenders if not each.name.startswith("fewstep")]
        best = min(peers, key=lambda each: statistics.median(each.times[task]), default=None)
        eager = next((each for each in peers if "eager" in each.name), None)
        for each in found.contenders:
            own = each.times[task]
            row = [each.name, f"{statistics.median(own):.1f}", f"{min(own):.1f}"]
            row += [_ratio(peer, own, task) for peer in (eager, best)]
            print(f"| {' | '.join(row)} | {each.first_s:.1f} | {each.peak_gb:.2f} |")
        for name, why in found.absent.items():
            print(f"| {name} | not here: {why} | | | | | |")
        print("", flush=True)


def _ratio(peer: Contender | None, own: list[float], task: str) -> str:
    """How many times as long a peer took, in the median round."""
    if peer is None:
        return "-"
    ratios = (theirs / ours for theirs, ours in zip(peer.times[task], own, strict=True))
    return f"{statistics.median(ratios):.2f} ×"


def machine(threads: int) -> str:
    """What this runs on and with, in two lines."""
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        flags = []
    has = ", ".join(each for each in _FLAGS if each in flags) or "none of AMX, VNNI and bf16"
    versions = ", ".join(f"{each} {_version(each)}" for each in _PACKAGES)
    compiler = "a C++ compiler" if shutil.which("g++") or shutil.which("clang++") else "no compiler"
    used = f"{threads} threads each" if threads else "each with its own number of threads"
    cpu = f"{processor_name()}, {cores()} cores ({has}), {used}"
    return f"{cpu}\nPython {platform.python_version()}, {versions}, {compiler}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="where bundles are kept")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--rounds", type=int, help=f"after one of warm-up; {_ROUNDS} unless given")
    parser.add_argument(
        "--threads", type=int, default=0, help="of each; its own default unless given"
    )
    parser.add_argument("--json", type=Path, help="write all times to this file as well")
    given = parser.parse_args()
    models = [prepared(name, given.folder) for name in given.models]
    print(machine(given.threads))
    results = []
    for model in models:
        found = measured(model, given.rounds or _ROUNDS[model.name], given.threads)
        results.append(found.as_dict())
        show(found)
    if given.json:
        given.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
