"""What a preflight that found nothing has checked, what it has not, and the commands that follow.

Nothing here asks a builder or a GPU: what only these can tell is listed as such. Commands are
whole, to be pasted; on the device the bundle is a folder under its own name.
"""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from fewstep.build.capabilities import OPSETS, TENSORRT_SINCE, TITLES
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import MissingDependencyError
from fewstep.runtime.kernels.compile import KernelCompiler

if TYPE_CHECKING:
    from fewstep.build.engines import Target
    from fewstep.build.pipeline import BuildRequest


_KNOWN = {"tensorrt": "documented for TensorRT 10.3 … 11", "tensorrt-rtx": "measured with 1.7.1"}
"""Where the rules are from that graphs were held to, by backend."""


@dataclass(frozen=True)
class Step:
    """A command, and whether it is for this machine or for the device."""

    name: Literal["copy", "build", "verify", "bench"]
    where: Literal["here", "on the device"]
    command: str


@dataclass(frozen=True)
class Checklist:
    """``checked``: here. ``left``: to the device. ``steps``: what to do next, in order."""

    checked: tuple[str, ...]
    left: tuple[str, ...]
    steps: tuple[Step, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "checked": list(self.checked),
            "left": list(self.left),
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
    checked, left = _graphs(wanted), _asked_of_nobody(wanted)
    if request.with_kernels:
        compiled, others = _kernels(wanted)
        checked, left = checked + compiled, left + others
    return Checklist(tuple(checked), tuple(left), _steps(bundle, request, wanted))


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
        found.append("ranges: what float16 cannot hold on the golden rollouts stays fp32")
    return found


def _asked_of_nobody(wanted: Target) -> list[str]:
    since = ""
    if wanted.backend == "tensorrt":
        first = [f"{TENSORRT_SINCE.get(each, '10.3')} for {each}" for each in wanted.capabilities]
        since = f", from version {', '.join(first)},"
    return [
        f"whether the builder of {TITLES[wanted.backend]}{since} takes the graphs",
        "the memory that building takes, and running",
        "results and times on the GPU",
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
    done = f"CUDA kernels: {compiler.version} compiles them for {', '.join(fitting)}"
    rest = f"whether the CUDA kernels compile for {', '.join(others)}, unknown to"
    return [done] if fitting else [], [f"{rest} {compiler.version}"] if others else []


def _steps(bundle: Bundle, request: BuildRequest, wanted: Target) -> tuple[Step, ...]:
    path = bundle.path.resolve()
    rsync = ["rsync", "--archive", "--checksum", str(path), "USER@DEVICE:"]
    copy = Step("copy", "here", shlex.join(rsync))
    if wanted.backend == "tensorrt":
        first = (copy, Step("build", "on the device", _build(path.name, request, wanted)))
    else:
        first = (Step("build", "here", _build(str(path), request, wanted)), copy)
    running = [path.name, "--backend", wanted.backend, "--device", "cuda"]
    running += ["--precision", wanted.precision]
    verify = ["fewstep", "verify", *running, "--report", "verify.md"]
    bench = ["fewstep", "bench", *running, "--runs", "50", "--json", "bench.json"]
    return (
        *first,
        Step("verify", "on the device", shlex.join(verify)),
        Step("bench", "on the device", shlex.join(bench)),
    )


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
