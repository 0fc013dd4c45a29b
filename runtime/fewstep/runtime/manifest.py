"""The manifest of a bundle, ``bundle.json``: what the graphs are and where they came from.

Unknown fields are refused at every level, so that a typing error or a field of a newer version
never goes unnoticed. ``SCHEMA`` grows whenever a field changes its meaning or a new one is
needed to run the bundle.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator
from typing_extensions import Self

SCHEMA = 1
MANIFEST_NAME = "bundle.json"

DType = Literal["float32", "float16", "bfloat16", "int32", "int64", "uint8"]
Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8"]
EngineBackend = Literal["tensorrt", "tensorrt-rtx"]
OtherLayers = Literal["fp32", "fp16"]
RangeMethod = Literal["min-max", "entropy", "percentile"]
Keeper = Literal["rules", "user", "auto"]
Relative = Annotated[str, Field(min_length=1)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Capability = Annotated[str, Field(pattern=r"^\d+\.\d$")]
Shape = tuple[PositiveInt, ...]
PolicyName = Annotated[str, Field(pattern=r"^policy[a-z0-9-]*$")]
"""Of a policy graph; "policy" in front keeps it apart from other graphs and schedules."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TensorInfo(_Strict):
    """One graph input or output; a dimension that may vary carries its name."""

    dtype: DType
    shape: tuple[int | str, ...]


class LayerCost(_Strict):
    """What quantizing some layers, and nothing else, costs on held-out rollouts.

    ``kl_nats``: mean KL divergence of the logits from the fp32 graph's, at masked positions.
    ``token_agreement``: fraction of masked positions whose most likely code stays the same.
    """

    nodes: tuple[str, ...]
    kl_nats: float
    token_agreement: float


class AutoChoice(_Strict):
    """How layers were chosen to stay in higher precision; ``ranking``: most expensive first."""

    by: Literal["layer", "block"]
    max_kl: float
    min_token_agreement: float
    ranking: tuple[LayerCost, ...]


class QuantizationInfo(_Strict):
    """How a graph was quantized: enough to do it again.

    ``tool`` quantized it, with ranges by ``method`` (``percentile`` of the magnitudes, where
    that is the method) from the activations of ``rollouts`` rollouts of ``steps`` steps along
    ``schedule``. Their seeds count up from ``seed``; those of the ``held_out`` rollouts, on which
    ``kl_nats`` and ``token_agreement`` of the whole graph were measured (as in
    :class:`LayerCost`), follow. ``data_sha256`` is the hash of all that the rollouts fed to the
    graph, ``text_sha256`` of their texts. ``kept``: products with weights that are not quantized,
    and who said so. ``other_layers``: the type of all other arithmetic.
    """

    tool: str
    method: RangeMethod
    percentile: float | None = None
    rollouts: PositiveInt
    held_out: PositiveInt
    seed: int = Field(ge=0)
    steps: PositiveInt
    schedule: str
    text_sha256: Sha256 | None = None
    data_sha256: Sha256
    other_layers: OtherLayers
    kept: dict[str, Keeper]
    auto: AutoChoice | None = None
    kl_nats: float
    token_agreement: float


class GraphInfo(_Strict):
    """One ONNX file with its inputs and outputs, in the order of the graph.

    ``external``: files that hold its weights, when they are not inside it. ``precision``: what
    its weights and arithmetic are, which decides what ``verify`` accepts. A graph that was made
    from the fp32 one has that one's hash as ``source_sha256``; ``fp32_heads`` says whether the
    last products stayed in fp32, ``quantization`` how an int8 or fp8 graph was made.
    """

    file: Relative
    external: tuple[Relative, ...] = ()
    precision: Precision = "fp32"
    source_sha256: Sha256 | None = None
    fp32_heads: bool | None = None
    quantization: QuantizationInfo | None = None
    inputs: dict[str, TensorInfo]
    outputs: dict[str, TensorInfo]

    @property
    def files(self) -> tuple[str, ...]:
        """The ONNX file, and those with its weights."""
        return (self.file, *self.external)

    @property
    def tensors(self) -> tuple[dict[str, TensorInfo], dict[str, TensorInfo]]:
        """Inputs and outputs."""
        return self.inputs, self.outputs


class FileInfo(_Strict):
    """Size and hash of one file of the bundle."""

    bytes: int = Field(ge=0)
    sha256: Sha256


class KernelsInfo(_Strict):
    """CUDA kernels compiled ahead of time, one file per compute capability ("8.7").

    ``compiler`` ends with its CUDA version; ``sources_sha256`` is the hash of the sources they
    were made of: a runtime with other sources refuses them.
    """

    compiler: str = Field(pattern=r"^\S+ \d+\.\d+$")
    sources_sha256: Sha256
    cubins: dict[Capability, Relative]


class ShapeRange(_Strict):
    """Shapes of one input that an optimization profile spans, and the one it is tuned for."""

    min: Shape
    opt: Shape
    max: Shape


class BuildOptions(_Strict):
    """What the builder was asked for.

    ``max_batch``: most images decoded together. ``opt_batch``: images that the optimization
    profiles are tuned for, one profile each. ``optimization_level`` and ``workspace_mib`` as
    ``trtexec --builderOptimizationLevel`` and ``--memPoolSize=workspace``; ``None`` leaves them
    to the builder.
    """

    max_batch: PositiveInt = 8
    opt_batch: tuple[PositiveInt, ...] = (1,)
    optimization_level: Annotated[int, Field(ge=0, le=5)] | None = None
    workspace_mib: PositiveInt | None = None

    @model_validator(mode="after")
    def _within(self) -> Self:
        if not self.opt_batch or sorted(set(self.opt_batch)) != list(self.opt_batch):
            raise ValueError("opt_batch must be different numbers in rising order")
        if self.opt_batch[-1] > self.max_batch:
            most, best = self.max_batch, self.opt_batch[-1]
            raise ValueError(f"the batch to tune for, {best}, exceeds the largest, {most}")
        return self


class EngineInfo(_Strict):
    """One graph compiled by TensorRT or TensorRT-RTX, and how.

    ``version`` is the backend's. ``compute_capabilities`` are those of the GPUs it runs on;
    ``gpu`` is the one it was built on, for the backend that needs one. ``graph_sha256`` is the
    hash of the ONNX file it was made of. ``profiles`` give the range of every input with a
    dimension that varies. ``seconds`` and ``peak_memory_bytes`` are of the build.
    """

    file: Relative
    backend: EngineBackend
    version: str
    graph: str
    precision: Precision
    graph_sha256: Sha256
    compute_capabilities: tuple[Capability, ...] = Field(min_length=1)
    profiles: tuple[dict[str, ShapeRange], ...]
    options: BuildOptions
    gpu: str | None = None
    seconds: float
    peak_memory_bytes: int


class ClassCondition(_Strict):
    """Class ids 0 … ``num_classes − 1`` and the id that means "no class"."""

    kind: Literal["class"] = "class"
    num_classes: PositiveInt
    unconditional_id: int = Field(ge=0)
    class_names: tuple[str, ...] | None = None


class TextCondition(_Strict):
    """Text states ``[length, width]``, float32, and the file with those of the empty text."""

    kind: Literal["text"] = "text"
    length: PositiveInt
    width: PositiveInt
    unconditional_file: Relative | None = None


class PolicyTuning(_Strict):
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


class PolicyInfo(_Strict):
    """One policy network, under the name of its graph.

    ``residual``: the heuristic schedule is added before the activations, so that a zero
    action follows it (AdaNAT's ``heu`` option). ``steps``: the number it was tuned for, if known.
    """

    residual: bool
    steps: PositiveInt | None = None
    tuning: PolicyTuning | None = None


class Defaults(_Strict):
    """What ``generate`` uses when the caller says nothing; ramps are (start, end)."""

    steps: PositiveInt = 8
    schedule: str = "cosine"
    guidance: tuple[float, float] = (0.0, 3.0)
    sampling_temperature: tuple[float, float] = (1.0, 1.0)
    masking_temperature: tuple[float, float] = (4.5, 0.0)


class MaskedModel(_Strict):
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


class CheckpointInfo(_Strict):
    """A checkpoint file that went into the bundle."""

    file: str
    sha256: str


class Provenance(_Strict):
    """Where the bundle came from: enough to make it again."""

    created: str
    command: str
    tools: dict[str, str]
    checkpoints: dict[str, CheckpointInfo]


class Manifest(_Strict):
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
