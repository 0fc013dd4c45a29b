"""The runner: groups of tests that pass, hang, crash and skip; sanitizers; time; machines without.

The tests that it runs here are small ones of these tests' own, and need no GPU.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from dataclasses import replace
from pathlib import Path
from textwrap import dedent

import pytest
from tests.gpu import run as runner
from tests.gpu.groups import BENCHMARK_S, CUDA, Group, groups
from tests.gpu.outcome import Outcome
from tests.gpu.run import Run

_TESTS = """
    import os, time
    import pytest

    def test_passes(tmp_path): ...
    def test_fails(): assert "here" == "there"
    def test_skips(): pytest.skip("there is no moon")
    def test_hangs(): time.sleep(60)
    def test_crashes(): os.kill(os.getpid(), 11)

    @pytest.fixture
    def broken():
        yield
        raise RuntimeError("not put away")

    def test_breaks_afterwards(broken): ...
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of tests, by absolute path, which takes the place of one in ``tests/cuda``."""
    path = tmp_path / "elsewhere" / "test_small.py"
    path.parent.mkdir()
    path.write_text(dedent(_TESTS))
    return path


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run that has not begun."""
    out, work, bundles = (tmp_path / name for name in ("out", "work", "bundles"))
    for folder in (out, work, bundles):
        folder.mkdir()
    variables = runner.environment(work, bundles, [])
    return Run(out, work, bundles, variables, quick=False, ends=time.monotonic() + 300)


def _group(file: Path, *tests: str, limit_s: int = 60) -> Group:
    return Group("small", limit_s, tuple(f"{file}::test_{test}" for test in tests))


def test_every_test_is_told_with_its_reason(run: Run, file: Path) -> None:
    found = run.group(_group(file, "passes", "fails", "skips", "breaks_afterwards"))
    assert [test.outcome for test in found.tests] == ["passed", "failed", "skipped", "failed"]
    assert found.why == "2 of 4 tests failed"
    assert "'here' == 'there'" in found.tests[1].reason
    assert found.tests[2].reason == "there is no moon"
    assert "not put away" in found.tests[3].reason


def test_a_test_that_hangs_is_named_and_those_before_it_count(run: Run, file: Path) -> None:
    found = run.group(_group(file, "passes", "hangs", "fails", limit_s=5))
    assert found.state == "failed"
    assert found.why.startswith("ran out of its 5 s in ")
    assert found.why.endswith("test_small.py::test_hangs")
    assert [test.outcome for test in found.tests] == ["passed"]
    assert "in test_hangs" in (run.out / "output.txt").read_text()


def test_a_test_that_crashes_is_named_and_those_before_it_count(run: Run, file: Path) -> None:
    found = run.group(_group(file, "passes", "crashes", "fails"))
    assert found.why.startswith("ended by SIGSEGV in ")
    assert found.why.endswith("test_small.py::test_crashes")
    assert found.count("passed") == 1


def test_a_file_that_does_not_import_is_a_failed_test(run: Run, file: Path) -> None:
    file.write_text("import there_is_no_such_module\n")
    found = run.group(Group("small", 60, (str(file),)))
    assert found.why == "1 of 1 tests failed"
    assert "there_is_no_such_module" in found.tests[0].reason


def test_a_group_without_tests_fails(run: Run, file: Path) -> None:
    file.write_text("")
    assert run.group(Group("small", 60, (str(file),))).why == "there was no test"


def test_a_group_that_skips_everything_fails_and_says_why(run: Run, file: Path) -> None:
    found = run.group(_group(file, "skips"))
    assert (found.state, found.why) == ("failed", "all tests were skipped: there is no moon")


def test_what_is_missing_leaves_a_group_out(run: Run, file: Path) -> None:
    group = replace(_group(file, "passes"), missing=lambda bundles: f"no moon in {bundles.name}")
    found = run.group(group)
    assert (found.state, found.why) == ("left out", "no moon in bundles")


def test_without_time_a_group_fails(run: Run, file: Path) -> None:
    """Time is kept free for the benchmark."""
    run.ends = time.monotonic() + BENCHMARK_S
    assert run.group(_group(file, "passes")).why == "no time was left for it"
    assert run.group(replace(_group(file, "passes"), name="benchmark")).state == "passed"


def test_a_script_gets_its_folders_and_what_is_quick(run: Run, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import sys; sys.exit(' '.join(sys.argv[1:]))")
    run.quick = True
    group = Group("s", 60, script=(str(script), "{bundles}", "--out={out}"), quick=("--quick",))
    why = run.group(group).why
    assert why == f"exit code 1: {run.bundles} --out={run.out} --quick"


def test_a_script_that_is_not_there_is_named(run: Run) -> None:
    found = run.group(Group("s", 60, script=("tests/there_is_none.py",)))
    assert (found.state, found.why) == ("failed", "there is no tests/there_is_none.py")


# --- sanitizers: a stand-in notes how it was called and runs the program


@pytest.fixture
def sanitizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder at the beginning of PATH with a ``compute-sanitizer`` that finds nothing."""
    folder = tmp_path / "bin"
    folder.mkdir()
    _write_sanitizer(folder, 'exec "${@:6}"')
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def _write_sanitizer(folder: Path, end: str) -> None:
    program = folder / "compute-sanitizer"
    program.write_text(f'#!/usr/bin/env bash\necho "$@" > {folder}/called\nshift\n{end}\n')
    program.chmod(0o755)


def test_a_sanitizer_runs_the_tests(run: Run, file: Path, sanitizer: Path) -> None:
    run.variables = run.variables | {"PATH": os.environ["PATH"]}
    found = run.group(replace(_group(file, "passes", "skips"), sanitizer="racecheck"))
    assert (found.state, found.count("passed")) == ("passed", 1)
    called = (sanitizer / "called").read_text()
    assert called.startswith("--tool racecheck --report-api-errors no --error-exitcode 99 ")
    assert "-m pytest" in called


def test_what_a_sanitizer_finds_is_the_verdict(run: Run, file: Path, sanitizer: Path) -> None:
    _write_sanitizer(sanitizer, '"${@:6}"; echo "========= ERROR SUMMARY: 3 errors"; exit 99')
    run.variables = run.variables | {"PATH": os.environ["PATH"]}
    found = run.group(replace(_group(file, "passes"), sanitizer="memcheck"))
    assert (found.state, found.why) == ("failed", "memcheck: ERROR SUMMARY: 3 errors")
    assert found.count("passed") == 1


def test_a_gpu_that_a_sanitizer_does_not_support_is_no_failure(
    run: Run, file: Path, sanitizer: Path
) -> None:
    _write_sanitizer(sanitizer, 'echo "========= Error: Device not supported. See guide"; exit 1')
    run.variables = run.variables | {"PATH": os.environ["PATH"]}
    found = run.group(replace(_group(file, "passes"), sanitizer="memcheck"))
    assert (found.state, found.why) == ("left out", "Error: Device not supported. See guide")


def test_a_sanitizer_may_run_out_of_time_but_no_test_may_fail_in_it(
    run: Run, file: Path, sanitizer: Path
) -> None:
    run.variables = run.variables | {"PATH": os.environ["PATH"]}
    for tests, state in ((("passes", "hangs"), "left out"), (("fails", "hangs"), "failed")):
        found = run.group(replace(_group(file, *tests, limit_s=5), sanitizer="memcheck"))
        assert found.state == state
        assert found.why.startswith("ran out of its 5 s")
    run.ends = time.monotonic()
    assert run.group(_group(file, "passes")).state == "failed"
    assert run.group(replace(_group(file, "passes"), sanitizer="memcheck")).state == "left out"


# --- whole runs


def test_a_machine_without_a_gpu_fails_at_once_and_is_reported(
    run: Run, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run.variables = run.variables | {"LD_LIBRARY_PATH": ""}
    assert not run.all([_group(file, "passes")])
    assert [(each.group, each.state) for each in run.outcomes] == [("machine", "failed")]
    assert "no GPU here" in capsys.readouterr().out
    report = json.loads((run.out / "report.json").read_text())
    assert report["passed"] is False
    assert report["machine"]["GPU driver"] == "none"
    assert report["packages"]["pytest"] == pytest.__version__
    assert "**FAILED**" in (run.out / "report.md").read_text()


def test_a_folder_that_is_no_kit_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert runner.main(["--kit", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path} is no GPU kit")
    assert not (tmp_path / "out").exists()


def test_a_run_that_is_ended_ends_its_group_and_leaves_what_it_knew(
    run: Run, file: Path, tmp_path: Path
) -> None:
    """As by a time limit from outside."""
    pid = tmp_path / "pid"
    file.write_text(
        "import os, pathlib, time\n"
        f"def test_long(): pathlib.Path({str(pid)!r}).write_text(str(os.getpid())); time.sleep(60)"
    )
    process = multiprocessing.get_context("fork").Process(
        target=_until_ended, args=(run, [_group(file, "long")])
    )
    process.start()
    deadline = time.monotonic() + 30
    while not (pid.is_file() and pid.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.terminate()
    process.join(30)
    assert process.exitcode == 143
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    found = json.loads((run.out / "report.json").read_text())
    assert (found["passed"], found["finished"]) == (False, False)


def _until_ended(run: Run, selected: list[Group]) -> None:
    runner.end_upon_sigterm()
    run._machine = lambda: Outcome("machine", "passed")  # type: ignore[method-assign]
    run.all(selected)


# --- the groups


def test_every_file_of_cuda_tests_is_in_a_group() -> None:
    grouped = [name.partition("::")[0] for group in groups() for name in group.tests]
    assert set(grouped) == {path.name for path in CUDA.glob("test_*.py")}


def test_the_tests_that_come_first_exist() -> None:
    for group in groups():
        for test in (*group.tests, *group.quick):
            file, _, name = test.partition("::")
            if file.startswith("test_"):
                assert not name or f"def {name}(" in (CUDA / file).read_text("utf-8"), test


def test_the_riskiest_is_first_and_sanitizers_have_what_time_is_left() -> None:
    names = [group.name for group in groups()]
    assert names[:3] == ["first", "kernels", "faults"]
    assert names[-4:] == ["benchmark", "memcheck", "racecheck", "initcheck"]
