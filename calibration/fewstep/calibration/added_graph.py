"""A further graph into its bundle: its variants, and its golden rollout."""

from __future__ import annotations

import hashlib
import io
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from fewstep.build.precision import LOW, lower
from fewstep.build.variants import Remade, stored
from fewstep.export.onnx_graph import export_graph
from fewstep.export.source import Graph
from fewstep.export.torch_engine import TorchEngine
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.devices.cpu import CpuDevice
from fewstep.runtime.engines import Engine
from fewstep.runtime.engines.onnxruntime import OnnxRuntimeEngine
from fewstep.runtime.generator import Generator
from fewstep.runtime.manifest import Manifest
from fewstep.runtime.records import FileInfo, GraphInfo, Precision
from fewstep.runtime.verify import record

_IMAGES = 2  # of a golden rollout


@dataclass(frozen=True)
class Exported:
    """A graph as it is stored: its name, its module, its description, its ONNX file."""

    name: str
    module: nn.Module
    info: GraphInfo
    content: bytes

    @property
    def sha256(self) -> str:
        """Hash of the file."""
        return hashlib.sha256(self.content).hexdigest()


def exported(name: str, graph: Graph) -> Exported:
    """Export and check a graph.

    Raises:
        ExportError: it does not compute what the module does.
    """
    with tempfile.TemporaryDirectory() as folder:
        info = export_graph(name, graph, Path(folder))
        content = (Path(folder) / info.file).read_bytes()
    return Exported(name, graph.module, info, content)


def half(module: nn.Module) -> nn.Module:
    """The module with weights that half precision can hold: those that are kept."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(parameter.half().float())
    return module


def add_graph(bundle: Bundle, graph: Exported, like: str, model: Mapping[str, Any]) -> Bundle:
    """Add a graph, in the place of any of its name; the others stay.

    Args:
        bundle: as it is now.
        graph: to be added; golden rollouts of its name run it.
        like: the graph of the bundle whose precision it has in every variant.
        model: fields of the manifest's description that change with it.

    Raises:
        OutputError: the bundle cannot be written; it is as before.
    """
    name, fields = graph.name, bundle.manifest.model_dump()
    file = graph.info.file
    if file in bundle.manifest.files:  # new contents, a new name
        file = f"{name}-{graph.sha256[:12]}.onnx"
    info = graph.info.model_copy(update={"file": file})
    fields["graphs"][name] = info.model_dump()
    fields["model"] |= model
    for variant in fields["variants"].values():
        variant[name] = info.model_dump() | {"source_sha256": graph.sha256}
    # Engines of what stood here before would be refused wherever they are loaded.
    fields["engines"] = [each for each in fields["engines"] if each["graph"] != name]
    changes = {key: fields[key] for key in ("graphs", "model", "variants", "engines")}
    files: dict[str, bytes | memoryview] = {file: graph.content}
    changed = _with(bundle, changes, info, graph.content)
    for precision, made in _lowered(changed, graph, like).items():
        changes["variants"][precision][name] = made.info.model_dump()
        files |= made.files
    if bundle.manifest.golden is not None:
        golden = _golden(bundle, changed, graph)
        recorded = f"golden-{hashlib.sha256(golden).hexdigest()[:12]}.npz"
        files[recorded], changes["golden"] = golden, recorded
    return bundle.update(files, **changes)


def _lowered(changed: Bundle, graph: Exported, like: str) -> dict[Precision, Remade]:
    """The new graph for variants that have ``like`` in half precision, in that one."""
    made: dict[Precision, Remade] = {}
    for precision, variant in changed.manifest.variants.items():
        other = variant[like]
        if other.precision in LOW:
            model = onnx.load_from_string(graph.content)
            model = lower(model, other.precision, heads=bool(other.fp32_heads)).model
            described = {"precision": other.precision, "fp32_heads": other.fp32_heads}
            made[precision] = stored(changed, graph.name, other.precision, model, **described)
    return made


def _with(bundle: Bundle, changes: dict[str, Any], info: GraphInfo, content: bytes) -> Bundle:
    """The bundle as it will be, before anything is written."""
    fields = bundle.manifest.model_dump() | changes
    digest = hashlib.sha256(content).hexdigest()
    fields["files"][info.file] = FileInfo(bytes=len(content), sha256=digest).model_dump()
    return Bundle(bundle.path, Manifest.model_validate(fields))


def _golden(bundle: Bundle, changed: Bundle, graph: Exported) -> bytes:
    """The golden rollouts with one of the new graph: PyTorch's on the others in fp32."""
    graphs = changed.manifest.graphs
    engines: dict[str, Engine] = {
        each: OnnxRuntimeEngine(each, bundle.graph_path(each), info)
        for each, info in graphs.items()
        if each in bundle.manifest.graphs and each != graph.name
    }
    engines[graph.name] = TorchEngine(graph.name, graph.module, graphs[graph.name])
    assert bundle.manifest.golden is not None
    kept = bundle.arrays(bundle.manifest.golden).items()
    arrays = {key: value for key, value in kept if not key.startswith(f"{graph.name}/")}
    with Generator(changed, CpuDevice(), engines) as generator:
        settings = generator.family.rollouts(generator.model)[graph.name]
        arrays |= record(generator, graph.name, settings, _IMAGES).arrays()
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()
