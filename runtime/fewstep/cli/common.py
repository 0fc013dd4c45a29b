"""What the commands share: consoles, options, and how results are shown."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from fewstep.runtime.errors import missing
from fewstep.runtime.progress import Progress

if TYPE_CHECKING:
    from fewstep.runtime.generator import Generator

out = Console()
errors = Console(stderr=True)

BundleArgument = Annotated[Path, typer.Argument(help="Bundle folder.")]
BackendOption = Annotated[
    str,
    typer.Option(help="auto (the first that works), tensorrt, tensorrt-rtx or onnxruntime."),
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, or cuda (cuda:1 is the second).")]
PrecisionOption = Annotated[
    str,
    typer.Option(help="auto (that of the newest engines, else fp32), fp32, or what build made."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def show(data: dict[str, Any], shown: list[Table] | list[str], as_json: bool) -> None:
    """Print data as JSON, or what is shown instead."""
    if as_json:
        print(json.dumps(data, indent=2))
        return
    for item in shown:
        out.print(item, highlight=False, soft_wrap=isinstance(item, str))


def say_notes(generator: Generator) -> None:
    """Say why engines that the bundle has are not used, and what to know of those that are."""
    built = {engine.backend for engine in generator.bundle.manifest.engines}
    for backend, reason in generator.passed_over.items():
        if backend in built:
            say_note(f"{backend} is not used: {reason}")
    for note in generator.notes:
        say_note(note)


def say_note(text: str) -> None:
    """Say something that is no error, in one line beside the results."""
    errors.print(f"[yellow]note:[/] {one_line(text)}", highlight=False, soft_wrap=True)


@contextlib.contextmanager
def progress_bar(first: str, *, lines: bool = False) -> Iterator[Progress]:
    """A bar for the phase that is under way, which is ``first`` to begin with; none in a log.

    Args:
        first: what is being done until something is reported.
        lines: print a line for every phase that is done, in a log too.
    """

    def line(phase: str, done: float) -> None:
        if lines and done >= 1:
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


def policy_module() -> Any:
    """The module that tunes policies, when its dependencies are installed."""
    needs = ("torch", "onnx", "onnxscript", "safetensors", "matplotlib", "tensorboard")
    return _module("calibration", "policy.tune", needs, extra="policy")


def _module(package: str, name: str, needs: tuple[str, ...], extra: str = "") -> Any:
    for each in needs:
        if importlib.util.find_spec(each) is None:
            raise missing(each, extra or package)
    return importlib.import_module(f"fewstep.{package}.{name}" if name else f"fewstep.{package}")


def one_line(error: BaseException | str) -> str:
    """An error's message in one line, safe to print."""
    return escape(" ".join(str(error).split()))
