"""Golden rollouts: what PyTorch decided and computed, recorded when the bundle was exported.

A recording has what a replay needs, whatever the family: the request, the decisions of every step,
and of every run of a graph the outputs that metrics exist for, logits at a few positions. In the
file, ``golden.npz``, the arrays of rollout R are

    R/settings               JSON text: what the request set
    R/condition, R/seeds     of its images
    R/edit/NAME              what of them is kept, for an edit
    R/decisions/BUFFER       [steps, images, …], as in the trace
    R/positions/N            positions that are kept of logits at N positions
    R/runs/I/GRAPH/TENSOR    an output of run I of the program, rows as the graph has them
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.devices import Array
from fewstep.runtime.errors import BundleError, RequestError
from fewstep.runtime.families import Family, Model, TensorKind, family_of, model_of
from fewstep.runtime.generator import Generator
from fewstep.runtime.observe import Call, observe
from fewstep.runtime.program import Program
from fewstep.runtime.request import batches
from fewstep.runtime.settings import settings_of
from fewstep.runtime.verify.metrics import METRICS

_POSITIONS = 8
_SEED = 20_220


@dataclass(frozen=True)
class RecordedRun:
    """What one run of a graph gave, by tensor."""

    graph: str
    outputs: Mapping[str, Array]


@dataclass(frozen=True)
class Recording:
    """One golden rollout.

    ``condition`` and ``seeds`` are of its images, ``settings`` of its request. ``decisions``:
    arrays ``[steps, images, …]`` by buffer name. ``runs``: by their place in the program, those
    that metrics exist for. ``positions``: which are kept of logits, by how many there are.
    ``edit``: what of the images is kept, by names of the family's own; empty for a generation.
    """

    name: str
    condition: Array
    seeds: npt.NDArray[np.uint64]
    settings: Mapping[str, Any]
    decisions: Mapping[str, Array]
    runs: Mapping[int, RecordedRun]
    positions: Mapping[int, Array] = field(default_factory=dict)
    edit: Mapping[str, Array] = field(default_factory=dict)

    def kept(self, kind: TensorKind, value: Array) -> Array:
        """The part of an output that a recording has."""
        return value[:, self.positions[value.shape[1]]] if kind == "logits" else value

    def request(self, family: Family, model: Model) -> Any:
        """Its request.

        Raises:
            RequestError: the model cannot serve it.
        """
        chosen = settings_of(model.info.defaults, self.settings)
        condition = model.info.condition.array(self.condition)
        return family.request(model, condition, self.seeds, chosen, self.edit or None)

    def arrays(self) -> dict[str, Array]:
        """Its arrays in the file."""
        found = {
            "settings": np.array(json.dumps(dict(self.settings))),
            "condition": self.condition,
            "seeds": self.seeds,
        }
        found |= {f"edit/{name}": value for name, value in self.edit.items()}
        found |= {f"decisions/{name}": value for name, value in self.decisions.items()}
        found |= {f"positions/{count}": value for count, value in self.positions.items()}
        for index, run in self.runs.items():
            found |= {f"runs/{index}/{run.graph}/{t}": value for t, value in run.outputs.items()}
        return {f"{self.name}/{name}": value for name, value in found.items()}


def record(
    generator: Generator,
    name: str,
    settings: Mapping[str, Any],
    images: int,
    edit: Mapping[str, Array] | None = None,
) -> Recording:
    """Record one rollout with a generator's engines.

    Args:
        generator: whose engines are taken for right; it decodes all images together.
        name: of the rollout.
        settings: of the request.
        images: how many.
        edit: what of them is kept, as a request has it.
    """
    family, model = generator.family, generator.model
    condition = model.info.condition.examples(images)
    seeds = _SEED + np.arange(images, dtype=np.uint64)
    start = Recording(name, condition, seeds, settings, {}, {}, _Positions(), edit or {})
    decisions = generator.run(start.request(family, model)).trace.decisions
    made = replace(start, decisions=decisions)
    runs = {}
    for each in replay(generator, made):
        outputs = {}
        for tensor, value in each.call.outputs.items():
            kind = family.kinds.get(tensor, "other")
            if kind in METRICS:
                outputs[tensor] = made.kept(kind, value)
        if outputs:
            runs[each.index] = RecordedRun(each.call.graph, outputs)
    return replace(made, runs=runs, positions=dict(made.positions))


class _Positions(dict[int, Array]):
    """Positions by how many there are to choose from, drawn when they are first asked for."""

    def __missing__(self, count: int) -> Array:
        chosen = np.random.default_rng(_SEED).choice(count, min(_POSITIONS, count), replace=False)
        self[count] = np.sort(chosen)
        return self[count]


@dataclass(frozen=True)
class Replayed:
    """A run of a graph in a replay: which of the program's, for which images, and what it gave."""

    index: int
    images: slice
    call: Call


def replay(
    generator: Generator, recording: Recording, graph: str | None = None
) -> Iterator[Replayed]:
    """Every run of a graph with a recording's decisions, for as many images at a time as fit.

    Args:
        generator: whose engines are run.
        recording: of a bundle of the same model.
        graph: run only this one, and what its inputs depend on; the engines of others may be
            absent.

    Raises:
        EngineError: a graph cannot be run.
    """
    family, model = generator.family, generator.model
    request = recording.request(family, model)
    for rows in batches(len(recording.seeds), generator.max_batch):
        key = family.key(model, request, rows.stop - rows.start, constants=False)
        program = family.program(model, key)
        places = [
            index for index, (run, _) in enumerate(program.runs()) if graph in (None, run.graph)
        ]
        calls = observe(
            program if graph is None else program.upstream(graph, model.outputs),
            generator.device,
            generator.engines,
            family.inputs(model, request, rows),
            {name: value[:, rows] for name, value in recording.decisions.items()},
        )
        own = (call for call in calls if graph in (None, call.graph))
        for index, call in zip(places, own, strict=True):
            yield Replayed(index, rows, call)


def recordings(bundle: Bundle) -> dict[str, Recording]:
    """The golden rollouts of a bundle by name, complete and of its model.

    Raises:
        BundleError: there are none, or they are incomplete, of another model, or older than this
            layout.
    """
    manifest = bundle.manifest
    if manifest.golden is None:
        raise BundleError(f"{bundle.path} has no golden rollouts; export it again to record them")
    place, again = f"{bundle.path}/{manifest.golden}", "export the bundle again"
    found = _read(bundle.arrays(manifest.golden))
    if not found:
        raise BundleError(f"{place}: it holds no rollout; {again}")
    model, read = model_of(bundle), {}
    for name, arrays in found.items():
        if "settings" not in arrays and "sampled" in arrays:
            made = manifest.provenance.command or "fewstep export"
            if made.startswith("fewstep export ") and "--force" not in made:
                made += " --force"
            raise BundleError(
                f"{place} was recorded by an older fewstep; export the bundle again, it was made "
                f"with: {made}"
            )
        try:
            read[name] = _recording(name, arrays)
            _check(read[name], family_of(manifest.model.kind), model)
        except (KeyError, ValueError, TypeError, RequestError) as error:
            raise BundleError(f"{place}: '{name}' {_problem(error)}; {again}") from error
    return read


def _problem(error: Exception) -> str:
    return f"lacks {error.args[0]}" if isinstance(error, KeyError) else f"does not fit: {error}"


def _read(arrays: Mapping[str, Array]) -> dict[str, dict[str, Array]]:
    """The arrays of a file by rollout and name."""
    found: dict[str, dict[str, Array]] = {}
    for key, value in arrays.items():
        rollout, _, name = key.partition("/")
        found.setdefault(rollout, {})[name] = value
    return found


def _recording(name: str, arrays: Mapping[str, Array]) -> Recording:
    runs: dict[int, RecordedRun] = {}
    for key in (each for each in arrays if each.startswith("runs/")):
        _, index, graph, tensor = key.split("/", 3)
        known = runs.get(int(index), RecordedRun(graph, {}))
        runs[int(index)] = RecordedRun(graph, {**known.outputs, tensor: arrays[key]})

    def named(room: str) -> dict[str, Array]:
        prefix = f"{room}/"
        return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}

    return Recording(
        name,
        arrays["condition"],
        arrays["seeds"],
        dict(json.loads(str(arrays["settings"]))),
        named("decisions"),
        {index: runs[index] for index in sorted(runs)},
        {int(count): value for count, value in named("positions").items()},
        named("edit"),
    )


def _check(recording: Recording, family: Family, model: Model) -> None:
    """Raise unless a recording has all that the program of its request runs and decides."""
    request, images = recording.request(family, model), len(recording.seeds)
    if len(recording.condition) != images:
        raise ValueError(f"{len(recording.condition)} conditions, {images} seeds")
    key = family.key(model, request, images, constants=False)
    program = family.program(model, key)
    found = {key.partition("/")[2]: value for key, value in recording.arrays().items()}
    wanted = _decided(family, model, key, program)
    for index, (run, shapes) in enumerate(program.runs()):
        for tensor in model.graphs[run.graph].outputs:
            kind = family.kinds.get(tensor, "other")
            if kind in METRICS:
                shape = shapes[tensor]
                if kind == "logits":
                    shape = (shape[0], len(found[f"positions/{shape[1]}"]), *shape[2:])
                wanted[f"runs/{index}/{run.graph}/{tensor}"] = shape
    for name, shape in wanted.items():
        if found[name].shape != shape:
            raise ValueError(f"{name} is {list(found[name].shape)}, not {list(shape)}")


def _decided(
    family: Family, model: Model, key: Any, program: Program
) -> dict[str, tuple[int, ...]]:
    """Shapes of what a request decides, by its names in the file."""
    blank = {name: np.zeros(spec.shape, spec.dtype) for name, spec in program.buffers.items()}
    decided = family.decisions(model, key, blank)
    return {f"decisions/{name}": value.shape for name, value in decided.items()}
