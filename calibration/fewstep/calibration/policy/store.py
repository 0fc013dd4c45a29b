"""A tuned policy into its bundle: graph, golden rollout, and how it was made."""

from __future__ import annotations

import hashlib
import io
import tempfile
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from fewstep.build.precision import lower
from fewstep.build.variants import Remade, stored
from fewstep.calibration.policy.networks import Shape
from fewstep.export.onnx_graph import export_graph
from fewstep.export.source import Graph
from fewstep.export.torch_engine import TorchEngine
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.devices.cpu import CpuDevice
from fewstep.runtime.engines import Engine
from fewstep.runtime.engines.onnxruntime import OnnxRuntimeEngine
from fewstep.runtime.generator import Generator
from fewstep.runtime.manifest import Manifest
from fewstep.runtime.policies import PolicyInfo, policies_of
from fewstep.runtime.records import FileInfo, GraphInfo, Precision
from fewstep.runtime.verify import record

_IMAGES = 2  # of a golden rollout


def add_policy(bundle: Bundle, name: str, actor: nn.Module, info: PolicyInfo) -> Bundle:
    """Export an actor and add it as the newest policy; the others stay.

    Args:
        bundle: as it is now.
        name: of the new graph.
        actor: features ``[B, N, C]`` and step ``[B]`` to raw actions ``[B, A]``.
        info: what the manifest says of it.

    Raises:
        ExportError: the graph does not compute what the actor does.
        OutputError: the bundle cannot be written; it is as before.
    """
    actor = actor.cpu().eval()
    newest = [*policies_of(bundle)][-1]
    example = {
        "features": Shape.of(bundle.graph(newest)).features(2),
        "step": torch.tensor([0, 3], dtype=torch.int32),
    }
    with tempfile.TemporaryDirectory() as folder:
        graph = export_graph(name, Graph(actor, example, ("action",)), Path(folder))
        content = (Path(folder) / graph.file).read_bytes()
    fields = bundle.manifest.model_dump()
    fields["graphs"][name] = graph.model_dump()
    fields["model"]["policies"][name] = info.model_dump()
    for variant in fields["variants"].values():
        variant[name] = graph.model_dump() | {"source_sha256": hashlib.sha256(content).hexdigest()}
    changes = {key: fields[key] for key in ("graphs", "model", "variants")}
    files: dict[str, bytes | memoryview] = {graph.file: content}
    changed = _with(bundle, changes, graph, content)
    for precision, made in _lowered(changed, name, content, newest).items():
        changes["variants"][precision][name] = made.info.model_dump()
        files |= made.files
    if bundle.manifest.golden is not None:
        golden = _golden(bundle, changed, name, actor)
        file = f"golden-{hashlib.sha256(golden).hexdigest()[:12]}.npz"
        files[file], changes["golden"] = golden, file
    return bundle.update(files, **changes)


def _lowered(changed: Bundle, name: str, content: bytes, newest: str) -> dict[Precision, Remade]:
    """The new graph for variants whose newest policy is in another precision than fp32, in that
    one."""
    made: dict[Precision, Remade] = {}
    for precision, variant in changed.manifest.variants.items():
        like = variant[newest]
        if like.precision != "fp32":
            model = onnx.load_from_string(content)
            model = lower(model, like.precision, heads=bool(like.fp32_heads)).model
            described = {"precision": like.precision, "fp32_heads": like.fp32_heads}
            made[precision] = stored(changed, name, like.precision, model, **described)
    return made


def half(actor: nn.Module) -> nn.Module:
    """The actor with weights that half precision can hold: those that are kept."""
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.copy_(parameter.half().float())
    return actor


def _with(bundle: Bundle, changes: dict[str, object], graph: GraphInfo, content: bytes) -> Bundle:
    """The bundle as it will be, before anything is written."""
    fields = bundle.manifest.model_dump() | changes
    digest = hashlib.sha256(content).hexdigest()
    fields["files"][graph.file] = FileInfo(bytes=len(content), sha256=digest).model_dump()
    return Bundle(bundle.path, Manifest.model_validate(fields))


def _golden(bundle: Bundle, changed: Bundle, name: str, actor: nn.Module) -> bytes:
    """The golden rollouts with one of the new policy: PyTorch's actions on the fp32 graphs."""
    graphs = changed.manifest.graphs
    engines: dict[str, Engine] = {
        each: OnnxRuntimeEngine(each, bundle.graph_path(each), graphs[each])
        for each in graphs
        if each not in policies_of(changed)
    }
    engines[name] = TorchEngine(name, actor, graphs[name])
    assert bundle.manifest.golden is not None
    arrays = bundle.arrays(bundle.manifest.golden)
    with Generator(changed, CpuDevice(), engines) as generator:
        settings = generator.family.rollouts(generator.model)[name]
        arrays |= record(generator, name, settings, _IMAGES).arrays()
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()
