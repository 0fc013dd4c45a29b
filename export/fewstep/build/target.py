"""What engines are built for: a backend, a precision, and compute capabilities that it serves."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fewstep.runtime.devices.cuda_driver import compute_capability, device_name
from fewstep.runtime.engines.compatibility import RTX_CAPABILITIES
from fewstep.runtime.errors import DeviceError, FewstepError, RequestError, choose
from fewstep.runtime.probe import find_driver
from fewstep.runtime.records import BuildOptions, EngineBackend, Precision

TITLES: Mapping[str, str] = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}

TENSORRT_SINCE: Mapping[str, str] = {
    "7.5": "10.3",
    "8.0": "10.3",
    "8.6": "10.3",
    "8.7": "10.3",
    "8.9": "10.3",
    "9.0": "10.3",
    "10.0": "10.8",
    "12.0": "10.8",
    "10.1": "10.10",
    "11.0": "10.13",
    "10.3": "10.14",
    "12.1": "10.14",
}
"""Compute capabilities that TensorRT builds for, and its first version that does, 10.3 at the
earliest. 10.1 and 11.0 are one GPU, Thor: under CUDA 12 (DRIVE OS 7) and under CUDA 13 (JetPack 7).

Sources: NVIDIA's support matrices for TensorRT 10.0 to 10.6; the release notes of 10.5 (without
7.0, Volta), 10.8 (Blackwell), 10.14 (B300, DGX Spark) and of 10.10 for DRIVE OS 7.0.3; JetPack 7
has 10.13.
"""

TENSORRT_BEFORE: Mapping[str, str] = {
    "5.3": "Jetson Nano has JetPack 4 with TensorRT 8.2",
    "6.2": "Jetson TX2 has JetPack 4 with TensorRT 8.2",
    "7.2": "Jetson Xavier has JetPack 5 with TensorRT 8.5",
}
"""Compute capabilities of Jetsons whose last TensorRT is too old for fewstep."""


@dataclass(frozen=True)
class Target:
    """What engines are wanted for.

    ``capabilities``: compute capabilities. ``gpu``: name of the GPU that builds, for the backend
    that needs one.
    """

    backend: EngineBackend
    precision: Precision
    options: BuildOptions
    capabilities: tuple[str, ...]
    gpu: str | None = None


def target(
    backend: EngineBackend,
    precision: Precision,
    options: BuildOptions,
    capabilities: Sequence[str] = (),
    *,
    building: bool = True,
) -> Target:
    """Complete what is wanted with the GPU at hand, where the backend or the caller leaves it open.

    Args:
        backend: ``tensorrt`` or ``tensorrt-rtx``.
        precision: of graphs and engines.
        options: as the builder gets them.
        capabilities: compute capabilities, in the order given.
        building: whether engines will be built here. Where they are only checked, TensorRT needs
            no GPU, and any compute capability that it knows will do.

    Raises:
        RequestError: TensorRT cannot build for other GPUs, a compute capability that the backend
            does not know, or nothing says which are meant.
        DeviceError: TensorRT without a GPU.
    """
    wanted = tuple(dict.fromkeys(capabilities))
    if backend == "tensorrt-rtx":
        return Target(backend, precision, options, _for_rtx(wanted, precision))
    if wanted and not building:
        _require_tensorrt(wanted)
        return Target(backend, precision, options, wanted)
    if find_driver() is None:  # before pycuda, whose absence is no news without a driver
        raise DeviceError(
            "TensorRT builds for the GPU at hand, and there is no CUDA driver on this machine; "
            "build on the device, or for RTX cards with --backend tensorrt-rtx; what can be "
            "checked here is: --compute-capability 8.7 --preflight (8.7 is Orin, 11.0 Thor)"
        )
    here = compute_capability()
    if wanted not in ((), (here,)):
        raise RequestError(
            f"TensorRT builds for the GPU at hand, {here}, not for {', '.join(wanted)}; build "
            "there, with --backend tensorrt-rtx, which needs no GPU, or only check with "
            "--preflight"
        )
    return Target(backend, precision, options, (here,), device_name())


def _for_rtx(wanted: tuple[str, ...], precision: Precision) -> tuple[str, ...]:
    """Compute capabilities in TensorRT-RTX's order; that of the GPU at hand if none is wanted."""
    if not wanted:
        try:
            wanted = (compute_capability(),)
        except FewstepError:
            raise RequestError(
                "which GPUs are the engines for? Name their compute capabilities, for example "
                "--compute-capability 8.6 8.9 12.0"
            ) from None
    _require_numbers(wanted)
    # Before minutes are spent on graphs for GPUs that there are no engines for.
    if others := [each for each in wanted if each not in RTX_CAPABILITIES]:
        raise RequestError(
            f"TensorRT-RTX builds for compute capability {', '.join(RTX_CAPABILITIES)}, received "
            f"{', '.join(others)}; build for others, Jetsons among them, on the device itself: "
            "--backend tensorrt, which --preflight checks here"
        )
    if precision == "bf16" and "7.5" in wanted:
        raise RequestError(
            "compute capability 7.5 has no bf16; use --precision fp16, or leave 7.5 out"
        )
    return tuple(each for each in RTX_CAPABILITIES if each in wanted)


def _require_tensorrt(capabilities: Sequence[str]) -> None:
    """Raise unless TensorRT 10.3 … 11 builds for all of these."""
    _require_numbers(capabilities)
    for each in capabilities:
        if each in TENSORRT_BEFORE:
            raise RequestError(
                f"compute capability {each} is too old: {TENSORRT_BEFORE[each]}, fewstep needs "
                "10.3 or newer; run the bundle there with ONNX Runtime"
            )
        if each not in TENSORRT_SINCE:
            raise RequestError(choose("compute capability for TensorRT", each, TENSORRT_SINCE))


def _require_numbers(capabilities: Sequence[str]) -> None:
    if odd := [each for each in capabilities if not re.fullmatch(r"\d+\.\d", each)]:
        raise RequestError(
            f"expected compute capabilities such as 8.6 8.9, one or more with spaces between them, "
            f"received {', '.join(odd)}"
        )
