"""Does an engine of the bundle run on this machine? Its record and its header tell before loading.

TensorRT engines belong to one version of TensorRT and to the compute capability they were built
on, and are tuned for the very card. TensorRT-RTX engines name their targets; the header repeats
them, so a record that does not belong to its file is noticed.
"""

from __future__ import annotations

import shlex
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fewstep.runtime.errors import EngineError
from fewstep.runtime.records import EngineInfo

# Read off engines of TensorRT-RTX 1.4.0 and 1.7.1; undocumented, so anything else means "unknown".
_HEADER = struct.Struct("<4sIQQ4B4sI")
_MAGIC = b"vtrt"
RTX_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
"""Compute capabilities that TensorRT-RTX builds for; Jetsons are not among them."""

_BITS = dict(zip((1, 2, 4, 8, 16, 32), RTX_CAPABILITIES, strict=True))


@dataclass(frozen=True)
class Header:
    """What the header of a TensorRT-RTX engine says."""

    size: int
    version: str
    capabilities: tuple[str, ...]


def read_header(content: bytes) -> Header | None:
    """The header of a TensorRT-RTX engine; ``None`` for any other layout."""
    if len(content) < _HEADER.size:
        return None
    magic, _, _, size, *version, again, mask = _HEADER.unpack_from(content)
    if magic != _MAGIC or again != _MAGIC or not mask or mask & ~sum(_BITS):
        return None
    names = tuple(name for bit, name in _BITS.items() if mask & bit)
    return Header(size, ".".join(map(str, version)), names)


def rebuild_command(bundle: Path, info: EngineInfo, capability: str) -> str:
    """The command that builds an engine like ``info`` for a GPU of ``capability``."""
    backend = info.backend if capability in RTX_CAPABILITIES else "tensorrt"
    words = ["fewstep", "build", str(bundle), "--backend", backend]
    if backend == "tensorrt-rtx":
        words += ["--compute-capability", capability]
    words += ["--precision", info.precision, "--max-batch", str(info.options.max_batch)]
    for batch in info.options.opt_batch:
        words += ["--opt-batch", str(batch)]
    return shlex.join(words)


def why_not(info: EngineInfo, graph_sha256: str, version: str, capability: str) -> str:
    """Why an engine cannot be used here, as far as its record tells; empty if it can.

    Args:
        info: the engine's record.
        graph_sha256: hash of the bundle's graph of this name and precision.
        version: of the backend's module here.
        capability: the GPU's compute capability.
    """
    built = f"was built by {info.backend} {info.version} for {', '.join(info.compute_capabilities)}"
    if info.version != version:
        return f"{built}; here is {info.backend} {version}"
    if capability not in info.compute_capabilities:
        return f"{built}; the GPU here is {capability}"
    if info.graph_sha256 != graph_sha256:
        return f"was built from another graph '{info.graph}' than the bundle has now"
    return ""


def tuned_elsewhere(
    bundle: Path, infos: Iterable[EngineInfo], gpu: str, capability: str
) -> tuple[str, ...]:
    """What to know of engines that were built on another card than this, a line for each card.

    TensorRT runs them, with a warning in its log: they may be slow, or fail.

    Args:
        bundle: the bundle's folder.
        infos: records of engines that :func:`why_not` has nothing against.
        gpu: the name of the GPU here.
        capability: its compute capability.
    """
    cards: dict[str, list[EngineInfo]] = {}
    for info in infos:
        if info.gpu is not None and info.gpu != gpu:
            cards.setdefault(info.gpu, []).append(info)
    return tuple(
        f"the {found[0].precision} engines of {', '.join(sorted(each.graph for each in found))} "
        f"were tuned for {card} and may be slow or fail on {gpu}; build them here with: "
        f"{rebuild_command(bundle, found[0], capability)}"
        for card, found in cards.items()
    )


def require_header(info: EngineInfo, content: bytes) -> None:
    """Check that a TensorRT-RTX engine is what its record says.

    Raises:
        EngineError: a header of an unknown layout, or of another engine.
    """
    if info.backend != "tensorrt-rtx":
        return  # the layout of TensorRT's own is not known
    header = read_header(content)
    if header is None:
        raise EngineError(
            f"{info.file} does not begin like an engine of TensorRT-RTX; build it again with "
            "--force"
        )
    # The header has a byte for each part of the version.
    parts = info.version.split(".")
    version = ".".join(str(int(each) % 256) if each.isdecimal() else each for each in parts)
    told = (version, tuple(sorted(info.compute_capabilities, key=float)), len(content))
    found = (header.version, header.capabilities, header.size)
    if told != found:
        raise EngineError(
            f"{info.file} is not the engine that its record describes: expected {_line(told)}, "
            f"its header says {_line(found)}; build it again with --force"
        )


def _line(facts: tuple[str, tuple[str, ...], int]) -> str:
    version, capabilities, size = facts
    return f"version {version} for {', '.join(capabilities)} in {size:,} bytes"
