"""What is wrong with graphs, targets and profiles, found before a builder runs.

TensorRT's messages name the wrong thing or nothing: an empty file parses as a network without
layers, profiles that contradict each other only leave a line in the log, and an operator without
an importer is "Plugin not found". So everything that can be known from the files is checked here,
for all graphs, and each problem names its offenders and what to do about them.

Per graph: its profiles, then its file (hash, ONNX, weights kept in other files), then the ONNX
model (opset, operators, inputs and outputs), and only where that is sound, its types.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto

from fewstep.build.capabilities import (
    OPSETS,
    STANDARD,
    TITLES,
    Demand,
    absent_operators,
    demands,
    inferred,
    not_finite,
    products,
    stored_bytes,
    tensors,
    type_name,
    unusable_quantization,
    version,
)
from fewstep.build.second_opinion import second_opinion
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.engines.compatibility import RTX_CAPABILITIES
from fewstep.runtime.errors import BundleError, EngineError, RequestError, choose
from fewstep.runtime.records import GraphInfo, ShapeRange, TensorInfo

Profiles = Sequence[Mapping[str, ShapeRange]]

_SHOWN = 5
_FLOATS = ("fp32", "fp16", "bf16")
_SYMMETRIC = "quantize symmetrically to int8, as fewstep calibrate quantize does"
_UNSOUND = (
    *(onnx.checker.ValidationError, onnx.shape_inference.InferenceError),
    *(OSError, RuntimeError, TypeError, ValueError),
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


def preflight(
    bundle: Bundle,
    *,
    backend: str,
    precision: str,
    compute_capabilities: Sequence[str],
    profiles: Mapping[str, Profiles],
) -> tuple[Problem, ...]:
    """Everything that would stop a build of the graphs in one precision.

    Args:
        bundle: its graphs are read, nothing is changed.
        backend: ``tensorrt`` or ``tensorrt-rtx``.
        precision: of the graphs.
        compute_capabilities: targets; for ``tensorrt`` those of the devices, if known.
        profiles: by graph, the optimization profiles: a range by input in each.

    Raises:
        RequestError: another backend.
    """
    if backend not in TITLES:
        raise RequestError(choose("backend", backend, TITLES))
    found = list(_targets(bundle, backend, precision, compute_capabilities))
    if precision not in bundle.precisions:
        return (*found, _absent_precision(bundle, precision))
    names = bundle.manifest.graphs
    for name in sorted(profiles.keys() - names.keys()):
        found.append(Problem(name, "profiles for a graph", (), choose("graph", name, names)))
    usable = tuple(each for each in compute_capabilities if re.fullmatch(r"\d+\.\d", each))
    for name in names:
        graph = _Graph(bundle, name, bundle.graph(name, precision), backend, precision, usable)
        found += _wrong_profiles(graph, profiles.get(name, ()))
        found += _wrong_file(graph)
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
    backend: str
    precision: str
    capabilities: tuple[str, ...]

    @property
    def title(self) -> str:
        return TITLES[self.backend]

    @property
    def again(self) -> str:
        """How to make the graph once more."""
        if making := self.bundle.making(self.precision):
            return f"make it again: {making} --force"
        command = self.bundle.manifest.provenance.command
        return f"copy the bundle again, or make it again, as before: {command}"

    def problem(self, what: str, offenders: Sequence[str], remedy: str) -> Problem:
        return Problem(self.name, what, tuple(offenders), remedy)


def _targets(
    bundle: Bundle, backend: str, precision: str, capabilities: Sequence[str]
) -> Iterator[Problem]:
    command = f"{_build(bundle)} --precision {precision} --backend"
    some = f"{command} {backend} --compute-capability 8.6 8.9"
    odd = tuple(each for each in capabilities if not re.fullmatch(r"\d+\.\d", each))
    if odd:
        yield Problem("", "expected compute capabilities such as 8.9, received", odd, some)
    if backend != "tensorrt-rtx":
        return
    if not capabilities:
        what = "expected compute capabilities to build for, received none"
        yield Problem("", what, (), f"name those of the GPUs that will run it: {some}")
    others = tuple(each for each in capabilities if each not in (*RTX_CAPABILITIES, *odd))
    if others:
        known = ", ".join(RTX_CAPABILITIES)
        what = f"TensorRT-RTX builds for compute capability {known}, received"
        remedy = f"build on the device itself: {command} tensorrt"
        yield Problem("", what, others, remedy)


def _build(bundle: Bundle) -> str:
    return f"fewstep build {shlex.quote(str(bundle.path))}"


def _absent_precision(bundle: Bundle, precision: str) -> Problem:
    what = choose("precision", precision, bundle.precisions)
    remedy = "build one that the bundle has, or make"
    if not bundle.making(precision):
        precision = "fp16"
    remedy += f" {precision} graphs with: {bundle.making(precision)}"
    return Problem("", what, (), remedy)


def _wrong_profiles(graph: _Graph, profiles: Profiles) -> Iterator[Problem]:
    varying = [name for name, info in graph.info.inputs.items() if _varies(info)]
    if varying and not profiles:
        what = "expected an optimization profile for inputs whose shape varies, received none"
        yield graph.problem(what, varying, "give every such input a range of shapes")
    for index, profile in enumerate(profiles):
        for what, offenders, remedy in _wrong_profile(graph.info.inputs, varying, profile):
            yield graph.problem(f"profile {index}, {what}", offenders, remedy)


def _wrong_profile(
    inputs: Mapping[str, TensorInfo], varying: Sequence[str], profile: Mapping[str, ShapeRange]
) -> Iterator[tuple[str, Sequence[str], str]]:
    if missing := [name for name in varying if name not in profile]:
        yield "inputs without a range", missing, "give every input whose shape varies a range"
    if foreign := [name for name in profile if name not in inputs]:
        yield "ranges for inputs that do not exist", foreign, f"the inputs are {', '.join(inputs)}"
    sizes: dict[str, dict[tuple[int, int, int], list[str]]] = {}
    for name in (each for each in profile if each in inputs):
        shape, limits = inputs[name].shape, profile[name]
        what = _wrong_range(shape, limits)
        if what:
            yield what, [name], f"the bundle states the shape {list(shape)}"
            continue
        for axis, size in enumerate(shape):
            if isinstance(size, str):
                three = (limits.min[axis], limits.opt[axis], limits.max[axis])
                sizes.setdefault(size, {}).setdefault(three, []).append(name)
    for size, ranges in sizes.items():
        if len(ranges) > 1:
            said = [f"{'/'.join(names)} {list(three)}" for three, names in ranges.items()]
            what = f"dimension '{size}' is one and the same, but has several [min, opt, max]"
            yield what, said, f"give '{size}' the same range in every input"


def _wrong_range(shape: tuple[int | str, ...], limits: ShapeRange) -> str:
    three = (limits.min, limits.opt, limits.max)
    said = f"received min {list(limits.min)}, opt {list(limits.opt)}, max {list(limits.max)}"
    if any(len(each) != len(shape) for each in three):
        return f"expected {len(shape)} dimensions, {said}"
    for size, low, best, high in zip(shape, *three, strict=True):
        if not low <= best <= high:
            return f"expected min ≤ opt ≤ max, {said}"
        if not isinstance(size, str) and (low, high) != (size, size):
            return f"expected the fixed size {size}, {said}"
    return ""


def _varies(info: TensorInfo) -> bool:
    return any(isinstance(size, str) for size in info.shape)


def _wrong_file(graph: _Graph) -> Iterator[Problem]:
    """Problems of a graph's file; each kind of check needs the ones before it."""
    try:
        path = graph.bundle.graph_path(graph.name, graph.precision)
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
    oldest, newest = OPSETS[graph.backend]
    for each in model.opset_import:
        if each.domain in STANDARD and not oldest <= each.version <= newest:
            what = f"{graph.title} reads opset {oldest} to {newest}, received {each.version}"
            remedy = "export with opset 20, as fewstep does, or convert with onnx.version_converter"
            yield graph.problem(what, (), remedy)


def _wrong_operators(graph: _Graph, model: onnx.ModelProto, path: Path) -> Iterator[Problem]:
    """Operators that the backend lacks, in one problem per remedy."""
    found = absent_operators(model, graph.backend)
    said = second_opinion(path, graph.backend) if found else None
    for remedy, nodes in found.items():
        opinion = f" (its parser says: {said})" if said else ""
        said = None  # once is enough
        yield graph.problem(f"operators that {graph.title} cannot build", nodes, remedy + opinion)


def _wrong_weights(graph: _Graph, model: onnx.GraphProto, path: Path) -> Iterator[Problem]:
    """Weights that are kept in other files than those that were just hashed."""
    files = {graph.bundle.locate(name) for name in graph.info.external}
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
    odd = [each for each in products(inside) if each.tensors not in ("", *_FLOATS)]
    if odd:
        kinds = ", ".join(sorted({each.tensors for each in odd}))
        what = f"expected matrix products of {', '.join(_FLOATS)} tensors, received {kinds}"
        yield graph.problem(what, [each.name for each in odd], "cast their inputs to fp32")
    for demand in demands(inside, graph.backend):
        yield from _out_of_reach(graph, demand)


def _out_of_reach(graph: _Graph, demand: Demand) -> Iterator[Problem]:
    below = [each for each in graph.capabilities if version(each) < version(demand.lowest)]
    if not below:
        return
    said = ", ".join(below)
    what = f"{demand.what} need compute capability {demand.lowest} or newer, received {said}"
    make = f"{_build(graph.bundle)} --precision fp16"
    remedy = f"use fp16 graphs: {make}"
    if demand.kind == "fp32":
        remedy = f"make fp16 graphs without fp32 heads: {make} --no-fp32-heads --force"
        if graph.precision in ("int8", "fp8"):
            make = graph.bundle.making(graph.precision)
            remedy = "make what is not quantized fp16: "
            remedy += f"{make} --other-layers fp16 --no-fp32-heads"
    if graph.backend == "tensorrt-rtx":
        remedy += f"; or leave {said} out of --compute-capability"
    yield graph.problem(what, demand.nodes, remedy)
