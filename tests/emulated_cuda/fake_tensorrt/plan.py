"""Serialized engines: the header of TensorRT-RTX 1.7.1, another one for TensorRT, own content.

TensorRT-RTX: magic ``vtrt``, size at 16, version at 24, bit mask of compute capabilities at 32.
The header has 64 bytes. What follows it is this module's: a JSON object and the ONNX model.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace

from tests.emulated_cuda.fake_tensorrt.library import Flavour

Ranges = dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]

MASK_BITS: Mapping[int, int] = {75: 1, 80: 2, 86: 4, 89: 8, 120: 16, 121: 32}
AMPERE_AND_LATER = 126  # what the builder writes when it is given no target
HEADER_BYTES = 64

_RTX = struct.Struct("<4sIQQ4B4sI28x")
_RTX_MAGIC, _RTX_TAG = b"vtrt", b"vtrt"
_OTHER = struct.Struct("<4s4HIQ40x")
_OTHER_MAGIC = b"ftrt"
_LENGTHS = struct.Struct("<QQ")


class Malformed(ValueError):
    """Bytes that are no engine of this kind."""


@dataclass(frozen=True)
class Plan:
    """Content of an engine file.

    ``capabilities``: for TensorRT-RTX the bit mask, for TensorRT the GPU's capability in tenths.
    """

    flavour: Flavour
    version: tuple[int, ...]
    capabilities: int
    name: str = ""
    profiles: tuple[Ranges, ...] = ()
    user_allocation: bool = False
    onnx: bytes = b""

    def runs_on(self, capability: int) -> bool:
        """Whether a GPU of this compute capability can run it."""
        if self.flavour == "tensorrt":
            return capability == self.capabilities
        return bool(self.capabilities & MASK_BITS.get(capability, 0))


def pack(plan: Plan) -> bytes:
    """The bytes of an engine."""
    options = {"name": plan.name, "user_allocation": plan.user_allocation}
    content = json.dumps({**options, "profiles": plan.profiles}).encode()
    body = _LENGTHS.pack(len(content), len(plan.onnx)) + content + plan.onnx
    version, size = _four(plan.version), HEADER_BYTES + len(body)
    if plan.flavour == "tensorrt":
        header = _OTHER.pack(_OTHER_MAGIC, *version, plan.capabilities, size)
    else:
        parts = (*(number & 0xFF for number in version), _RTX_TAG, plan.capabilities)
        header = _RTX.pack(_RTX_MAGIC, 0, 2, size, *parts)
    return header + body


def unpack(data: bytes, flavour: Flavour) -> Plan:
    """The content of an engine.

    Raises:
        Malformed: magic or size are not those of an engine of this flavour.
    """
    header, size = read_header(data, flavour)
    if size != len(data):
        raise Malformed("Serialization assertion header.size == blobSize failed.")
    content_bytes, onnx_bytes = _LENGTHS.unpack_from(data, HEADER_BYTES)
    start = HEADER_BYTES + _LENGTHS.size
    content = json.loads(data[start : start + content_bytes])
    start += content_bytes
    return replace(
        header,
        name=content["name"],
        profiles=tuple(_ranges(profile) for profile in content["profiles"]),
        user_allocation=content["user_allocation"],
        onnx=data[start : start + onnx_bytes],
    )


def read_header(data: bytes, flavour: Flavour) -> tuple[Plan, int]:
    """What the header says, and the size that the engine should have.

    Raises:
        Malformed: too short, or of another magic.
    """
    if not data:
        raise Malformed("Cannot deserialize with an empty memory buffer")
    if len(data) < HEADER_BYTES:
        raise Malformed("Assertion bufferSize >= minBufferSize failed.")
    magic, version, capabilities, size = _header(data, flavour)
    if magic != (_OTHER_MAGIC if flavour == "tensorrt" else _RTX_MAGIC):
        raise Malformed(
            "Serialization assertion magicTag failed. Magic tag does not match: not an engine, or "
            "of an incompatible serialization version"
        )
    return Plan(flavour, version, capabilities), size


def same_version(plan: Plan, version: tuple[int, ...]) -> bool:
    """Whether an engine is of the library's own version."""
    # The real TensorRT-RTX compares three of the four numbers.
    compared = 3 if plan.flavour == "tensorrt-rtx" else 4
    return plan.version[:compared] == _four(version)[:compared]


def _header(data: bytes, flavour: Flavour) -> tuple[bytes, tuple[int, ...], int, int]:
    if flavour == "tensorrt":
        magic, *version, capabilities, size = _OTHER.unpack_from(data)
    else:
        magic, _, _, size, *version, _, capabilities = _RTX.unpack_from(data)
    return magic, tuple(version), capabilities, size


def _four(version: tuple[int, ...]) -> tuple[int, ...]:
    return (*version, 0, 0, 0, 0)[:4]


def _ranges(profile: dict[str, list[list[int]]]) -> Ranges:
    return {
        name: (tuple(low), tuple(best), tuple(high)) for name, (low, best, high) in profile.items()
    }
