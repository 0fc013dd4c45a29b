"""What is in a bundle: graphs, sizes, provenance, whether the files are intact, and the program and
memory of one decode."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import RequestError
from fewstep.runtime.examples import example_request
from fewstep.runtime.families import Model, family_of, model_of
from fewstep.runtime.program import Launch, Op, Program, Repeat, Run, View
from fewstep.runtime.settings import settings_of


@dataclass(frozen=True)
class Inspection:
    """A bundle's manifest, its size on disk, and the files that are missing or changed."""

    bundle: Bundle
    total_bytes: int
    damage: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        manifest = self.bundle.manifest.model_dump(mode="json")
        return {
            "path": str(self.bundle.path),
            "total_bytes": self.total_bytes,
            "damage": self.damage,
            "manifest": manifest,
        }


def inspect(bundle: Bundle) -> Inspection:
    """Hash every file of the bundle and sum up its size."""
    total = sum(info.bytes for info in bundle.manifest.files.values())
    return Inspection(bundle, total, bundle.damage())


@dataclass(frozen=True)
class PlannedDecode:
    """The program of a request, and the memory that a plan of it takes.

    ``batch``: images decoded together. ``settings``: of the request, complete.
    ``weights_bytes``: size of the files of the graphs that it runs, which every backend loads in
    some form. The activations inside the engines are the backend's own and not known here.
    """

    model: Model
    batch: int
    settings: dict[str, Any]
    key: Any
    program: Program
    weights_bytes: int

    @property
    def total_bytes(self) -> int:
        """Sum over the plan's own buffers."""
        return self.program.bytes

    @property
    def shared_bytes(self) -> int:
        """Sum over what all plans share: constants, and rows that are kept."""
        return sum(spec.bytes for spec in self.program.shared.values())

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        shared = self.program.shared
        buffers = self.program.every_buffer.items()
        return {
            "batch": self.batch,
            "settings": self.settings,
            "key": asdict(self.key),
            "buffers": {
                name: {**asdict(spec), "bytes": spec.bytes, "shared": name in shared}
                for name, spec in buffers
            },
            "operations": listed(self.program),
            "total_bytes": self.total_bytes,
            "shared_bytes": self.shared_bytes,
            "weights_bytes": self.weights_bytes,
        }


def planned_decode(bundle: Bundle, *, batch: int = 1, **settings: Any) -> PlannedDecode:
    """What ``Generator.generate`` would run and allocate; nothing is allocated here.

    Args:
        bundle: the bundle.
        batch: images decoded together.
        settings: as of ``generate``; the bundle's defaults where there are none.

    Raises:
        RequestError: as ``Generator.generate``.
        BundleError: a file that programs are made of is damaged.
    """
    if not isinstance(batch, int) or batch < 1:
        raise RequestError(f"batch must be a whole number, at least 1, got {batch}")
    model, family = model_of(bundle), family_of(bundle.manifest.model.kind)
    chosen = settings_of(model.info.defaults, settings)
    key = family.key(model, example_request(model, chosen, batch), batch)
    program = family.program(model, key)
    graphs = [bundle.graph(name) for name in program.graphs]
    files = dict.fromkeys(file for graph in graphs for file in graph.files)
    weights = sum(bundle.manifest.files[file].bytes for file in files)
    return PlannedDecode(model, batch, family.complete(model, chosen), key, program, weights)


def listed(program: Program) -> list[dict[str, str]]:
    """Every operation of a program in words, and how often it runs, one after the other with those
    that run as often."""
    found = []
    for op in program.ops:
        times, each = (op.times, op.ops) if isinstance(op, Repeat) else (1, (op,))
        found += [{**described(one), "times": str(times)} for one in each]
    return found


def described(op: Op) -> dict[str, str]:
    """An operation in words: what it is, what it runs, on what."""
    if isinstance(op, Run):
        return {"op": "run", "what": op.graph, "on": _named(op.bindings), "step": str(op.step)}
    if isinstance(op, Launch):
        on = _named(op.arguments)
        return {"op": "launch", "what": op.kernel, "on": on, "step": str(op.step)}
    on = f"{_view(op.target)} ← {_view(op.source)}"
    return {"op": "copy", "what": "", "on": on, "step": str(op.step)}


def _named(arguments: Mapping[str, View | int | float]) -> str:
    """Names and values; three or more views of successive rows, as of a cache, are one."""
    alike: dict[View, dict[str, int]] = {}
    for name, each in arguments.items():
        if isinstance(each, View) and each.index is not None:
            alike.setdefault(replace(each, index=None), {})[name] = each.index
    shown = {name: f"{name}={_value(each)}" for name, each in arguments.items()}
    for view, found in alike.items():
        (first, *others), rows = found, list(found.values())
        if len(rows) > 2 and rows == list(range(rows[0], rows[0] + len(rows))):
            rest = _view(view).removeprefix(view.buffer)
            shown[first] = f"{first} … {others[-1]}={view.buffer}[{rows[0]} … {rows[-1]}]{rest}"
            for name in others:
                del shown[name]
    return ", ".join(shown.values())


def _value(argument: View | int | float) -> str:
    return _view(argument) if isinstance(argument, View) else f"{argument:g}"


def _view(view: View) -> str:
    index = "" if view.index is None else f"[{view.index}]"
    rows = "" if view.rows is None else f"[{view.rows[0]}:{view.rows[1]}]"
    return f"{view.buffer}{index}{rows}"
