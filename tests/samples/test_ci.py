"""The CI recipe: the script on the sample, what it leaves out on a second run, and the workflow.

The script runs as CI runs it, with the real checkpoints and the real builders. What it decides is
tested besides, with commands that are only recorded.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "samples" / "ci" / "build_bundle.py"
WORKFLOW = ROOT / "samples" / "ci" / "build-engines.yml"


def _load() -> Any:
    spec = importlib.util.spec_from_file_location("build_bundle", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


script = _load()


def _options() -> list[str]:
    """The options in the workflow: the folded lines under ``OPTIONS``."""
    block = re.search(r"^  OPTIONS: >-\n((?:    .+\n)+)", WORKFLOW.read_text("utf-8"), re.MULTILINE)
    assert block
    return shlex.split(block[1])


def _with_out(out: Path) -> list[str]:
    options = _options()
    assert options[-2] == "--out"
    return [*options[:-1], str(out)]


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


# --- The script as it is


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The artifact of the sample, and the commands that made it."""
    out = tmp_path_factory.mktemp("ci") / "dist"
    done = _run(*_with_out(out))
    assert done.returncode == 0, done.stdout + done.stderr
    return out, _commands(done.stdout)


def _commands(printed: str) -> list[str]:
    """Command and last option of every line that names a command."""
    lines = [line.split() for line in printed.splitlines() if line.startswith("$ fewstep ")]
    return [f"{words[2]} {words[-1]}" for words in lines]


@pytest.fixture
def artifact(first: tuple[Path, list[str]], tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(first[0], tmp_path / "dist")


def test_first_run_does_everything_in_order(first: tuple[Path, list[str]]) -> None:
    out, commands = first
    assert commands == [
        "export --force",
        "build --check",
        "build --preflight",
        "build 8",
        "build --check",
        f"verify {out / 'verify.md'}",
    ]
    assert sorted(path.name for path in out.iterdir()) == [
        "SHA256SUMS",
        "bundle",
        "provenance.json",
        "verify.md",
    ]


def test_artifact_holds_engines_and_kernels_for_the_gpus_asked_for(
    first: tuple[Path, list[str]],
) -> None:
    manifest = json.loads((first[0] / "bundle" / "bundle.json").read_text())
    engines = {(each["graph"], each["precision"]) for each in manifest["engines"]}
    assert engines == {(graph, "fp16") for graph in ("transformer", "policy", "decoder")}
    targets = {tuple(each["compute_capabilities"]) for each in manifest["engines"]}
    assert targets == {("8.6", "8.9")}
    assert {"8.6", "8.9"} <= manifest["kernels"]["cubins"].keys()
    assert "passed" in (first[0] / "verify.md").read_text().splitlines()[0]


def test_sums_are_those_of_the_files(first: tuple[Path, list[str]]) -> None:
    out = first[0]
    lines = [line.split("  ") for line in (out / "SHA256SUMS").read_text().splitlines()]
    assert all(
        hashlib.sha256((out / name).read_bytes()).hexdigest() == digest for digest, name in lines
    )
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert {name for _, name in lines} == files - {"SHA256SUMS"}


def test_provenance_says_where_it_came_from(first: tuple[Path, list[str]]) -> None:
    provenance = json.loads((first[0] / "provenance.json").read_text())
    weights = ROOT / "samples" / "fashion" / "weights"
    for name in ("transformer", "tokenizer"):
        digest = hashlib.sha256((weights / f"{name}.safetensors").read_bytes()).hexdigest()
        assert provenance["inputs"][name]["sha256"] == digest
    assert provenance["options"]["compute_capabilities"] == ["8.6", "8.9"]
    assert provenance["options"]["untrained_policy"] is True
    assert len(provenance["engines"]) == 3
    assert "not run" in provenance["verified"]["what"]
    assert provenance["key"] == _run(*_with_out(first[0]), "--print-key").stdout.strip()


def test_second_run_only_looks(first: tuple[Path, list[str]]) -> None:
    out = first[0]
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    done = _run(*_with_out(out))
    assert _commands(done.stdout) == ["build --check"]
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


# --- What the script decides


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Commands in place of being run; all succeed."""
    commands: list[list[str]] = []

    def record(*arguments: str, may_fail: bool = False) -> bool:
        commands.append(list(arguments))
        return True

    monkeypatch.setattr(script, "fewstep", record)
    monkeypatch.chdir(ROOT)
    return commands


Change = Callable[[list[str]], list[str]]


def _without_policy(options: list[str]) -> list[str]:
    return [each for each in options if each != "--untrained-policy"]


def _other(option: str, *values: str) -> Change:
    """Other values of an option."""

    def change(options: list[str]) -> list[str]:
        start = options.index(option) + 1
        end = next((i for i in range(start, len(options)) if options[i].startswith("--")), None)
        rest = [] if end is None else options[end:]
        return [*options[:start], *values, *rest]

    return change


@pytest.mark.parametrize("name", ["golden.npz", "decoder.onnx"])
def test_a_changed_file_is_exported_again(
    artifact: Path, recorded: list[list[str]], name: str
) -> None:
    with (artifact / "bundle" / name).open("ab") as file:
        file.write(b"more")
    with pytest.raises(SystemExit, match=f"{name}: not what bundle.json says"):
        script.main(_with_out(artifact))  # as the export was only recorded
    assert recorded[0][0] == "export"
    assert recorded[0][-1] == "--force"


@pytest.mark.parametrize(
    "change",
    [_other("--config", str(ROOT / "pyproject.toml")), _without_policy],
    ids=["file", "policy"],
)
def test_other_checkpoint_is_exported_again(
    artifact: Path, recorded: list[list[str]], change: Change
) -> None:
    script.main(change(_with_out(artifact)))
    assert recorded[0][:2] == ["export", "adanat"]
    assert ("--untrained-policy" in recorded[0]) == (change is not _without_policy)
    assert recorded[-1][0] == "verify"


@pytest.mark.parametrize(
    "change",
    [_other("--max-batch", "4"), _other("--compute-capability", "8.9")],
    ids=["batch", "capability"],
)
def test_other_options_are_verified_again_but_not_exported(
    artifact: Path, recorded: list[list[str]], change: Change
) -> None:
    script.main(change(_with_out(artifact)))
    assert [command[0] for command in recorded] == ["build", "verify"]


def test_half_written_provenance_is_written_again(
    artifact: Path, recorded: list[list[str]]
) -> None:
    (artifact / "provenance.json").write_text('{"key": ')
    script.main(_with_out(artifact))
    assert [command[0] for command in recorded] == ["build", "verify"]
    assert json.loads((artifact / "provenance.json").read_text())["key"]


def test_changed_report_is_made_again(artifact: Path, recorded: list[list[str]]) -> None:
    (artifact / "verify.md").write_text("all is well")
    script.main(_with_out(artifact))
    assert recorded[-1][0] == "verify"


def test_source_is_noted_where_ci_tells_it(
    artifact: Path, recorded: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_SHA", "c0ffee")
    (artifact / "provenance.json").unlink()
    script.main(_with_out(artifact))
    source = json.loads((artifact / "provenance.json").read_text())["source"]
    assert source["commit"] == "c0ffee"


@pytest.mark.parametrize(
    "change",
    [
        _other("--family", "maskgit"),
        _other("--precision", "fp32"),
        _other("--max-batch", "4"),
        _other("--compute-capability", "8.9"),
        _other("--config", str(ROOT / "pyproject.toml")),
        _without_policy,
    ],
)
def test_key_depends_on_everything_but_the_folder(
    change: Change, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)

    def key(options: list[str]) -> str:
        script.main([*options, "--print-key"])
        return capsys.readouterr().out

    usual = key(_options())
    assert re.fullmatch(r"[0-9a-f]{64}\n", usual)
    assert key(_with_out(Path("elsewhere"))) == usual
    assert key(_other("--compute-capability", "8.9", "8.6")(_options())) == usual
    assert key(change(_options())) != usual


def test_key_depends_on_the_tools(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    script.main([*_options(), "--print-key"])
    monkeypatch.setattr(script, "_version", lambda package: "99")
    script.main([*_options(), "--print-key"])
    first, second = capsys.readouterr().out.split()
    assert first != second


def test_bf16_is_verified_in_fp32(recorded: list[list[str]], artifact: Path) -> None:
    script.main(_other("--precision", "bf16")(_with_out(artifact)))
    build, verify = recorded
    assert build[build.index("--precision") + 1] == "bf16"
    assert verify[verify.index("--precision") + 1] == "fp32"


def test_absent_checkpoints_are_named_together(tmp_path: Path) -> None:
    options = _other("--tokenizer", "no-vqgan")(_with_out(tmp_path))
    done = _run(*_other("--config", "no-config")(options))
    assert done.returncode == 1
    assert done.stderr == "error: no such file: no-vqgan, no-config\n"


def test_failing_command_ends_the_script(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="fewstep inspect ended with code 1"):
        script.fewstep("inspect", "no-such-bundle")
    assert not script.fewstep("inspect", "no-such-bundle", may_fail=True)
    assert capfd.readouterr().out.startswith("$ fewstep inspect no-such-bundle\n")


# --- The workflow


def _steps() -> list[str]:
    """Lines that run the script, or a command, in the workflow."""
    return [line.strip() for line in WORKFLOW.read_text("utf-8").splitlines()]


def test_workflow_calls_the_script_with_options_that_it_knows() -> None:
    calls = [line for line in _steps() if "build_bundle.py" in line and line[0] not in "-#"]
    assert len(calls) == 2
    for call in calls:
        words = re.search(r"python (\S+) \$OPTIONS ?([\w -]*)", call)
        assert words and ROOT / words[1] == SCRIPT
        given = script.parser().parse_args([*_options(), *words[2].split()])
        assert given.out == Path("dist")
        assert given.print_key is ("--print-key" in call)
    assert script._recipe(script.parser().parse_args(_options())).bundle == Path("dist/bundle")


def test_workflow_names_files_that_exist() -> None:
    text = WORKFLOW.read_text("utf-8")
    paths = re.findall(r"^      - (\S+[/.]\S+)$", text, re.MULTILINE)
    assert len(paths) >= 6
    for path in paths:
        assert path == f".github/workflows/{WORKFLOW.name}" or any(ROOT.glob(path)), path
    produced = {"dist/verify.md", "dist/SHA256SUMS"}
    assert set(re.findall(r"\bdist/\S+", text)) == produced


def test_workflow_is_tidy_yaml() -> None:
    """No parser is at hand: indentation in twos, no tabs, no key twice at the top."""
    lines = WORKFLOW.read_text("utf-8").splitlines()
    assert not [line for line in lines if "\t" in line or line != line.rstrip()]
    assert not [line for line in lines if (len(line) - len(line.lstrip(" "))) % 2]
    top = [line.partition(":")[0] for line in lines if re.match(r"[a-z]", line)]
    assert top == ["name", "on", "env", "permissions", "concurrency", "jobs"]


def test_workflow_caches_signs_and_uploads() -> None:
    text = WORKFLOW.read_text("utf-8")
    used = re.findall(r"uses: (\S+)", text)
    assert all(re.fullmatch(r"actions/[a-z-]+@v\d+", each) for each in used)
    order = [each.partition("@")[0].removeprefix("actions/") for each in used]
    assert order == [
        "checkout",
        "setup-python",
        "cache",
        "attest-build-provenance",
        "upload-artifact",
    ]
    assert "steps.key.outputs.key" in text
    assert not re.search(r"^ *restore-keys:", text, re.MULTILINE)
    assert {"id-token: write", "attestations: write"} <= set(_steps())
