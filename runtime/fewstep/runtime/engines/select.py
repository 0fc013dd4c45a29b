"""Which backend runs a bundle here: TensorRT, TensorRT-RTX, or one of those for the CPU.

A backend named by the caller is used or its error is raised. ``auto`` takes the first that opens
and keeps the others' reasons; of those for the CPU, the fastest (``on_cpu.py``).
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, get_args

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.devices import Device, Workspace
from fewstep.runtime.engines import Engine, on_cpu
from fewstep.runtime.engines.compatibility import rebuild_command, require_header, why_not
from fewstep.runtime.engines.on_gpu import EnginesOnGpu, Gpu
from fewstep.runtime.engines.onnxruntime import OnnxRuntimeEngine
from fewstep.runtime.engines.tensorrt_api import MODULES, TensorRt, load
from fewstep.runtime.errors import EngineError, FewstepError, RequestError, choose
from fewstep.runtime.machine import require_threads
from fewstep.runtime.records import EngineBackend, EngineInfo, Precision

if TYPE_CHECKING:
    from fewstep.runtime.engines.tensorrt import TensorRtEngine

BACKENDS = ("auto", *MODULES, *on_cpu.BACKENDS)
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class Wanted:
    """What the caller asked for; ``auto`` leaves backend, device or precision open."""

    backend: str = "auto"
    device: str = "auto"
    ordinal: int = 0
    precision: str = "auto"
    threads: int = 0
    profile: bool = False

    @classmethod
    def parse(
        cls, backend: str, device: str, precision: str, threads: int = 0, profile: bool = False
    ) -> Wanted:
        """Check names and the number of threads, and split ``cuda:1``.

        Raises:
            RequestError: an unknown backend or device, or no number of threads.
        """
        require_threads(threads)
        if backend not in BACKENDS:
            raise RequestError(choose("backend", backend, BACKENDS))
        named = re.fullmatch(r"(auto|cpu|cuda)(?:(?<=cuda):([0-9]+))?", device)
        if named is None:
            raise RequestError(choose("device", device, DEVICES))
        return cls(backend, named[1], int(named[2] or 0), precision, threads, profile)


@dataclass
class Opened:
    """A device with the engines of a bundle on it.

    ``max_batch``: most images that the engines decode together, if they have a limit.
    ``passed_over``: why the backends before the one that was taken are not used. ``scratch``:
    memory that the engines share, closed after them. ``on_gpu``: TensorRT's engines as the bundle
    records them. ``notes``: what to tell of the choice, a line each.
    """

    backend: str
    precision: str
    device: Device
    engines: dict[str, Engine]
    max_batch: int | None = None
    scratch: Workspace | None = None
    passed_over: dict[str, str] = field(default_factory=dict)
    on_gpu: EnginesOnGpu | None = None
    notes: tuple[str, ...] = ()

    def close(self) -> None:
        """Release everything."""
        with contextlib.ExitStack() as stack:
            stack.callback(self.device.close)
            if self.scratch is not None:
                stack.callback(self.scratch.close)
            for engine in self.engines.values():
                stack.callback(engine.close)


def open_backend(bundle: Bundle, wanted: Wanted) -> Opened:
    """Open the first backend that works.

    Raises:
        RequestError: a backend that does not run on this device, a precision that nothing makes.
        FewstepError: of the backend asked for, or of the last that ``auto`` tries.
    """
    require_possible(bundle, wanted)
    passed_over = dict[str, str]()
    for backend in MODULES if wanted.device != "cpu" else ():
        if wanted.backend == backend:
            return _open(bundle, wanted, backend, "cuda")
        if wanted.backend == "auto":
            try:
                opened = _open(bundle, wanted, backend, "cuda")
            except FewstepError as error:
                passed_over[backend] = str(error)
            else:
                opened.passed_over = passed_over
                return opened
    try:
        opened = _open_other(bundle, wanted)
    except FewstepError as error:
        built = {info.backend for info in bundle.manifest.engines}
        others = [f"{name}: {why}" for name, why in passed_over.items() if name in built]
        if not others:
            raise
        message = f"{error}. Engines that cannot be used: {'; '.join(others)}"
        raise type(error)(message) from (error.__cause__ or error)
    opened.passed_over = {**passed_over, **opened.passed_over}
    return opened


def _open_other(bundle: Bundle, wanted: Wanted) -> Opened:
    """ONNX Runtime on the GPU that was asked for, or what runs on the CPU."""
    if wanted.device == "cuda":
        return _open(bundle, wanted, "onnxruntime", "cuda")
    if wanted.backend != "auto":
        return _open(bundle, wanted, wanted.backend, "cpu")
    choice = on_cpu.chosen(
        bundle, wanted.precision, wanted.threads, functools.partial(_image_ms, bundle, wanted)
    )
    opened = _open(bundle, wanted, choice.backend, "cpu")
    opened.passed_over, opened.notes = {**choice.passed_over}, choice.notes
    return opened


def _image_ms(bundle: Bundle, wanted: Wanted, backend: str) -> float:
    """Milliseconds of an image's graphs by a backend on the CPU."""
    from fewstep.runtime.trial import image_ms

    with contextlib.closing(_open(bundle, wanted, backend, "cpu")) as opened:
        return image_ms(bundle, opened.device, opened.engines)


def require_possible(bundle: Bundle, wanted: Wanted) -> None:
    """Refuse what can be refused without opening anything.

    Raises:
        RequestError: a backend that does not run on this device, a precision that nothing makes.
    """
    _require_known(bundle, wanted.precision)
    places = {"openvino": "cpu"} | dict.fromkeys(MODULES, "cuda")
    place = places.get(wanted.backend, wanted.device)
    if wanted.device not in ("auto", place):
        raise RequestError(
            f"backend {wanted.backend} needs device {place}, got {wanted.device}; leave the device "
            "out, or use backend onnxruntime"
        )


def _require_known(bundle: Bundle, precision: str) -> None:
    """Refuse a precision that there is not, with the nearest one and what makes it."""
    if precision in ("auto", *bundle.precisions) or bundle.making(precision):
        return
    spelled = precision.lower().replace("bfloat", "bf").replace("float", "fp")
    known = get_args(Precision)
    near = next(iter(difflib.get_close_matches(spelled, known, n=1, cutoff=0.5)), "")
    hint = f" Did you mean '{near}'?" if near else ""
    if near and near not in bundle.precisions:
        hint += f" Make its graphs with: {bundle.making(near)}"
    raise RequestError(
        f"unknown precision '{precision}'; expected one of: {', '.join(known)}.{hint}"
    )


def open_engine(bundle: Bundle, graph: str, device: Device, threads: int, precision: str) -> Engine:
    """ONNX Runtime's engine of one graph on a device; in fp32 of one with int8 convolutions."""
    record = bundle.graph(graph, precision).quantization
    if record is not None and record.convolutions:
        precision = "fp32"  # it computes them in fp32 all the same, and slower: performance.md
    path, info = bundle.graph_path(graph, precision), bundle.graph(graph, precision)
    return OnnxRuntimeEngine(graph, path, info, threads=threads, cuda=device.cuda_stream)


def usable_engines(
    bundle: Bundle, backend: EngineBackend, precision: str, version: str, capability: str
) -> dict[str, EngineInfo]:
    """The engine of every graph for this backend and GPU, in one precision.

    Args:
        bundle: the bundle.
        backend: the engines' backend.
        precision: theirs; ``auto`` is the one built last of those that run here.
        version: of the backend's module here.
        capability: the GPU's compute capability.

    Raises:
        EngineError: there is none that runs here; the message says what there is, what is here,
            and the command that builds what is missing.
    """
    built = [info for info in bundle.manifest.engines if info.backend == backend]
    if precision != "auto":
        built = [info for info in built if info.precision == precision]
    if not built:
        raise no_engines(bundle, backend, precision)

    def problem_of(info: EngineInfo) -> str:
        return why_not(info, _hash(bundle, info), version, capability)

    needed, problem = set(_graphs(bundle)), ""
    for chosen in dict.fromkeys(info.precision for info in reversed(built)):
        found: dict[str, EngineInfo] = {}
        for info in built:
            if info.precision == chosen and not problem_of(info):
                found[info.graph] = info
        if found.keys() >= needed:
            return {name: found[name] for name in needed}
        absent = sorted(needed - found.keys())
        same = [info for info in reversed(built) if info.precision == chosen]
        last = next((info for info in same if info.graph in absent), same[0])
        why = problem_of(last) or f"of {', '.join(absent)} there is none"
        command = rebuild_command(bundle.path, last, capability)
        problem = problem or f"the {chosen} engine {last.file} {why}; build it here with: {command}"
    raise EngineError(f"{bundle.path}: {problem}")


def _hash(bundle: Bundle, info: EngineInfo) -> str:
    """Of the graph that an engine belongs to; empty if the bundle does not have it any more."""
    known = info.precision in bundle.precisions
    return bundle.graph_sha256(info.graph, info.precision) if known else ""


def no_engines(bundle: Bundle, backend: str, precision: str) -> EngineError:
    """The error for a bundle without engines of a backend."""
    kind = "" if precision == "auto" else f"{precision} "
    return EngineError(
        f"{bundle.path} has no {kind}engines of {backend}; build them with: fewstep build "
        f"{shlex.quote(str(bundle.path))} --backend {backend}"
        f"{'' if precision == 'auto' else f' --precision {precision}'}"
    )


def _open(bundle: Bundle, wanted: Wanted, backend: str, kind: str) -> Opened:
    with contextlib.ExitStack() as stack:
        if backend in on_cpu.BACKENDS:
            opened = _open_graphs(bundle, wanted, backend, kind, stack)
        else:
            opened = _open_tensorrt(bundle, wanted, backend, stack)
        stack.pop_all()
        return opened


def _open_graphs(
    bundle: Bundle, wanted: Wanted, backend: str, kind: str, stack: contextlib.ExitStack
) -> Opened:
    """Engines that the backend makes of the graphs as it opens."""
    precision = "fp32" if wanted.precision == "auto" else wanted.precision
    device = open_device(bundle, kind, wanted.ordinal, wanted.profile)
    stack.callback(device.close)
    engines: dict[str, Engine] = {}
    for name in _graphs(bundle):
        if backend == "openvino":
            engines[name] = on_cpu.open_openvino(bundle, name, precision, wanted.threads)
        else:
            engines[name] = open_engine(bundle, name, device, wanted.threads, precision)
        stack.callback(engines[name].close)
    return Opened(backend, precision, device, engines)


def _open_tensorrt(
    bundle: Bundle, wanted: Wanted, backend: str, stack: contextlib.ExitStack
) -> Opened:
    name: EngineBackend = "tensorrt" if backend == "tensorrt" else "tensorrt-rtx"
    if not any(info.backend == name for info in bundle.manifest.engines):
        raise no_engines(bundle, name, wanted.precision)
    gpu = Gpu.at(wanted.ordinal)  # first: without a driver, an absent module is no news
    api = load(name)
    infos = usable_engines(bundle, name, wanted.precision, api.version, gpu.compute_capability)
    device = open_device(bundle, "cuda", wanted.ordinal, wanted.profile)
    stack.callback(device.close)
    engines, scratch = _open_engines(bundle, api, infos, device, stack)
    most = min(info.options.max_batch for info in infos.values())
    precision, on_gpu = next(iter(infos.values())).precision, EnginesOnGpu(infos, gpu)
    return Opened(name, precision, device, engines, most, scratch, on_gpu=on_gpu)


def _open_engines(
    bundle: Bundle,
    api: TensorRt,
    infos: Mapping[str, EngineInfo],
    device: Device,
    stack: contextlib.ExitStack,
) -> tuple[dict[str, Engine], Workspace]:
    """Engines that share one block of memory for their activations."""
    from fewstep.runtime.engines.tensorrt import share_scratch

    opened = {}
    for name in _graphs(bundle):
        opened[name] = _open_one(bundle, api, infos[name], device)
        stack.callback(opened[name].close)
    scratch = share_scratch(device, opened.values())
    stack.callback(scratch.close)
    return {**opened}, scratch


def _open_one(bundle: Bundle, api: TensorRt, info: EngineInfo, device: Device) -> TensorRtEngine:
    from fewstep.runtime.engines.tensorrt import EngineFile, TensorRtEngine

    stream = device.cuda_stream
    assert stream is not None
    path = bundle.verified(info.file)
    content = path.read_bytes()
    require_header(info, content)
    # Beside the engine, but never in the place of a file that the bundle has.
    kept = f"{info.file}.cache" not in bundle.manifest.files
    file = EngineFile(content, path.with_name(f"{path.name}.cache") if kept else None)
    return TensorRtEngine(api, info.graph, file, bundle.graph(info.graph, info.precision), stream)


def _graphs(bundle: Bundle) -> list[str]:
    """Graphs that the decode loop runs."""
    return list(dict.fromkeys(graph for graph, _ in bundle.manifest.model.tensor_shapes()))


def open_device(bundle: Bundle, kind: str, ordinal: int, profile: bool) -> Device:
    """The device; each kind needs packages that the other does without."""
    if kind == "cuda":
        from fewstep.runtime.devices.cuda import CudaDevice
        from fewstep.runtime.devices.cuda_driver import compute_capability, cuda_version
        from fewstep.runtime.kernels.cubins import load_cubin

        cubin = load_cubin(bundle, compute_capability(ordinal), cuda_version())
        return CudaDevice(cubin, ordinal=ordinal, profile=profile)
    from fewstep.runtime.devices.cpu import CpuDevice

    return CpuDevice()
