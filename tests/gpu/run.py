"""Runs the CUDA tests and the benchmark on the GPU of this machine, and reports.

    python tests/gpu/run.py [--out gpu-report]               # with the extra gpu-tests installed
    python tests/gpu/run.py --kit .gpu [--out gpu-report]    # what is missing here is in the kit

The exit code is the verdict: 0 if no group of tests failed and one ran. This file needs Python
alone, and what it imports of this folder; the tests need what they need. A group that hangs or
crashes is ended, and what it did until then is reported. See README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import types
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if "tests" not in sys.modules:  # found here even if an installed package brings such a module
    sys.modules["tests"] = types.ModuleType("tests")
    sys.modules["tests"].__path__ = [str(ROOT / "tests")]

from tests.gpu import packages, process, report  # noqa: E402
from tests.gpu.groups import BENCHMARK_S, CUDA, MAKE_BUNDLES, Group, groups  # noqa: E402
from tests.gpu.outcome import Ended, Outcome, State, judge_script, judge_tests, passed  # noqa: E402

_BUNDLES = "FEWSTEP_TEST_BUNDLES"
_LINES = "FEWSTEP_TEST_LINES"
_SOURCES = ("export", "runtime", "calibration")
# No others: nobody knows which plugins a device has, and whether they work.
_PLUGINS = ("-p", "fewstep_each_test", "-p", "_hypothesis_pytestplugin")
_FILES = ("report.json", "report.md", "output.txt", "gpu-benchmark.json", "gpu-benchmark.md")
_SANITIZER_FOUND = 99
_MACHINE_S = 60
_LOG_BYTES = 4 << 20


@dataclass
class Run:
    """One run: where things are, what time is left, and what became of the groups so far."""

    out: Path
    work: Path
    bundles: Path
    variables: dict[str, str]
    quick: bool
    ends: float  # by the monotonic clock
    started: float = field(default_factory=time.monotonic)
    facts: dict[str, Any] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)

    def all(self, selected: Sequence[Group]) -> bool:
        """Look at the machine, then run group after group; returns the verdict."""
        self._add(self._machine())
        if passed(self.outcomes) and not self.bundles.is_dir():
            self._add(self.group(MAKE_BUNDLES))
        for group in selected if passed(self.outcomes) else ():
            self._add(self.group(group))
        self._write(finished=True)
        return passed(self.outcomes)

    def _add(self, outcome: Outcome) -> None:
        """A report after every group: whoever ends this run still has one."""
        self.outcomes.append(outcome)
        self._write(finished=False)
        why = f": {outcome.why}" if outcome.why else ""
        print(f"{outcome.group} {outcome.state}{why} ({outcome.seconds:.1f} s)", flush=True)

    def _write(self, *, finished: bool) -> None:
        seconds = time.monotonic() - self.started
        report.write(self.out, self.facts, self.outcomes, seconds, finished=finished)

    def _machine(self) -> Outcome:
        ended, output = self._execute("machine", ["tests/gpu/machine.py"], _MACHINE_S)
        outcome = judge_script("machine", ended, output)
        for line in output.splitlines():
            if line.startswith("{"):
                self.facts |= json.loads(line)
                rows = self.facts["machine"]
                print("\n".join(f"{name}: {value}" for name, value in rows.items()), flush=True)
        if ended.code == 1 and "GPU 0" not in self.facts.get("machine", {"GPU 0": ""}):
            found = self.facts["machine"]
            why = f"no GPU here: {found.get('GPU', 'the driver is absent')}"
            return Outcome("machine", "failed", why, outcome.seconds, outcome.tests)
        return outcome

    def group(self, group: Group) -> Outcome:
        """Run one group."""
        reason = group.missing(self.bundles)
        if reason:
            return Outcome(group.name, "left out", reason)
        kept_free = 0 if group.name == "benchmark" or group.sanitizer else BENCHMARK_S
        limit = min(group.limit_s, self.ends - kept_free - time.monotonic())
        if limit < 1:
            state: State = "left out" if group.sanitizer else "failed"
            return Outcome(group.name, state, "no time was left for it")
        if group.script and not (ROOT / group.script[0]).is_file():
            return Outcome(group.name, "failed", f"there is no {group.script[0]}")
        if group.script:
            command = [part.format(bundles=self.bundles, out=self.out) for part in group.script] + (
                list(group.quick) if self.quick else []
            )
            return judge_script(group.name, *self._execute(group.name, command, limit))
        return self._tests(group, limit)

    def _tests(self, group: Group, limit: float) -> Outcome:
        lines = self.work / f"{group.name}.jsonl"
        tests = [str(CUDA / test) for test in (group.quick if self.quick else group.tests)]
        options = ["-q", "--color=no", "-p", "no:cacheprovider", *_PLUGINS]
        options.append(f"--basetemp={self.work / group.name}")
        before: list[str] = []
        if group.sanitizer:
            before = ["compute-sanitizer", "--tool", group.sanitizer, "--report-api-errors", "no"]
            before += ["--error-exitcode", str(_SANITIZER_FOUND)]
            options += ["-m", "not hypothesis"]  # repeated many times, each of them slowly
        command = ["-m", "pytest", *options, *tests]
        ended, output = self._execute(group.name, command, limit, before, {_LINES: str(lines)})
        shutil.rmtree(self.work / group.name, ignore_errors=True)
        outcome = judge_tests(group.name, ended, lines, may_skip=group.may_skip)
        if group.sanitizer:
            outcome = _judge_sanitizer(group.sanitizer, outcome, ended, output)
        return outcome

    def _execute(
        self,
        name: str,
        arguments: Sequence[str],
        limit: float,
        before: Sequence[str] = (),
        variables: dict[str, str] | None = None,
    ) -> tuple[Ended, str]:
        """Run Python; returns how it ended and what it said, which goes to ``output.txt`` too."""
        path = self.work / f"{name}.txt"
        command = [*before, sys.executable, *arguments]
        ended = process.run(command, self.variables | (variables or {}), ROOT, path, limit)
        output = path.read_text("utf-8", errors="replace")
        with (self.out / "output.txt").open("a", encoding="utf-8") as file:
            file.write(f"--- {name}\n{output[-_LOG_BYTES:]}\n")
        return ended, output


def _judge_sanitizer(tool: str, outcome: Outcome, ended: Ended, output: str) -> Outcome:
    """A sanitizer that found nothing, and did not come to the end, is no failure of the GPU's."""
    lines = output.splitlines()
    refused = [line for line in lines if "not supported" in line.lower() and line.startswith("=")]
    found = [line for line in lines if "SUMMARY: " in line]
    if refused:
        return replace(outcome, state="left out", why=refused[0].strip("= "))
    if ended.code == _SANITIZER_FOUND:
        why = f"{tool}: {(found or ['errors'])[-1].strip('= ')}"
        return replace(outcome, state="failed", why=why)
    if ended.code is None and not outcome.count("failed"):
        return replace(
            outcome, state="left out", why=f"{outcome.why}; nothing was found until then"
        )
    return outcome


def main(arguments: Sequence[str] | None = None) -> int:
    """Run everything; returns the exit code."""
    options = _parser().parse_args(arguments)
    end_upon_sigterm()
    ends = time.monotonic() + options.seconds
    with tempfile.TemporaryDirectory(prefix="fewstep-gpu-") as folder:
        work = Path(folder)
        try:
            facts, unpacked = _kit(options.kit, work)
        except packages.UnfitKit as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        bundles = work / "bundles"
        if options.kit is not None:
            shutil.unpack_archive(options.kit / "bundles.tar.xz", bundles)
        out = options.out.resolve()
        out.mkdir(parents=True, exist_ok=True)
        for name in _FILES:  # of a run before
            (out / name).unlink(missing_ok=True)
        variables = environment(work, bundles, unpacked)
        run = Run(out, work, bundles, variables, options.quick, ends, facts=facts)
        good = run.all([group for group in groups() if group.quick or not options.quick])
    print(f"\n{report.table(run.outcomes)}\n\n{'passed' if good else 'FAILED'}; report: {out}")
    return 0 if good else 1


def end_upon_sigterm() -> None:
    """End as by an exception, so that what runs is ended as well."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def _kit(kit: Path | None, work: Path) -> tuple[dict[str, Any], list[Path]]:
    """What the report says of the kit, and the folder of its packages that are missing here."""
    if kit is None:
        return {}, []
    packages.check(kit)
    packages.require_packages()
    names = packages.unpack_missing(kit / "wheels", work / "packages")
    made = json.loads((kit / "kit.json").read_text("utf-8"))
    about = {"commit": made["commit"], "cuda": made["cuda"], "unpacked": names}
    return {"kit": about}, [work / "packages"]


def environment(work: Path, bundles: Path, unpacked: list[Path]) -> dict[str, str]:
    """The environment of the groups. Nothing is written outside the temporary folder and the
    report, and there may be no home."""
    kept = dict(os.environ)
    path = [*unpacked, ROOT / "tests" / "gpu" / "plugin", *(ROOT / name for name in _SOURCES)]
    before = kept.get("PYTHONPATH")
    return {
        "XDG_CACHE_HOME": str(work / "cache"),
        "NUMBA_CACHE_DIR": str(work / "numba"),
        **kept,
        "PYTHONPATH": os.pathsep.join([*map(str, path), *([before] if before else [])]),
        "PYTHONFAULTHANDLER": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "TMPDIR": str(work),
        _BUNDLES: str(bundles),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Run the CUDA tests on the GPU of this machine.")
    parser.add_argument("--kit", type=Path, help="folder that make gpu-kit made")
    parser.add_argument("--out", type=Path, default=Path("gpu-report"), help="for the report")
    parser.add_argument("--quick", action="store_true", help="a small part of the tests")
    parser.add_argument("--seconds", type=float, default=285, help="for everything")
    return parser


if __name__ == "__main__":
    sys.exit(main())
