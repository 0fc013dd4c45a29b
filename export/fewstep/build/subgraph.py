"""Subgraphs of a graph, with any of its tensors marked as outputs, and running a graph by them.

A subgraph starts from tensors that earlier ones left behind, so that nothing is computed twice and
only a subgraph's own weights are in a session. What later ones or the caller still need is kept,
the rest is dropped at once.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import onnx
from onnx import TensorProto, helper

from fewstep.runtime.devices import Array
from fewstep.runtime.engines.sessions import new_session
from fewstep.runtime.errors import EngineError, FewstepError

if TYPE_CHECKING:
    import onnxruntime

T = TypeVar("T")

Runner = Callable[[onnx.ModelProto, Mapping[str, Array]], dict[str, Array]]
"""Runs a graph once on named arrays and returns its outputs by name."""


class Values(Protocol):
    """Hands out tensors of one graph on one set of inputs."""

    def values(self, tensors: Sequence[str]) -> dict[str, Array]:
        """The tensors, each asked for once; those that cannot be had are left out."""
        ...


SUBGRAPH_BYTES = 64 << 20
"""How many bytes of weights a subgraph may have, unless one node alone has more."""

_SMALL = 1024  # elements; larger constants never tell a shape


def run_onnxruntime(model: onnx.ModelProto, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Run a graph in ONNX Runtime on the CPU.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        EngineError: ONNX Runtime refuses the graph, or fails to run it.
    """

    def configure(options: onnxruntime.SessionOptions) -> None:
        options.enable_cpu_mem_arena = False  # one output that is kept would keep all of the arena

    try:
        session = new_session(model.SerializeToString(), configure=configure)
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, dict(inputs)), strict=True))
    except FewstepError:
        raise
    except Exception as error:  # onnxruntime raises types of its own; protobuf above 2 GB
        raise EngineError(f"ONNX Runtime cannot run a subgraph: {error}") from error


class SubgraphExtractor:
    """A graph of which any subgraph can be taken, with any of its tensors marked as outputs.

    ``producers``: the index of the node that produces a tensor, in the order of the graph.
    """

    def __init__(self, path: Path) -> None:
        self._model = onnx.load(path)
        graph = self._model.graph
        self.outputs = [output.name for output in graph.output]
        self.nodes = list(graph.node)
        self.producers = {
            name: index for index, node in enumerate(self.nodes) for name in node.output if name
        }
        self.weights = {each.name: each for each in graph.initializer}
        self._types = _types(self._model)

    def producer(self, tensor: str) -> onnx.NodeProto:
        """The node that produces a tensor."""
        node: onnx.NodeProto = self.nodes[self.producers[tensor]]
        return node

    def extract(
        self, nodes: Sequence[int], inputs: Mapping[str, Array], outputs: Collection[str]
    ) -> onnx.ModelProto:
        """Some of the nodes, in topological order, as a graph of their own."""
        whole = self._model
        model = onnx.ModelProto(ir_version=whole.ir_version, opset_import=whole.opset_import)
        model.functions.extend(whole.functions)
        graph = model.graph
        graph.name = whole.graph.name
        graph.node.extend(self.nodes[index] for index in nodes)
        read = dict.fromkeys(name for node in graph.node for name in node.input)
        graph.initializer.extend(self.weights[name] for name in read if name in self.weights)
        for name, value in inputs.items():
            kind = helper.np_dtype_to_tensor_dtype(value.dtype)
            graph.input.append(helper.make_tensor_value_info(name, kind, value.shape))
        graph.output.extend(self._marked(name) for name in outputs)
        return model

    def with_outputs(self, outputs: Collection[str]) -> onnx.ModelProto:
        """The whole graph with other outputs than its own."""
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        del model.graph.output[:]
        model.graph.output.extend(self._marked(name) for name in outputs)
        return model

    def is_float(self, tensor: str) -> bool:
        """Whether a tensor holds float32 or float16 numbers, as far as is known."""
        kind = self._types.get(tensor)
        return kind is not None and kind.elem_type in (TensorProto.FLOAT, TensorProto.FLOAT16)

    def weight_bytes(self, node: int) -> int:
        """Bytes of the weights that a node reads."""
        read = (self.weights.get(name) for name in self.nodes[node].input)
        return sum(
            math.prod(weight.dims) * _item_bytes(weight.data_type)
            for weight in read
            if weight is not None
        )

    def size(self, tensor: str) -> int | None:
        """Bytes of a tensor at batch 1, if they are known."""
        kind = self._types.get(tensor)
        if kind is None or not kind.HasField("shape"):
            return None
        dims = kind.shape.dim
        if any(not dim.HasField("dim_value") and not dim.dim_param for dim in dims):
            return None
        count = math.prod(int(dim.dim_value) if dim.HasField("dim_value") else 1 for dim in dims)
        return count * _item_bytes(kind.elem_type)

    def _marked(self, tensor: str) -> onnx.ValueInfoProto:
        kind = self._types.get(tensor)
        if kind is None:  # backends that infer types need none
            return onnx.ValueInfoProto(name=tensor)
        return helper.make_tensor_value_info(tensor, kind.elem_type, None)


class Walk:
    """One pass over a graph, as far as the tensors asked for so far need it.

    Args:
        graph: the graph.
        inputs: its inputs.
        wanted: tensors that will be asked for, each once.
        run: what runs the subgraphs.
    """

    def __init__(
        self,
        graph: SubgraphExtractor,
        inputs: Mapping[str, Array],
        wanted: Collection[str],
        run: Runner,
    ) -> None:
        self._graph, self._run = graph, run
        self._held: dict[str, Array] = dict(inputs)
        self._done: set[int] = set()
        # How often each tensor is still needed: by nodes, and by the caller.
        self._needs = Counter(name for node in graph.nodes for name in node.input)
        self._needs.update(list(wanted))  # a mapping would be taken for counts

    @property
    def held_bytes(self) -> int:
        """What is kept for later subgraphs and later questions."""
        return sum(value.nbytes for value in self._held.values())

    def values(self, tensors: Sequence[str]) -> dict[str, Array]:
        """Compute tensors and hand them out; they are not kept for a second time."""
        lacking = ((node, self._graph.weight_bytes(node)) for node in self._lacking(tensors))
        for nodes in grouped(lacking, SUBGRAPH_BYTES):
            self._compute(nodes)
        found = {name: self._held[name] for name in tensors}
        self._release(Counter(tensors))
        return found

    def _lacking(self, tensors: Sequence[str]) -> list[int]:
        """Nodes that must still run for the tensors, in topological order."""
        waiting, found = list(tensors), set[int]()
        while waiting:
            index = self._graph.producers.get(waiting.pop())
            if index is not None and index not in found and index not in self._done:
                found.add(index)
                waiting.extend(self._graph.nodes[index].input)
        return sorted(found)

    def _compute(self, subgraph: Sequence[int]) -> None:
        nodes = [self._graph.nodes[index] for index in subgraph]
        read = Counter(name for node in nodes for name in node.input)
        made = [name for node in nodes for name in node.output if name]
        inputs = {name: self._held[name] for name in read if name in self._held}
        # Needed beyond this subgraph, and not only inside it.
        outputs = [name for name in made if self._needs[name] > read[name]]
        self._held |= self._run(self._graph.extract(subgraph, inputs, outputs), inputs)
        self._done.update(subgraph)
        self._release(read)

    def _release(self, used: Mapping[str, int]) -> None:
        self._needs.subtract(used)
        for name in used:
            if self._needs[name] <= 0:
                self._held.pop(name, None)


def grouped(sizes: Iterable[tuple[T, int]], limit: int) -> Iterator[list[T]]:
    """Runs of things whose sizes add up to at most the limit, or single ones above it."""
    group: list[T] = []
    total = 0
    for each, size in sizes:
        if group and total + size > limit:
            yield group
            group, total = [], 0
        group.append(each)
        total += size
    if group:
        yield group


def _item_bytes(kind: int) -> int:
    return int(helper.tensor_dtype_to_np_dtype(kind).itemsize)


def _types(model: onnx.ModelProto) -> dict[str, onnx.TypeProto.Tensor]:
    """Type and shape of every tensor that inference knows, without the large weights' contents."""
    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    light.graph.name = model.graph.name
    for field in ("node", "input", "output", "value_info"):
        getattr(light.graph, field).extend(getattr(model.graph, field))
    for weight in model.graph.initializer:
        if math.prod(weight.dims) <= _SMALL:
            light.graph.initializer.append(weight)
        else:
            info = helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims)
            light.graph.input.append(info)
    graph = onnx.shape_inference.infer_shapes(light, data_prop=True).graph
    return {
        value.name: value.type.tensor_type
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
