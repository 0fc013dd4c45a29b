"""The manifest of a bundle, ``bundle.json``: what the graphs are and where they came from.

Unknown fields are refused at every level, so that a typing error or a field of a newer version
never goes unnoticed. ``SCHEMA`` grows whenever a field changes its meaning or a new one is
needed to run the bundle.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator
from typing_extensions import Self

from fewstep.runtime.records import (
    AutoChoice,
    BuildOptions,
    EngineBackend,
    EngineInfo,
    FileInfo,
    GraphInfo,
    Keeper,
    KernelsInfo,
    LayerCost,
    OtherLayers,
    Precision,
    QuantizationInfo,
    RangeMethod,
    Relative,
    Sha256,
    ShapeRange,
    Strict,
    TensorInfo,
    VerifiedOn,
)

__all__ = [
    "MANIFEST_NAME",
    "SCHEMA",
    "AutoChoice",
    "BuildOptions",
    "CheckpointInfo",
    "ClassCondition",
    "Defaults",
    "EngineBackend",
    "EngineInfo",
    "FileInfo",
    "GraphInfo",
    "Keeper",
    "KernelsInfo",
    "LayerCost",
    "Manifest",
    "MaskedModel",
    "OtherLayers",
    "PolicyInfo",
    "PolicyName",
    "PolicyTuning",
    "Precision",
    "Provenance",
    "QuantizationInfo",
    "RangeMethod",
    "Sha256",
    "ShapeRange",
    "TensorInfo",
    "TextCondition",
    "VerifiedOn",
]

SCHEMA = 1
MANIFEST_NAME = "bundle.json"

PolicyName = Annotated[str, Field(pattern=r"^policy[a-z0-9-]*$")]
"""Of a policy graph; "policy" in front keeps it apart from other graphs and schedules."""


class ClassCondition(Strict):
    """Class ids 0 … ``num_classes − 1`` and the id that means "no class"."""

    kind: Literal["class"] = "class"
    num_classes: PositiveInt
    unconditional_id: int = Field(ge=0)
    class_names: tuple[str, ...] | None = None


class TextCondition(Strict):
    """Text states ``[length, width]``, float32, and the file with those of the empty text."""

    kind: Literal["text"] = "text"
    length: PositiveInt
    width: PositiveInt
    unconditional_file: Relative | None = None


class PolicyTuning(Strict):
    """How ``fewstep calibrate policy`` made a policy.

    ``adaptive``: per image, or one action per step. ``backend``, ``precision``: of the engines it
    was tuned on, ``transformer_sha256``: of their graph. ``images``, ``data_sha256``: of the real
    images. ``updates`` went into the weights kept; ``frechet_distance`` is theirs, before they
    were rounded to half precision, on tuning seeds.
    """

    created: str
    command: str
    tools: dict[str, str]
    adaptive: bool
    reward: str
    features: str
    backend: str
    precision: Precision
    transformer_sha256: Sha256
    images: PositiveInt
    data_sha256: Sha256
    rollouts: PositiveInt
    updates: int = Field(ge=0)
    seed: int
    frechet_distance: float


class PolicyInfo(Strict):
    """One policy network, under the name of its graph.

    ``residual``: the heuristic schedule is added before the activations, so that a zero
    action follows it (AdaNAT's ``heu`` option). ``steps``: the number it was tuned for, if known.
    ``untrained_seed``: what the weights were drawn from, if nothing trained them.
    """

    residual: bool
    steps: PositiveInt | None = None
    tuning: PolicyTuning | None = None
    untrained_seed: int | None = None


class Defaults(Strict):
    """What ``generate`` uses when the caller says nothing; ramps are (start, end)."""

    steps: PositiveInt = 8
    schedule: str = "cosine"
    guidance: tuple[float, float] = (0.0, 3.0)
    sampling_temperature: tuple[float, float] = (1.0, 1.0)
    masking_temperature: tuple[float, float] = (4.5, 0.0)


class MaskedModel(Strict):
    """A masked token transformer with a VQ tokenizer (MaskGIT, AdaNAT).

    ``mask_token`` is the id of a masked position; tokens are 0 … ``codebook_size − 1``.
    ``policies`` are by graph name, oldest first.
    """

    kind: Literal["masked"] = "masked"
    grid: tuple[PositiveInt, PositiveInt]
    codebook_size: PositiveInt
    mask_token: int = Field(ge=0)
    feature_width: PositiveInt
    image_size: tuple[PositiveInt, PositiveInt]
    condition: ClassCondition | TextCondition = Field(discriminator="kind")
    policies: dict[PolicyName, PolicyInfo] = {}
    defaults: Defaults = Defaults()

    @property
    def num_tokens(self) -> int:
        """Tokens per image, N."""
        return self.grid[0] * self.grid[1]

    @property
    def condition_input(self) -> str:
        """Name of the transformer's condition input."""
        return "condition" if isinstance(self.condition, ClassCondition) else "text"

    def tensor_shapes(self) -> dict[tuple[str, str], tuple[int, ...]]:
        """Shape without batch of every (graph, tensor) that the decode loop binds."""
        n, width, text = self.num_tokens, self.feature_width, self.condition
        condition = () if isinstance(text, ClassCondition) else (text.length, text.width)
        shapes: dict[tuple[str, str], tuple[int, ...]] = {
            ("transformer", "tokens"): (n,),
            ("transformer", self.condition_input): condition,
            ("transformer", "logits"): (n, self.codebook_size),
            ("decoder", "tokens"): (n,),
            ("decoder", "image"): (3, *self.image_size),
        }
        for graph in self.policies:
            shapes |= {("transformer", "features"): (n, width), (graph, "features"): (n, width)}
            shapes |= {(graph, "step"): (), (graph, "action"): (4,)}
        return shapes

    def policy_for(self, steps: int) -> str | None:
        """The newest policy tuned for ``steps``, else for any number, else of all, if any."""
        for wanted in (steps, None):
            fitting = [name for name, info in self.policies.items() if info.steps == wanted]
            if fitting:
                return fitting[-1]
        return next(reversed(self.policies), None)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.mask_token < self.codebook_size:
            raise ValueError(f"mask_token {self.mask_token} is one of the codes")
        if isinstance(self.condition, ClassCondition):
            known, names = self.condition.num_classes, self.condition.class_names
            if not known <= self.condition.unconditional_id < 2**31:
                raise ValueError("unconditional_id is one of the classes, or no int32")
            if names is not None and len(names) != known:
                raise ValueError(f"class_names: expected {known} names, got {len(names)}")
        return self


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
    compiled of either, in the order of building.
    """

    schema_version: Literal[1] = 1
    family: Literal["maskgit", "adanat"]
    name: str
    model: MaskedModel
    graphs: dict[str, GraphInfo]
    golden: Relative | None = None
    variants: dict[Precision, dict[str, GraphInfo]] = {}
    kernels: KernelsInfo | None = None
    engines: tuple[EngineInfo, ...] = ()
    files: dict[Relative, FileInfo]
    provenance: Provenance

    def named_files(self) -> set[str]:
        """Files that a field of the manifest names."""
        graphs = list(self.graphs.values())
        graphs += [graph for variant in self.variants.values() for graph in variant.values()]
        named = {graph.file for graph in graphs} | {self.golden or ""}
        named |= {file for graph in graphs for file in graph.external}
        named |= {engine.file for engine in self.engines}
        if self.kernels is not None:
            named |= set(self.kernels.cubins.values())
        if isinstance(self.model.condition, TextCondition):
            named.add(self.model.condition.unconditional_file or "")
        return named - {""}

    def verified_on(self, engine: EngineInfo) -> tuple[VerifiedOn, ...]:
        """Where an engine was verified; marks of other contents than its file has do not count."""
        content = self.files[engine.file].sha256
        return tuple(mark for mark in engine.verified if mark.engine_sha256 == content)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        needed = {"transformer", "decoder", *self.model.policies}
        if absent := sorted(needed - self.graphs.keys()):
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
        for (graph, tensor), shape in self.model.tensor_shapes().items():
            info = {**self.graphs[graph].inputs, **self.graphs[graph].outputs}.get(tensor)
            if info is None or info.shape[1:] != shape:
                found = "nothing" if info is None else list(info.shape[1:])
                raise ValueError(
                    f"graph {graph}, tensor {tensor}: the model needs {list(shape)} per image, "
                    f"the graph has {found}"
                )
        return self
