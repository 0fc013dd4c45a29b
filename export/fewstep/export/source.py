"""What an export begins with: a form, in which authors publish checkpoints of a family.

A form is a module of :mod:`fewstep.export.sources` with a ``SOURCE``, or one that registers itself
with :func:`register`. The command line asks for names and options alone, so modules of sources
import torch only inside :meth:`Source.load`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from fewstep.export import sources as forms

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fewstep.export.config import ExportConfig
    from fewstep.runtime.families import ModelInfo


@dataclass(frozen=True)
class Option:
    """An option of ``fewstep export FORM``.

    Args:
        name: as in Python; ``tuned_policy`` is ``--tuned-policy``.
        help: a sentence for the command line.
        kind: a path, any number of paths, a folder, a switch, or a text.
        required: whether there is no export without it.
    """

    name: str
    help: str
    kind: Literal["file", "files", "folder", "flag", "text"] = "file"
    required: bool = False

    @property
    def flag(self) -> str:
        """How it is spelled on the command line."""
        return "--" + self.name.replace("_", "-")


IMAGE_ENCODER = Option(
    "encoder",
    "With the tokenizer's encoder as a graph too, so that the bundle can edit pictures.",
    "flag",
)
"""Of forms whose tokenizer has one."""


@dataclass(frozen=True)
class Graph:
    """A module that becomes one ONNX file.

    Args:
        module: called with the inputs in order; returns a tensor, or one in a tuple per output.
        inputs: example tensors by name. A dimension that may vary has a size of 2 or more here,
            best another one than other such dimensions.
        outputs: names of the outputs.
        dynamic: names of the dimensions that may vary, by input and position; equal names are
            equal sizes. ``None``: the first of every input, called ``batch``.
        unclamped: of a graph that gives images, what they are before they are clamped to 0 … 1;
            called with the inputs as ``module`` is. So an export sees a wrong range of pixels.
    """

    module: nn.Module
    inputs: Mapping[str, Tensor]
    outputs: tuple[str, ...]
    dynamic: Mapping[str, Mapping[int, str]] | None = None
    unclamped: Callable[..., Tensor] | None = None

    def dimensions(self, name: str) -> Mapping[int, str]:
        """Names of the dimensions of an input that may vary, by position."""
        return {0: "batch"} if self.dynamic is None else self.dynamic.get(name, {})


@dataclass(frozen=True)
class Exportable:
    """What a source read, ready to be exported.

    Args:
        name: of the bundle, where the configuration names none.
        model: what the manifest says of it.
        graphs: by name, in the order in which they are exported.
        checkpoints: the files that were read, by what they are: ``transformer``.
        files: contents of more files of the bundle, by name.
        notes: what to say to the user, a line each: what was assumed, preferred or left out.
    """

    name: str
    model: ModelInfo
    graphs: Mapping[str, Graph]
    checkpoints: Mapping[str, Path]
    files: Mapping[str, bytes] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Source(Protocol):
    """One published form.

    ``name``: what stands after ``fewstep export``. ``kind``: the family that decodes it.
    ``summary``: a line for the command line. ``options``: without ``--config``, ``--out`` and
    ``--force``, which all forms have.
    """

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> str: ...

    @property
    def summary(self) -> str: ...

    @property
    def options(self) -> tuple[Option, ...]: ...

    def load(self, given: Mapping[str, Any], config: ExportConfig) -> Exportable:
        """Read checkpoints.

        Args:
            given: values by name of the option, of those that were given: a path, a sequence of
                paths, or ``True``. All required ones are there.
            config: contents of the ``--config`` file.

        Raises:
            CheckpointError: the files or the configuration do not fit.
        """
        ...


@dataclass(frozen=True)
class FilesSource:
    """A form of which a module of :mod:`fewstep.export` reads some files.

    ``module``: it has ``Checkpoints``, made of the options, and ``load(checkpoints, config)``.
    """

    name: str
    kind: str
    module: str
    summary: str
    options: tuple[Option, ...]

    def load(self, given: Mapping[str, Any], config: ExportConfig) -> Exportable:
        """Read the models and check that they belong together."""
        module = importlib.import_module(f"fewstep.export.{self.module}")
        found: Exportable = module.load(module.Checkpoints(**given), config)
        return found


_registered: dict[str, Source] = {}


def register(source: Source) -> None:
    """Make a form that lives elsewhere known, in the place of any of its name."""
    _registered[source.name] = source


def sources() -> dict[str, Source]:
    """All forms that are known, by name."""
    modules = (
        importlib.import_module(f"{forms.__name__}.{each.name}")
        for each in pkgutil.iter_modules(forms.__path__)
    )
    found: dict[str, Source] = {module.SOURCE.name: module.SOURCE for module in modules}
    return dict(sorted({**found, **_registered}.items()))
