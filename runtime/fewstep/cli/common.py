"""What the commands share: consoles, options, and how results are shown."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from fewstep.cli.process import UnfailingStderr, silence, unprinted
from fewstep.runtime.errors import missing, shortened
from fewstep.runtime.progress import Progress

if TYPE_CHECKING:
    from fewstep.runtime.generator import Generator

_WIDE = 1_000  # where nobody sets a width, such as in a pipe, tables wrap nothing
_VERSIONS = ("fewstep", "numpy", "onnxruntime", "onnx", "torch", "tensorrt", "tensorrt-rtx-cu12")

_verbosity = 0


class _Results(Console):
    """stdout; work goes on where nobody reads it any more."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print; an ``OutputError`` if that is not possible, as on a full disk."""
        try:
            super().print(*objects, **options)
        except OSError as error:
            raise unprinted(error) from error

    def on_broken_pipe(self) -> None:
        """What is left leads nowhere."""
        silence(sys.stdout)


class _ErrorConsole(Console):
    """stderr; bars and spinners move only where somebody looks on, so that logs have none."""

    @property
    def is_terminal(self) -> bool:
        """Whether stderr is a terminal of a person, whatever FORCE_COLOR says of colours."""
        watched = os.environ.get("TERM") not in ("dumb", "unknown") and not os.environ.get("CI")
        seen = sys.stderr is not None and sys.stderr.isatty()  # None where it is closed
        return watched and seen and _verbosity >= 0


def _width(stream: Any) -> int | None:
    return None if stream is None or stream.isatty() or os.environ.get("COLUMNS") else _WIDE


out = _Results(width=_width(sys.stdout), emoji=False)
errors = _ErrorConsole(
    file=cast("IO[str]", UnfailingStderr()), width=_width(sys.stderr), emoji=False
)

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")

BundleArgument = Annotated[Path, typer.Argument(help="Bundle folder.")]
BackendOption = Annotated[
    str,
    typer.Option(
        help="auto (the first of tensorrt and tensorrt-rtx that works; on the CPU the faster one), "
        "tensorrt, tensorrt-rtx, openvino or onnxruntime.",
        autocompletion=lambda: ["auto", "tensorrt", "tensorrt-rtx", "openvino", "onnxruntime"],
    ),
]
DeviceOption = Annotated[
    str,
    typer.Option(
        help="auto, cpu, or cuda (cuda:1 is the second).",
        autocompletion=lambda: ["auto", "cpu", "cuda"],
    ),
]
PrecisionOption = Annotated[
    str,
    typer.Option(
        help="auto (that of the newest engines, else fp32), fp32, or what was made for the "
        "bundle: fp16, bf16, int8, fp8.",
        autocompletion=lambda: ["auto", *PRECISIONS],
    ),
]
ThreadsOption = Annotated[
    int, typer.Option(help="CPU threads; 0 for every core that this process may use.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def show(data: dict[str, Any], shown: Sequence[Table | str], as_json: bool) -> None:
    """Print data as JSON, or what is shown instead."""
    if as_json:
        text = json.dumps(data, indent=2)
        out.print(text, highlight=False, markup=False, emoji=False, soft_wrap=True)
        return
    for item in shown:
        out.print(item, highlight=False, soft_wrap=isinstance(item, str))


def set_verbosity(level: int) -> None:
    """−1: results and errors alone. 0: notes, progress and what to do next as well. 1: more."""
    global _verbosity
    _verbosity = level


def quiet() -> bool:
    """Whether only results and errors are wanted."""
    return _verbosity < 0


def command(*words: object) -> str:
    """A command of fewstep as this user can type it, to be pasted.

    It begins as this process was started: ``fewstep`` where the shell finds that one, otherwise
    the path that was typed, or ``python -m fewstep``.
    """
    return shlex.join([*_program(), *map(str, words)])


def _program() -> list[str]:
    typed = Path(sys.argv[0])
    if typed.parts[-2:] == ("fewstep", "__main__.py"):
        return [sys.orig_argv[0], "-m", "fewstep"]
    found = shutil.which("fewstep")
    if typed.name != "fewstep" or (found and typed.exists() and Path(found).samefile(typed)):
        return ["fewstep"]
    return [str(typed)] if typed.exists() else ["fewstep"]


def say_next(*commands: str, where: str = "") -> None:
    """Print what to do next, a whole command of :func:`command` in each line.

    Args:
        commands: one or more.
        where: that they are to be typed elsewhere: "on the device".
    """
    place = f", {where}" if where else ""
    for each in () if quiet() else commands:
        out.print(f"next{place}: {each}", highlight=False, soft_wrap=True, markup=False)


def say_verdict(lines: Iterable[str], commands: Iterable[str], *, where: str = "") -> None:
    """Print how it went, then what to do next, as :func:`say_next`."""
    for line in lines:
        out.print(line, highlight=False, soft_wrap=True, markup=False)
    say_next(*commands, where=where)


def say_notes(generator: Generator) -> None:
    """Say why engines that the bundle has are not used, and what to know of those that are."""
    built = {engine.backend for engine in generator.bundle.manifest.engines}
    for backend, reason in generator.passed_over.items():
        if backend in built:
            say_note(f"{backend} is not used: {reason}")
        else:
            say_more(f"{backend} is passed over: {reason}")
    for note in generator.notes:
        say_note(note)
    say_more(f"{generator.backend} in {generator.precision} on {generator.device.name}")


def say_note(text: str) -> None:
    """Say something that is no error, in one line beside the results."""
    _say("[yellow]note:[/]", text, least=0)


def say_warning(text: str) -> None:
    """Say in one line what may make results worse than they look."""
    _say("[yellow]warning:[/]", text, least=0)


def say_more(text: str) -> None:
    """Say, to those who pass ``--verbose``, how something came about."""
    _say("[dim]more:[/]", text, least=1)


def say_error(text: str) -> None:
    """Say in one line what went wrong."""
    _say("[red]error:[/]", text, least=-1)


def _say(label: str, text: str, least: int) -> None:
    if _verbosity >= least:
        errors.print(f"{label} {one_line(text)}", highlight=False, soft_wrap=True)


def say_versions() -> None:
    """Say, to those who pass ``--verbose``, which Python and libraries run."""
    if _verbosity < 1:
        return
    from importlib.metadata import PackageNotFoundError, version

    found = {"Python": platform.python_version()}
    for name in _VERSIONS:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    say_more(", ".join(f"{name} {each}" for name, each in found.items()))


@contextlib.contextmanager
def progress_bar(first: str, *, lines: bool = False) -> Iterator[Progress]:
    """A bar for the phase that is under way, which is ``first`` to begin with; none in a log.

    Args:
        first: what is being done until something is reported.
        lines: print a line for every phase that is done, in a log too.
    """

    def line(phase: str, done: float) -> None:
        if lines and done >= 1 and not quiet():
            errors.print(escape(phase), highlight=False)

    if not errors.is_terminal:
        yield line
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Bars(*columns, console=errors, transient=True) as bars:
        task = bars.add_task(escape(first), total=None)

        def progress(phase: str, done: float) -> None:
            total = 1.0 if done > 0 else None  # what says no fraction yet only moves
            bars.update(task, description=escape(phase), completed=done, total=total)
            line(phase, done)

        yield progress


def export_module(name: str = "") -> Any:
    """The export package, or a module of it, when its dependencies are installed."""
    return _module("export", name, ("torch", "onnx", "onnxscript", "safetensors"))


def build_module(name: str) -> Any:
    """A module of the build package that works on graphs, when its dependencies are installed."""
    return _module("build", name, ("onnx",))


def calibration_module(name: str) -> Any:
    """A module of the calibration package, when its dependencies are installed."""
    return _module("calibration", name, ("onnx", "onnxruntime"))


def decoder_module() -> Any:
    """The module that distils decoders, when its dependencies are installed."""
    needs = ("torch", "onnx", "onnxscript", "onnx_tool", "safetensors")
    return _module("calibration", "decoder.flow", needs, extra="export")


def policy_module() -> Any:
    """The module that tunes policies, when its dependencies are installed."""
    needs = ("torch", "onnx", "onnxscript", "safetensors", "matplotlib", "tensorboard")
    return _module("calibration", "policy.tune", needs, extra="policy")


def serve_module() -> Any:
    """The module that serves over HTTP, when its dependencies are installed."""
    needs = ("fastapi", "uvicorn", "prometheus_client", "python_multipart")
    return _module("server", "run", needs, extra="serve")


def _module(package: str, name: str, needs: tuple[str, ...], extra: str = "") -> Any:
    for each in needs:
        if importlib.util.find_spec(each) is None:
            raise missing(each, extra or package)
    return importlib.import_module(f"fewstep.{package}.{name}" if name else f"fewstep.{package}")


def one_line(error: BaseException | str) -> str:
    """An error's message in one line, safe to print."""
    return escape(shortened(" ".join(str(error).split())))
