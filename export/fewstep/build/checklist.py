"""What a preflight that found nothing has checked, what it has not, and the commands that follow.

Nothing here asks a builder or a GPU: what only these can tell is listed as such. Commands are
whole, to be pasted, but for USER@DEVICE and PATH/TO/fewstep, a clone or wheel there; on the device
the bundle is a folder under its own name.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from fewstep.build.opset import OPSETS
from fewstep.build.target import TENSORRT_SINCE, TITLES, Target
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import MissingDependencyError
from fewstep.runtime.kernels.compile import KernelCompiler

if TYPE_CHECKING:
    from fewstep.build.pipeline import BuildRequest


_KNOWN = {"tensorrt": "documented for TensorRT 10.3 … 11", "tensorrt-rtx": "measured with 1.7.1"}
"""Where the rules are from that graphs were held to, by backend."""

_JETPACKS = {"8.7": ("JetPack 6", "12.6"), "11.0": ("JetPack 7", "13.0")}
"""What a Jetson runs, by compute capability, and the newest CUDA that its driver loads kernels of.
Orin may have JetPack 7 as well, from 7.2 on."""

_CLONE = "PATH/TO/fewstep"
"""What pip installs on a device that has no fewstep yet: a clone, or a wheel of it."""


@dataclass(frozen=True)
class Step:
    """A command, whether it is for this machine or for the device, and for which devices."""

    name: Literal["copy", "install", "build", "verify", "bench"]
    where: Literal["here", "on the device"]
    command: str
    note: str = ""


@dataclass(frozen=True)
class Checklist:
    """``checked``: now. ``left_here``: to the build on this machine. ``left_on_device``: to the
    device. ``steps``: what to do next, in order."""

    checked: tuple[str, ...]
    left_here: tuple[str, ...]
    left_on_device: tuple[str, ...]
    steps: tuple[Step, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "checked": list(self.checked),
            "left_here": list(self.left_here),
            "left_on_device": list(self.left_on_device),
            "steps": [asdict(step) for step in self.steps],
        }


def checklist(bundle: Bundle, request: BuildRequest, wanted: Target) -> Checklist:
    """The checklist of a preflight without problems.

    Args:
        bundle: that was examined.
        request: what is to be built of it.
        wanted: for what.

    Raises:
        EngineError: NVRTC refuses the kernels.
    """
    checked, building = _graphs(wanted), _left_to_the_builder(wanted)
    here = wanted.backend == "tensorrt-rtx"
    on_device = [*([] if here else building), "results, times and memory on the GPU"]
    if request.with_kernels:
        compiled, others = _kernels(wanted)
        checked, on_device = checked + compiled, on_device + others
    return Checklist(
        checked=tuple(checked),
        left_here=tuple(building if here else ()),
        left_on_device=tuple(on_device),
        steps=tuple(_steps(bundle, request, wanted)),
    )


def _graphs(wanted: Target) -> list[str]:
    oldest, newest = OPSETS[wanted.backend]
    best = ", ".join(map(str, wanted.options.opt_batch))
    found = [
        f"{wanted.precision} graphs for compute capability {', '.join(wanted.capabilities)}: "
        f"hashes, inputs and outputs; opset {oldest} to {newest}, operators and types as "
        f"{_KNOWN[wanted.backend]}",
        f"optimization profiles: batch 1 to {wanted.options.max_batch}, tuned for {best}",
    ]
    if wanted.precision == "fp16":
        found.append("overflow: what float16 cannot hold on the golden rollouts stays fp32")
    return found


def _left_to_the_builder(wanted: Target) -> list[str]:
    since = ""
    if wanted.backend == "tensorrt":
        first = [f"{TENSORRT_SINCE.get(each, '10.3')} for {each}" for each in wanted.capabilities]
        since = f", from version {', '.join(first)},"
    return [
        f"whether the builder of {TITLES[wanted.backend]}{since} takes the graphs",
        "the time and memory that building takes",
    ]


def _kernels(wanted: Target) -> tuple[list[str], list[str]]:
    """What is known of the CUDA kernels, and what is not."""
    try:
        compiler = KernelCompiler()
    except MissingDependencyError as error:
        return [], [f"whether the CUDA kernels compile: {error}"]
    known = compiler.known()
    fitting = [each for each in wanted.capabilities if each in known]
    others = [each for each in wanted.capabilities if each not in known]
    compiler.compile(fitting)
    checked, left = [], []
    if fitting:
        done = f"CUDA kernels: {compiler.version} compiles them for {', '.join(fitting)}"
        checked.append(done)
    if others:
        rest = f"whether the CUDA kernels compile for {', '.join(others)}, unknown to"
        left.append(f"{rest} {compiler.version}")
    for capability in wanted.capabilities:
        if capability in _JETPACKS:
            system, cuda = _JETPACKS[capability]
            left.append(
                f"whether the CUDA kernels load on {capability}: with {system} they have to be "
                f"compiled by NVRTC {cuda} or older"
            )
    return checked, left


def _steps(bundle: Bundle, request: BuildRequest, wanted: Target) -> Iterator[Step]:
    path = bundle.path.resolve()
    rsync = ["rsync", "--archive", "--checksum", str(path), "USER@DEVICE:"]
    copy = Step("copy", "here", shlex.join(rsync))
    if wanted.backend == "tensorrt":
        yield copy
        yield from _installs(request, wanted)
        yield Step("build", "on the device", _build(path.name, request, wanted))
    else:
        yield Step("build", "here", _build(str(path), request, wanted))
        yield copy
        yield from _installs(request, wanted)
    running = [path.name, "--backend", wanted.backend, "--device", "cuda"]
    running += ["--precision", wanted.precision]
    verify = ["fewstep", "verify", *running, "--report", "verify.md"]
    bench = ["fewstep", "bench", *running, "--report", "bench.json"]
    yield Step("verify", "on the device", shlex.join(verify))
    yield Step("bench", "on the device", shlex.join(bench))


def _installs(request: BuildRequest, wanted: Target) -> Iterator[Step]:
    """What the device needs: a command for each Jetson among the targets, one for all other GPUs.

    A Jetson's driver is part of its system, and loads no kernels of a newer compiler.
    """
    jetsons = [each for each in wanted.capabilities if each in _JETPACKS]
    for capability in jetsons:
        system, cuda = _JETPACKS[capability]
        old = cuda.startswith("12.")
        extras, pinned = ["cuda12" if old else "cuda", "build"], list[str]()
        if request.with_kernels:
            extras.append("kernels12" if old else "kernels")
            names = ("nvidia-cuda-nvrtc", "nvidia-cuda-runtime")
            pinned = [f"{each}{'-cu12' if old else ''}=={cuda}.*" for each in names]
        command = ["pip", "install", f"{_CLONE}[{','.join(extras)}]", *pinned]
        note = f"{capability} with {system}, which brings TensorRT: python3-libnvinfer"
        yield Step("install", "on the device", shlex.join(command), note)
    if len(jetsons) < len(wanted.capabilities):
        packages = [f"{_CLONE}[cuda,rtx]"]
        if wanted.backend == "tensorrt":
            packages = [
                f"{_CLONE}[cuda,build{',kernels' if request.with_kernels else ''}]",
                "tensorrt",
            ]
        note = "a driver of CUDA 13; cuda12 and kernels12 for one of CUDA 12"
        yield Step("install", "on the device", shlex.join(["pip", "install", *packages]), note)


def _build(bundle: str, request: BuildRequest, wanted: Target) -> str:
    options = wanted.options
    words = ["fewstep", "build", bundle, "--backend", wanted.backend]
    if wanted.backend == "tensorrt-rtx":
        words += ["--compute-capability", *wanted.capabilities]
    words += ["--precision", wanted.precision, "--max-batch", str(options.max_batch)]
    for best in options.opt_batch:
        words += ["--opt-batch", str(best)]
    if options.optimization_level is not None:
        words += ["--optimization-level", str(options.optimization_level)]
    if options.workspace_mib is not None:
        words += ["--workspace", str(options.workspace_mib)]
    for name, value in (("fp32-heads", request.fp32_heads), ("kernels", request.kernels)):
        if value is not None:
            words.append(f"--{name}" if value else f"--no-{name}")
    return shlex.join(words)
