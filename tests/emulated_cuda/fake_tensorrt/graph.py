"""What is needed of an ONNX graph: its tensors, and the nodes that no engine can have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import onnx
from onnx import TensorProto
from tests.emulated_cuda.fake_tensorrt.values import DataType

Size = int | str

_DTYPES: Mapping[int, Any] = {
    TensorProto.FLOAT: DataType.FLOAT,
    TensorProto.FLOAT16: DataType.HALF,
    TensorProto.BFLOAT16: DataType.BF16,
    TensorProto.INT8: DataType.INT8,
    TensorProto.UINT8: DataType.UINT8,
    TensorProto.INT32: DataType.INT32,
    TensorProto.INT64: DataType.INT64,
    TensorProto.BOOL: DataType.BOOL,
}
_REFUSED = ("Multinomial", "NonZero")


@dataclass(frozen=True)
class Tensor:
    """One input or output. Sizes that vary carry their name, or an empty one."""

    name: str
    onnx_dtype: int
    sizes: tuple[Size, ...]

    @property
    def dtype(self) -> Any:
        return _DTYPES[self.onnx_dtype]

    @property
    def shape(self) -> tuple[int, ...]:
        """With -1 for what varies."""
        return tuple(-1 if isinstance(size, str) else size for size in self.sizes)

    @property
    def dynamic(self) -> bool:
        return any(isinstance(size, str) for size in self.sizes)


@dataclass(frozen=True)
class BadNode:
    """A node that cannot be parsed."""

    index: int
    name: str
    operator: str
    known: bool


@dataclass(frozen=True)
class Graph:
    """An ONNX model."""

    model: onnx.ModelProto

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        initial = {initializer.name for initializer in self.model.graph.initializer}
        tensors = map(_tensor, self.model.graph.input)
        return {tensor.name: tensor for tensor in tensors if tensor.name not in initial}

    @cached_property
    def outputs(self) -> dict[str, Tensor]:
        return {tensor.name: tensor for tensor in map(_tensor, self.model.graph.output)}

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {**self.inputs, **self.outputs}

    @property
    def dynamic(self) -> bool:
        return any(tensor.dynamic for tensor in self.inputs.values())

    def bad_nodes(self) -> Iterator[BadNode]:
        """Nodes of operators that do not exist, or that have no implementation."""
        for index, node in enumerate(self.model.graph.node):
            known = onnx.defs.has(node.op_type, node.domain)
            if not known or node.op_type in _REFUSED:
                yield BadNode(index, node.name, node.op_type, known)

    def contradiction(self, shapes: Mapping[str, tuple[int, ...]]) -> str:
        """Which dimension has two sizes in these shapes of the inputs; empty if none has."""
        found: dict[str, int] = {}
        for name, size in self._varying(shapes):
            if found.setdefault(name, size) != size:
                return f"Dimensions with name {name} must be equal, got {found[name]} and {size}"
        return ""

    def output_shape(self, name: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
        """Shape of an output for these shapes of the inputs; -1 where that is not known."""
        sizes = dict(self._varying(shapes))
        given = self.outputs[name].sizes
        return tuple(sizes.get(size, -1) if isinstance(size, str) else size for size in given)

    def _varying(self, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, int]]:
        for name, actual in shapes.items():
            for size, number in zip(self.inputs[name].sizes, actual, strict=True):
                if isinstance(size, str) and size:
                    yield size, number


def _tensor(value: onnx.ValueInfoProto) -> Tensor:
    kind = value.type.tensor_type
    sizes = tuple(
        size.dim_value if size.HasField("dim_value") else size.dim_param for size in kind.shape.dim
    )
    return Tensor(value.name, kind.elem_type, sizes)
