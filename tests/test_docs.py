"""The documents: links and paths lead somewhere, commands exist with their options, snippets run,
and what is said of files, tests and protocols is there.

``docs/cli.md`` is compared with the commands in ``tests/cli/test_reference.py``.
"""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.main import get_command

from fewstep.cli import app
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.families import Family
from fewstep.runtime.inspect import planned_decode

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    page
    for pattern in ("*.md", "docs/**/*.md", "samples/*/*.md", "tests/*/*.md")
    for page in ROOT.glob(pattern)
)
DECISIONS = sorted((ROOT / "docs/decisions").glob("[0-9]*.md"))
BASES = [
    ROOT / base
    for base in (
        "",
        "runtime/fewstep",
        "runtime/fewstep/runtime",
        "export/fewstep",
        "export/fewstep/export",
        "tests",
    )
]
"""Where paths in prose start."""
NOT_HERE = re.compile(r"[A-Z]{3,}/|^(my-bundle|demo-output|bundle|images|dist|gpu-report)/")
"""Paths with placeholders, and those of what commands make."""

WHERE_IS = {
    "top-k re-masking": "def remask(",
    "top-k and nucleus": "def sample_top_k_top_p(",
    "what differs between forms of MaskGIT": "class Rules(",
    "prompts, their ids, and the states that are kept": "class TextStates",
    "orders of positions that are known before": "def ranks(",
    "the image encoder of edits, cells that pixels touch": "def touched(",
    "local steps beside cached keys and values": "def local_run(",
    "the KV cache": "past_{name}",
    "tokens of an iteration; which positions it computes": "def recomputed(",
    "timesteps of a diffusion, and what each does": "def coefficients(",
    "normal noise": "def normals(",
    "choice of the backend": "def open_backend(",
    "choice of the decoder": "def chosen_decoder(",
    "default guidance": "guidance: Annotated[RampOrList, at_most(_MOST)] = Field(",
    "fp16 overflow": "LARGEST_FP16 = ",
    "out of memory": "except OutOfMemoryError",
    "stale engine": "def why_engine_stale(",
    "the guidance formula": "c + s·(c − u)",
    "batch doubling for guidance": "2 * self.batch if self.guided",
    "ONNX opset: that of exports; those that builders read": "OPSET = ",
    "the GIF of steps": '"GIF"',
    "capture of the CUDA graph": "cuStreamBeginCapture",
    "class names": "def class_id_of(",
    "how many threads": "def cpu_quota(",
    "which classes and seeds a run makes": "balanced",
    "what a PNG says of itself": "PngInfo",
    "seeds of candidates, and which is kept": "def candidates(",
    "which requests run together, and how long one waits": "class Line",
    "who is refused for lack of room; the thread of a generator": "raise BusyError(",
    "who may ask the server, and how much": "class Access:",
    "bulk generation on many machines": "def generate(",
    "what Triton runs": "class TritonPythonModel",
    "wrapped checkpoints": "def is_ema(",
}
"""Rows of the table in ``docs/architecture.md``, with what the file they name has to have."""

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def _text(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


# Links and paths


@each_page
def test_relative_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@each_page
def test_paths_in_prose_exist(page: Path) -> None:
    prose = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.M | re.S)
    quoted = re.findall(r"`((?:[\w-]+/)+(?:[\w-]+\.(?:py|cu|md|json|npz|toml))?)`", prose)
    bases = [page.parent, *BASES]
    here = [path for path in quoted if not NOT_HERE.search(path)]
    assert [path for path in here if not any((base / path).exists() for base in bases)] == []


@each_page
def test_tables_of_files_name_files(page: Path) -> None:
    """Tables whose first heading is "file in `FOLDER`", or that stand under "In `FOLDER`:"."""
    text, bases = page.read_text("utf-8"), (page.parent, ROOT)
    pattern = r"^(?:\| file in `([^`]+)`|In `([^`]+)`:\n\n\|).*\n\|---.*\n((?:\|.*\n)+)"
    absent = []
    for one, other, rows in re.findall(pattern, text, re.MULTILINE):
        firsts = "".join(row.split("|")[1] for row in rows.splitlines())
        names = re.findall(r"`([^`]+)`", firsts)
        folder = one or other
        absent += [n for n in names if not any((base / folder / n).exists() for base in bases)]
    assert absent == []


def test_the_table_of_behaviours_names_the_files_that_have_them() -> None:
    section = _text("docs/architecture.md").partition("## Where is …")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| ([^|`]+) \| `([^`]+)`", section, re.MULTILINE))
    assert rows.keys() == WHERE_IS.keys()
    lacking = {what: file for what, file in rows.items() if WHERE_IS[what] not in _text(file)}
    assert lacking == {}


# Commands


@each_page
def test_commands_exist_with_their_options(page: Path) -> None:
    assert [*_wrong_commands(page.read_text("utf-8"))] == []


def test_wrong_commands_are_noticed() -> None:
    text = """`fewstep generat b` and

    fewstep generate b --class 1 \\
        --shedule policy  # --nothing
    torchrun -m fewstep calibrate policy … --nodes 4
    fewstep export adanat --transformr FILE
"""
    assert [*_wrong_commands(text)] == [
        "fewstep generate --shedule",
        "fewstep calibrate policy --nodes",
        "fewstep export adanat --transformr",
        "fewstep generat",
    ]


def test_options_in_prose_are_options_of_some_command() -> None:
    known = {option for command in _leaves(get_command(app)) for option in _options(command)}
    for name in ("README.md", "docs/export.md", "docs/engines.md", "docs/calibration.md"):
        found = set(re.findall(r"`(--[a-z0-9-]+)", _text(name)))
        assert found <= known, name


def _wrong_commands(text: str) -> Iterator[str]:
    """Commands that there are not, and options that a command does not have."""
    for line in _code(text):
        for call in re.findall(r"(?<![\w/.-])fewstep ([a-z].*)", re.sub(r"(^|\s)#\s.*", "", line)):
            command: Any = get_command(app)
            path, words = ["fewstep"], _words(call)
            while words and words[0] in _below(command):
                path.append(words.pop(0))
                command = _below(command)[path[-1]]
            if _below(command) and words and re.fullmatch(r"[a-z][a-z-]*", words[0]):
                if words[0] == "toy":  # a form that tests register
                    continue
                yield f"{' '.join(path)} {words[0]}"
                continue
            known = {option for leaf in _leaves(command) for option in _options(leaf)}
            options = (word.partition("=")[0] for word in words if word.startswith("--"))
            yield from (f"{' '.join(path)} {each}" for each in options if each not in known)


def _code(text: str) -> Iterator[str]:
    """Lines of code, blocks as well as what stands between backticks; no line is continued."""
    whole = re.sub(r"\\\n\s*", "", text)
    fenced = re.findall(r"^```\w*\n(.*?)^```", whole, re.MULTILINE | re.DOTALL)
    yield from itertools.chain.from_iterable(block.splitlines() for block in fenced)
    rest = re.sub(r"^```\w*\n.*?^```", "", whole, flags=re.MULTILINE | re.DOTALL)
    yield from (line for line in rest.splitlines() if line.startswith("    "))
    yield from (" ".join(each.split()) for each in re.findall(r"`([^`]+)`", rest))


def _words(call: str) -> list[str]:
    """What a shell passes on; words that it has for itself end a command."""
    try:
        words = shlex.split(call, comments=True)
    except ValueError:
        words = call.split()
    return [*itertools.takewhile(lambda word: word not in ("|", "&&", ">", ";"), words)]


def _options(command: Any) -> set[str]:
    params = command.get_params(typer.Context(command))
    return {each for param in params for each in (*param.opts, *param.secondary_opts)} | {"--debug"}


def _below(command: Any) -> dict[str, Any]:
    """The commands of a group; none of what is no group."""
    if not hasattr(command, "list_commands"):
        return {}
    context = typer.Context(command)
    return {name: command.get_command(context, name) for name in command.list_commands(context)}


def _leaves(command: Any) -> Iterator[Any]:
    """A command, or those of a group, at any depth."""
    below = _below(command)
    yield from itertools.chain.from_iterable(map(_leaves, below.values())) if below else (command,)


# The README


def test_the_readme_is_short() -> None:
    assert len(_text("README.md").splitlines()) <= 120


def test_snippets_of_the_readme_run(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they stand, where the bundle that they open is a tiny one."""
    (tmp_path / "demo-output").mkdir()
    (tmp_path / "demo-output/bundle").symlink_to(tiny_bundle)
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"^```python\n(.*?)^```", _text("README.md"), re.MULTILINE | re.DOTALL)
    assert snippets
    for snippet in snippets:
        names: dict[str, Any] = {}
        exec(snippet, names)
        assert names["result"].images.shape == (2, 8, 8, 3)


# Architecture, families, decisions


def test_the_worked_example_has_as_many_operations_as_it_says(tiny_bundle: Path) -> None:
    plan = planned_decode(Bundle.read(tiny_bundle), steps=8)
    page, count = _text("docs/architecture.md"), len(plan.program.ops)
    assert plan.key.guided and plan.key.policy is None
    assert f"makes the program: {count} operations." in page
    assert f"{count + 2} nodes for the program above" in page


def test_every_member_of_the_protocol_is_explained() -> None:
    page = _text("docs/adding-a-family.md")
    members = {*Family.__annotations__, *(name for name in vars(Family) if name[0] != "_")}
    assert {"kinds", "program"} <= members
    assert [name for name in sorted(members) if f"`{name}`" not in page] == []


def test_what_the_page_on_families_names_is_in_the_toy() -> None:
    page = _text("docs/adding-a-family.md")
    toy = _text("tests/toy/family.py") + _text("tests/toy/source.py")
    for name in set(re.findall(r"\bToy[A-Z]\w+", page)):
        assert f"class {name}" in toy
    tests = _text("tests/toy/test_toy_family.py")
    named = set(re.findall(r"`(test_\w+)`", page))
    assert {name for name in named if f"def {name}(" not in tests} == set()
    assert len(named) >= 7


def test_decisions_are_numbered_and_listed() -> None:
    numbers = [int(page.name.partition("-")[0]) for page in DECISIONS]
    assert numbers == [*range(1, len(DECISIONS) + 1)]
    index = _text("docs/decisions/README.md")
    for page in DECISIONS:
        number, _, title = page.read_text("utf-8").splitlines()[0].removeprefix("# ").partition(" ")
        assert page.name.startswith(f"{number}-")
        assert f"| {number} | [{title}]({page.name}) |" in index
