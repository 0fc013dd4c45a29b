"""What is wrong with graphs, targets and profiles, found before a builder runs.

TensorRT's messages name the wrong thing or nothing: an empty file parses as a network without
layers, profiles that contradict each other only leave a line in the log, and an operator without
an importer is "Plugin not found". So everything that can be known from the files is checked here,
for all graphs, and each problem names its offenders and what to do about them.

Per graph: its profiles, then its file (hash, ONNX, weights kept in other files), then the ONNX
model (opset, operators, inputs and outputs), and only where that is sound, its types. The fp32
graph that it was made of is hashed as well.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto

from fewstep.build.capabilities import (
    Demand,
    demands,
    mac_operators,
    unusable_quantization,
    version,
)
from fewstep.build.graphs import inferred, not_finite, stored_bytes, tensors, type_name
from fewstep.build.opset import OPSETS, absent_operators, unread_opsets
from fewstep.build.parser_report import parser_report
from fewstep.build.profiles import Profile, profiles, wrong_profiles
from fewstep.build.target import TITLES, Target
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import BundleError, EngineError
from fewstep.runtime.records import GraphInfo, TensorInfo

_SHOWN = 5
_FLOATS = ("fp32", "fp16", "bf16")
_SYMMETRIC = "quantize symmetrically to int8, as fewstep calibrate quantize does"
_UNSOUND = (
    onnx.checker.ValidationError,
    onnx.shape_inference.InferenceError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What onnx raises for models that it does not like; the last four from its C++ part."""


@dataclass(frozen=True)
class Problem:
    """One reason not to build.

    ``graph``: its name in the bundle, "" where it concerns all. ``what``: expected and received.
    ``offenders``: nodes, tensors, inputs or values. ``remedy``: what to do.
    """

    graph: str
    what: str
    offenders: tuple[str, ...]
    remedy: str

    def __str__(self) -> str:
        more = len(self.offenders) - _SHOWN
        names = ", ".join(self.offenders[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
        where = f"graph '{self.graph}': " if self.graph else ""
        return f"{where}{self.what}{f': {names}' if names else ''}; {self.remedy}"


def require_buildable(bundle: Bundle, wanted: Target) -> dict[str, tuple[Profile, ...]]:
    """Preflight of engines: the optimization profiles of every graph, if nothing is in the way.

    Raises:
        BundleError: no graphs in this precision, or a file that programs are made of is damaged.
        EngineError: names everything that the builder would stumble over.
    """
    made = profiles(bundle, wanted.options)
    require(preflight(bundle, wanted, made))
    return made


def preflight(
    bundle: Bundle, wanted: Target, profiles: Mapping[str, Sequence[Profile]]
) -> tuple[Problem, ...]:
    """Everything that would stop a build of the graphs in one precision.

    Args:
        bundle: its graphs are read, those in fp32 of which they were made are hashed, nothing is
            changed.
        wanted: what is to be built, of :func:`fewstep.build.target.target`; the bundle must have
            graphs in its precision.
        profiles: optimization profiles by graph.
    """
    found: list[Problem] = []
    for name in bundle.manifest.graphs:
        graph = _Graph(bundle, name, bundle.graph(name, wanted.precision), wanted)
        for what, inputs, remedy in wrong_profiles(graph.info, profiles.get(name, ())):
            found.append(graph.problem(what, inputs, remedy))
        found += _wrong_file(graph)
        found += _wrong_source(graph)
    return tuple(found)


def require(problems: Sequence[Problem]) -> None:
    """Raise if there are problems.

    Raises:
        EngineError: names all of them.
    """
    if len(problems) == 1:
        raise EngineError(str(problems[0]))
    if problems:
        listed = "\n".join(f"({number}) {each}" for number, each in enumerate(problems, 1))
        raise EngineError(f"{len(problems)} problems before building:\n{listed}")


@dataclass(frozen=True)
class _Graph:
    """A graph under examination, and for what."""

    bundle: Bundle
    name: str
    info: GraphInfo
    wanted: Target

    @property
    def title(self) -> str:
        return TITLES[self.wanted.backend]

    @property
    def again(self) -> str:
        """How to make the graph once more."""
        if making := self.bundle.making(self.wanted.precision):
            return f"make it again: {making} --force"
        return self.export_again

    @property
    def export_again(self) -> str:
        command = self.bundle.manifest.provenance.command
        return f"copy the bundle again, or make it again, as before: {command}"

    def problem(self, what: str, offenders: Sequence[str], remedy: str) -> Problem:
        return Problem(self.name, what, tuple(offenders), remedy)


def _wrong_file(graph: _Graph) -> Iterator[Problem]:
    """Problems of a graph's file; each kind of check needs the ones before it."""
    try:
        path = graph.bundle.graph_path(graph.name, graph.wanted.precision)
    except BundleError as error:  # its own remedy follows a semicolon; ours knows more
        yield graph.problem(str(error).partition("; ")[0], (), graph.again)
        return
    try:
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except (DecodeError, OSError, ValueError) as error:
        yield graph.problem(f"{path.name} is not an ONNX file ({error})", (), graph.again)
        return
    if what := _nothing_in(model.graph):
        yield graph.problem(f"{path.name} has {what}: no ONNX graph", (), graph.again)
        return
    basic = [*_wrong_weights(graph, model.graph, path), *_wrong_opset(graph, model)]
    yield from basic
    yield from _wrong_operators(graph, model, path)
    unsound = [] if basic else list(_unsound(graph, path))
    yield from unsound
    if not basic and not unsound:
        yield from _wrong_interface(graph, model.graph)
        yield from _wrong_types(graph, model, path)


def _wrong_source(graph: _Graph) -> Iterator[Problem]:
    """Damage of the fp32 graph that a graph was made of: it would be found at the next build."""
    own, source = set(graph.info.files), graph.bundle.graph(graph.name)
    for file, problem in graph.bundle.damage(set(source.files) - own).items():
        yield graph.problem(f"{file}, the graph in fp32, {problem}", (), graph.export_again)


def _nothing_in(model: onnx.GraphProto) -> str:
    parts = {"nodes": model.node, "inputs": model.input, "outputs": model.output}
    absent = [name for name, part in parts.items() if not len(part)]
    return f"no {' and no '.join(absent)}" if absent else ""


def _unsound(graph: _Graph, path: Path) -> Iterator[Problem]:
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except _UNSOUND as error:
        said = " ".join(str(error).split())[:400]
        yield graph.problem(f"onnx.checker refuses {path.name}: {said}", (), graph.again)


def _wrong_opset(graph: _Graph, model: onnx.ModelProto) -> Iterator[Problem]:
    oldest, newest = OPSETS[graph.wanted.backend]
    for received in unread_opsets(model, graph.wanted.backend):
        what = f"{graph.title} reads opset {oldest} to {newest}, received {received}"
        remedy = "export with opset 20, as fewstep does, or convert with onnx.version_converter"
        yield graph.problem(what, (), remedy)


def _wrong_operators(graph: _Graph, model: onnx.ModelProto, path: Path) -> Iterator[Problem]:
    """Operators that the backend lacks, in one problem per remedy."""
    found = absent_operators(model, graph.wanted.backend)
    said = parser_report(path, graph.wanted.backend) if found else None
    for remedy, nodes in found.items():
        report = f" (its parser says: {said})" if said else ""
        said = None  # once is enough
        yield graph.problem(f"operators that {graph.title} cannot build", nodes, remedy + report)


def _wrong_weights(graph: _Graph, model: onnx.GraphProto, path: Path) -> Iterator[Problem]:
    """Weights that are kept in other files than those that were just hashed."""
    files = {graph.bundle.locate(name).resolve() for name in graph.info.external}
    found: dict[str, list[str]] = {}
    for tensor in tensors(model):
        if what := _wrong_place(tensor, path.parent, files):
            found.setdefault(what, []).append(tensor.name)
    for what, names in found.items():
        yield graph.problem(what, names, graph.again)


def _wrong_place(tensor: TensorProto, folder: Path, files: Collection[Path]) -> str:
    if tensor.data_location != TensorProto.EXTERNAL:
        return ""
    place = {each.key: each.value for each in tensor.external_data}
    name = place.get("location", "")
    try:
        needed, file = stored_bytes(tensor), (folder / name).resolve()
        start, length = int(place.get("offset", 0)), int(place.get("length", needed))
    except (KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        return f"weights whose place cannot be read ({error})"
    if file not in files:
        known = ", ".join(sorted(each.name for each in files)) or "none"
        return f"weights in '{name}', expected in files that the manifest names: {known}"
    if start < 0 or length < needed or start + length > file.stat().st_size:
        return f"weights beyond the end of '{name}'"
    return ""


def _wrong_interface(graph: _Graph, model: onnx.GraphProto) -> Iterator[Problem]:
    """Inputs and outputs that are not those of the manifest, which the runtime binds."""
    weights = {each.name for each in model.initializer}
    inputs = [each for each in model.input if each.name not in weights]
    for kind, values, infos in (
        ("input", inputs, graph.info.inputs),
        ("output", model.output, graph.info.outputs),
    ):
        found = {each.name: each.type.tensor_type for each in values}
        if wrong := sorted(found.keys() ^ infos.keys()):
            what = f"{kind}s that only the graph or only the manifest has"
            yield graph.problem(what, wrong, graph.again)
        for name in sorted(found.keys() & infos.keys()):
            if what := _difference(infos[name], found[name], kind):
                yield graph.problem(f"{kind} '{name}': {what}", (), graph.again)


def _difference(info: TensorInfo, found: onnx.TypeProto.Tensor, kind: str) -> str:
    """The manifest may know more of an output's shape than the graph says, not of an input's."""
    sizes = [each.dim_value if each.HasField("dim_value") else "?" for each in found.shape.dim]
    stated = ["?" if isinstance(size, str) else size for size in info.shape]
    agrees = len(sizes) == len(stated) and all(
        a == b or (kind == "output" and b == "?") for a, b in zip(stated, sizes, strict=True)
    )
    received = type_name(found.elem_type)
    if agrees and received == info.dtype:
        return ""
    return f"expected {info.dtype} {stated}, received {received} {sizes}"


def _wrong_types(graph: _Graph, model: onnx.ModelProto, path: Path) -> Iterator[Problem]:
    """Types that no backend takes, or not the compute capabilities asked for."""
    weights = {each.name: each for each in model.graph.initializer}
    try:
        inside = inferred(model)
        refused = unusable_quantization(inside, weights, path.parent)
    except _UNSOUND as error:
        yield graph.problem(f"its types cannot be inferred ({error})", (), graph.again)
        return
    for what, nodes in refused.items():
        yield graph.problem(what, nodes, _SYMMETRIC)
    if broken := not_finite(model.graph):
        yield graph.problem("weights with NaN or infinite numbers", broken, graph.again)
    odd = [each for each in mac_operators(inside) if each.tensors not in ("", *_FLOATS)]
    if odd:
        kinds = ", ".join(sorted({each.tensors for each in odd}))
        what = (
            f"expected matmuls and convolutions of {', '.join(_FLOATS)} tensors, received {kinds}"
        )
        yield graph.problem(what, [each.name for each in odd], "cast their inputs to fp32")
    for demand in demands(inside, graph.wanted.backend):
        yield from _out_of_reach(graph, demand)


def _out_of_reach(graph: _Graph, demand: Demand) -> Iterator[Problem]:
    wanted, lowest = graph.wanted, version(demand.lowest)
    below = [each for each in wanted.capabilities if version(each) < lowest]
    if not below:
        return
    said = ", ".join(below)
    what = f"{demand.what} need compute capability {demand.lowest} or newer, received {said}"
    make = f"fewstep build {shlex.quote(str(graph.bundle.path))} --precision fp16"
    remedy = f"use fp16 graphs: {make}"
    if demand.kind == "fp32":
        remedy = f"make fp16 graphs without fp32 heads: {make} --no-fp32-heads --force"
        if wanted.precision in ("int8", "fp8"):
            make = graph.bundle.making(wanted.precision)
            remedy = "make what is not quantized fp16: "
            remedy += f"{make} --other-layers fp16 --no-fp32-heads"
    if wanted.backend == "tensorrt-rtx":
        remedy += f"; or leave {said} out of --compute-capability"
    yield graph.problem(what, demand.nodes, remedy)
