"""The manifest of a bundle, ``bundle.json``: what the graphs are and where they came from.

Unknown fields are refused at every level, so that a typing error or a field of a newer version
never goes unnoticed. ``SCHEMA`` grows whenever a field changes its meaning or a new one is
needed to run the bundle. What stands in it of graphs, kernels and engines is in
:mod:`fewstep.runtime.records`, of the model in its family.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import SerializeAsAny, field_validator, model_validator
from typing_extensions import Self

from fewstep.runtime.condition import TextCondition
from fewstep.runtime.errors import BundleError
from fewstep.runtime.families import ModelInfo, family_of
from fewstep.runtime.presets import CurveInfo
from fewstep.runtime.records import (
    EngineInfo,
    FileInfo,
    GraphInfo,
    JudgeInfo,
    KernelsInfo,
    Precision,
    Relative,
    Strict,
    VerifiedOn,
)

SCHEMA = 2
MANIFEST_NAME = "bundle.json"


class CheckpointInfo(Strict):
    """A checkpoint file that went into the bundle."""

    file: str
    sha256: str


class Provenance(Strict):
    """Where the bundle came from: enough to make it again."""

    created: str
    command: str
    tools: dict[str, str]
    checkpoints: dict[str, CheckpointInfo]


class Manifest(Strict):
    """``bundle.json``.

    ``graphs`` are the fp32 ones; ``variants`` the same graphs in other precisions, where each
    graph says its own: in int8 and fp8 only the transformer is quantized; ``engines`` what was
    compiled of either, in the order of building. ``judge`` scores images, if there is one.
    ``curve``: what ``fewstep calibrate presets`` measured.
    """

    schema_version: Literal[1, 2] = 2
    family: str
    name: str
    model: SerializeAsAny[ModelInfo]
    graphs: dict[str, GraphInfo]
    golden: Relative | None = None
    judge: JudgeInfo | None = None
    variants: dict[Precision, dict[str, GraphInfo]] = {}
    kernels: KernelsInfo | None = None
    engines: tuple[EngineInfo, ...] = ()
    curve: CurveInfo | None = None
    files: dict[Relative, FileInfo]
    provenance: Provenance

    def named_files(self) -> set[str]:
        """Files that a field of the manifest names."""
        graphs = list(self.graphs.values())
        graphs += [graph for variant in self.variants.values() for graph in variant.values()]
        graphs += [] if self.judge is None else [self.judge.graph]
        named = {graph.file for graph in graphs} | {self.golden or ""}
        named |= {file for graph in graphs for file in graph.external}
        named |= {engine.file for engine in self.engines}
        if self.kernels is not None:
            named |= set(self.kernels.cubins.values())
        named |= self.model.condition.files
        return named - {""}

    def verified_on(self, engine: EngineInfo) -> tuple[VerifiedOn, ...]:
        """Where an engine was verified; marks of other contents than its file has do not count."""
        content = self.files[engine.file].sha256
        return tuple(mark for mark in engine.verified if mark.engine_sha256 == content)

    @field_validator("model", mode="before")
    @classmethod
    def _of_its_family(cls, value: Any) -> Any:
        """Let the family read its own fields."""
        if isinstance(value, ModelInfo):
            return value
        kind = value.get("kind", "") if isinstance(value, dict) else ""
        try:
            family = family_of(str(kind))
        except BundleError as error:
            raise ValueError(str(error)) from error
        return family.Info.model_validate(value)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        shapes = self.model.tensor_shapes()
        if absent := sorted({graph for graph, _ in shapes} - self.graphs.keys()):
            raise ValueError(f"graphs lacks {', '.join(absent)}")
        if unlisted := sorted(self.named_files() - self.files.keys()):
            raise ValueError(f"files lacks {', '.join(unlisted)}")
        for precision, variant in self.variants.items():
            for name in sorted(self.graphs.keys() | variant.keys()):
                own, other = self.graphs.get(name), variant.get(name)
                if own is None or other is None or own.tensors != other.tensors:
                    raise ValueError(f"variant {precision}: {name} is not the graph {name}")
        for engine in self.engines:
            if engine.graph not in self.graphs:
                raise ValueError(f"engine {engine.file} is of no graph: {engine.graph}")
        for (graph, tensor), shape in shapes.items():
            info = {**self.graphs[graph].inputs, **self.graphs[graph].outputs}.get(tensor)
            if info is None or not same_shape(info.shape, shape):
                found = "nothing" if info is None else list(info.shape)
                raise ValueError(
                    f"graph {graph}, tensor {tensor}: the model needs {list(shape)}, the graph "
                    f"has {found}"
                )
        return self

    @model_validator(mode="after")
    def _judge_fits(self) -> Self:
        if self.judge is None:
            return self
        condition, (inputs, outputs) = self.model.condition, self.judge.graph.tensors
        text = (condition.length, condition.width) if isinstance(condition, TextCondition) else ()
        wanted = {
            "pixels": ("batch", *self.model.image_size, 3),
            "condition": ("batch", *text),
            "score": ("batch",),
        }
        found = {name: info.shape for name, info in {**inputs, **outputs}.items()}
        if found.keys() != wanted.keys() or not all(
            same_shape(found[name], shape) for name, shape in wanted.items()
        ):
            raise ValueError(f"judge: the model needs {wanted}, the graph has {found}")
        return self


def same_shape(one: tuple[int | str, ...], other: tuple[int | str, ...]) -> bool:
    """Whether two shapes agree; a name stands for whatever may vary, under any name."""
    return len(one) == len(other) and all(
        a == b or (isinstance(a, str) and isinstance(b, str))
        for a, b in zip(one, other, strict=True)
    )
