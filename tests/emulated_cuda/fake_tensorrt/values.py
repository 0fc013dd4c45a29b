"""The small types of the module, with the manners that pybind11 gives them.

Enums take any number and equal no number. ``Dims`` equal tuples and lists and cannot be compared
with each other. The memory of an engine is only a buffer. Attributes that a class does not have
cannot be set. All of this was seen in the real module.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

_MAX_DIMENSIONS = 8


class Enumeration:
    """Base of the enums; :func:`enumeration` makes them."""

    __slots__ = ("_value",)
    __members__: ClassVar[dict[str, Any]] = {}

    def __init__(self, value: int) -> None:
        self._value = integer(value)

    @property
    def value(self) -> int:
        return self._value

    @property
    def name(self) -> str:
        names = (name for name, member in self.__members__.items() if member == self)
        return next(names, "???")

    def __int__(self) -> int:
        return self._value

    __index__ = __int__

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __str__(self) -> str:
        return f"{type(self).__name__}.{self.name}"

    def __repr__(self) -> str:
        return f"<{self}: {self._value}>"


class _Ordered(Enumeration):
    __slots__ = ()

    def __lt__(self, other: object) -> bool:
        return self._value < self._number_of(other)

    def __le__(self, other: object) -> bool:
        return self._value <= self._number_of(other)

    def __gt__(self, other: object) -> bool:
        return self._value > self._number_of(other)

    def __ge__(self, other: object) -> bool:
        return self._value >= self._number_of(other)

    def _number_of(self, other: object) -> int:
        if type(other) is not type(self):
            raise TypeError("Expected an enumeration of matching type!")
        return int(other)


def enumeration(name: str, *, ordered: bool = False, **values: int) -> Any:
    """An enum type; ``ordered`` are those that pybind11 calls arithmetic."""
    base = _Ordered if ordered else Enumeration
    made: Any = type(name, (base,), {"__slots__": (), "__members__": {}})
    for member, value in values.items():
        made.__members__[member] = made(value)
        setattr(made, member, made.__members__[member])
    return made


class Dims:
    """A shape."""

    __slots__ = ("_sizes",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, shape: Iterable[int] = ()) -> None:
        self._sizes = tuple(integer(size) for size in shape)
        if len(self._sizes) > _MAX_DIMENSIONS:
            raise ValueError(f"Input length {len(self._sizes)}. Max expected length is 8")

    def __len__(self) -> int:
        return len(self._sizes)

    def __iter__(self) -> Iterator[int]:
        return iter(self._sizes)

    def __getitem__(self, index: int) -> int:
        return self._sizes[index]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, tuple | list):
            raise TypeError(f"Dims can be compared with tuples and lists, not with {other!r}")
        return self._sizes == tuple(other)

    def __repr__(self) -> str:
        return str(self._sizes)


class _Byte(ctypes.Structure):
    # A format that memoryview cannot read: the real buffer has one that fits its items no better,
    # so that indexing and comparing a view of it fails or misleads.
    _fields_: ClassVar = [("byte", ctypes.c_byte)]


class IHostMemory:
    """Base of what :func:`host_memory` makes: a buffer without length, items or iteration."""

    __len__ = __getitem__ = __iter__ = None

    def __bool__(self) -> bool:
        return True

    @property
    def nbytes(self) -> int:
        return ctypes.sizeof(self)  # type: ignore[arg-type]

    @property
    def dtype(self) -> Any:
        return DataType.INT8


def host_memory(content: bytes) -> Any:
    """``IHostMemory`` with this content."""
    members: dict[str, Any] = {"_type_": _Byte, "_length_": len(content)}
    kind: Any = type("IHostMemory", (IHostMemory, ctypes.Array), members)
    return kind.from_buffer_copy(content)


def integer(value: Any) -> int:
    """A number as pybind11 takes it: anything that is one, but no float."""
    if isinstance(value, float | str | bytes) or not hasattr(type(value), "__int__"):
        raise TypeError(f"incompatible function arguments: expected an integer, got {value!r}")
    return int(value)


def text(value: Any) -> str:
    """A string: no ``Path``, no bytes."""
    if not isinstance(value, str):
        raise TypeError(f"incompatible function arguments: expected str, got {value!r}")
    return value


def instance(value: Any, kind: Any) -> Any:
    """An object of the module's own type."""
    if not isinstance(value, kind):
        raise TypeError(f"incompatible function arguments: expected {kind.__name__}, got {value!r}")
    return value


def shape_of(value: Any) -> tuple[int, ...]:
    """A shape: tuple, list or ``Dims``."""
    if not isinstance(value, tuple | list | Dims):
        raise TypeError(f"incompatible function arguments: expected Dims, got {value!r}")
    return tuple(Dims(value))


DataType = enumeration(
    "DataType",
    FLOAT=0,
    HALF=1,
    INT8=2,
    INT32=3,
    BOOL=4,
    UINT8=5,
    FP8=6,
    BF16=7,
    INT64=8,
    INT4=9,
    FP4=10,
)
TensorIOMode = enumeration("TensorIOMode", NONE=0, INPUT=1, OUTPUT=2)
TensorLocation = enumeration("TensorLocation", DEVICE=0, HOST=1)
MemoryPoolType = enumeration(
    "MemoryPoolType",
    WORKSPACE=0,
    DLA_MANAGED_SRAM=1,
    DLA_LOCAL_DRAM=2,
    DLA_GLOBAL_DRAM=3,
    TACTIC_DRAM=4,
    TACTIC_SHARED_MEMORY=5,
)
ErrorCode = enumeration(
    "ErrorCode",
    SUCCESS=0,
    INTERNAL_ERROR=1,
    MEM_ALLOC_FAILED=2,
    MODEL_DESERIALIZE_FAILED=3,
    INVALID_VALUE=4,
    INVALID_GRAPH=5,
    INVALID_NODE=6,
    UNSUPPORTED_GRAPH=7,
    UNSUPPORTED_NODE=8,
)
Strategy = enumeration(
    "ExecutionContextAllocationStrategy",
    ordered=True,
    STATIC=0,
    ON_PROFILE_CHANGE=1,
    USER_MANAGED=2,
)
# Only of TensorRT-RTX:
ComputeCapability = enumeration(
    "ComputeCapability",
    NONE=0,
    CURRENT=1,
    SM75=75,
    SM80=80,
    SM86=86,
    SM89=89,
    SM120=120,
    SM121=121,
)
EngineValidity = enumeration("EngineValidity", VALID=0, SUBOPTIMAL=1, INVALID=2)
EngineInvalidityDiagnostics = enumeration(
    "EngineInvalidityDiagnostics",
    ordered=True,
    VERSION_MISMATCH=1,
    UNSUPPORTED_CC=2,
    OLD_CUDA_DRIVER=4,
    OLD_CUDA_RUNTIME=8,
    INSUFFICIENT_GPU_MEMORY=16,
    MALFORMED_ENGINE=32,
    CUDA_ERROR=64,
)
CudaGraphStrategy = enumeration(
    "CudaGraphStrategy", ordered=True, DISABLED=0, WHOLE_GRAPH_CAPTURE=1
)
KernelSpecialization = enumeration(
    "DynamicShapesKernelSpecializationStrategy", ordered=True, LAZY=0, EAGER=1, NONE=2
)

_FLAGS = {
    "DEBUG": 2,
    "GPU_FALLBACK": 3,
    "REFIT": 4,
    "DISABLE_TIMING_CACHE": 5,
    "TF32": 6,
    "SPARSE_WEIGHTS": 7,
    "VERSION_COMPATIBLE": 12,
    "STRIP_PLAN": 18,
    "WEIGHT_STREAMING": 20,
}
BuilderFlag = enumeration("BuilderFlag", ordered=True, **_FLAGS)
BuilderFlagRtx = enumeration("BuilderFlag", ordered=True, **_FLAGS, REQUIRE_USER_ALLOCATION=28)

_CREATION = "NetworkDefinitionCreationFlag"
CreationFlag10 = enumeration(_CREATION, ordered=True, EXPLICIT_BATCH=0, STRONGLY_TYPED=1)
CreationFlag = enumeration(_CREATION, ordered=True, STRONGLY_TYPED=0)
