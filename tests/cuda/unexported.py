"""A bundle that was never exported: a model's description, for engines that need no graphs."""

from __future__ import annotations

from pathlib import Path

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.families.masked.model import MaskedModel
from fewstep.runtime.manifest import Manifest, Provenance
from fewstep.runtime.records import FileInfo, GraphInfo, TensorInfo

_IDS = frozenset(("tokens", "condition", "step"))


def unexported(model: MaskedModel, name: str = "unexported") -> Bundle:
    """A bundle of a class-conditional model, in memory alone.

    Its graphs have the inputs and outputs of exported ones, in the same order. The files that its
    manifest names do not exist.
    """
    graphs = {graph: _graph(model, graph) for graph, _ in model.tensor_shapes()}
    nothing = FileInfo(bytes=0, sha256="0" * 64)
    manifest = Manifest(
        family="maskgit",
        name=name,
        model=model,
        graphs=graphs,
        files={info.file: nothing for info in graphs.values()},
        provenance=Provenance(created="", command="", tools={}, checkpoints={}),
    )
    return Bundle(Path(name), manifest)


def _graph(model: MaskedModel, graph: str) -> GraphInfo:
    tensors = {
        name: TensorInfo(dtype="int32" if name in _IDS else "float32", shape=shape)
        for (owner, name), shape in model.tensor_shapes().items()
        if owner == graph
    }
    outputs = {"action"} if graph in model.policies else {"logits", "features", "image"}
    return GraphInfo(
        file=f"{graph}.onnx",
        inputs={name: info for name, info in tensors.items() if name not in outputs},
        outputs={name: info for name, info in tensors.items() if name in outputs},
    )
