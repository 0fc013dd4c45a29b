"""Records of a bundle's files in its manifest: graphs, CUDA kernels and engines, and how each was
made. :mod:`fewstep.runtime.manifest` puts them together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)
from typing_extensions import Self

DType = Literal["float32", "float16", "bfloat16", "int32", "int64", "uint8"]
Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8"]
EngineBackend = Literal["tensorrt", "tensorrt-rtx"]
OtherLayers = Literal["fp32", "fp16"]
RangeMethod = Literal["min-max", "entropy", "percentile"]
Keeper = Literal["rules", "user", "auto"]
Relative = Annotated[str, Field(min_length=1)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Capability = Annotated[str, Field(pattern=r"^\d+\.\d$")]
Shape = tuple[NonNegativeInt, ...]


class Strict(BaseModel):
    """What cannot be changed, and refuses unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="after")
    @classmethod
    def _is_text(cls, value: Any) -> Any:
        """Names of files and commands may have bytes that are no text, which JSON cannot hold."""
        return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value


def found_wrong(error: ValidationError, whole: str) -> str:
    """What pydantic found wrong in a file, by the place of each, in one line.

    Args:
        error: of pydantic.
        whole: what to call the file itself, where no place in it is wrong.
    """
    return "; ".join(
        f"{'.'.join(map(str, each['loc'])) or whole}: {each['msg'].removeprefix('Value error, ')}"
        for each in error.errors()
    )


class TensorInfo(Strict):
    """One graph input or output; a dimension that may vary carries its name.

    ``batch`` is the name of the one along which there are images, or twice as many.
    """

    dtype: DType
    shape: tuple[int | str, ...]

    @property
    def varies(self) -> bool:
        """Whether any dimension does."""
        return any(isinstance(size, str) for size in self.shape)


class Metrics(Strict):
    """How near a quantized graph comes to the fp32 one, on held-out rollouts.

    Of the logits that it gives, or that follow from it, at positions that count: ``kl_nats``, mean
    KL divergence from those of the fp32 graph, in nats; ``token_agreement``, fraction of positions
    whose most likely code stays the same; where it reads texts, ``cosine``, the mean cosine of
    their states with those of the fp32 graph, besides. Of a graph that gives images, in 0 … 1:
    ``psnr_db``, 10 log₁₀(1 / mean squared difference), at most 120 dB. Of another that no logits
    follow from: ``relative_error``, √(Σ|y − y'|² / Σ|y|²) of what it gives, y that of the fp32
    graph.
    """

    kl_nats: float | None = None
    token_agreement: float | None = None
    cosine: float | None = None
    relative_error: float | None = None
    psnr_db: float | None = None

    @model_validator(mode="after")
    def _of_one_kind(self) -> Self:
        alone = (self.relative_error, self.psnr_db)
        given = [each is not None for each in (self.kl_nats, self.token_agreement)]
        logits = alone.count(None) == len(alone)
        if given != [logits] * 2 or None not in alone:
            raise ValueError("expected kl_nats and token_agreement, relative_error or psnr_db")
        return self

    @property
    def cost(self) -> float:
        """What a ranking goes by, the lower the better: KL divergence, relative error, or the mean
        squared difference of images."""
        if self.psnr_db is not None:
            return float(10 ** (-self.psnr_db / 10))
        cost = self.kl_nats if self.relative_error is None else self.relative_error
        assert cost is not None
        return cost

    @property
    def text(self) -> str:
        """For people."""
        if self.psnr_db is not None:
            return f"PSNR {self.psnr_db:.1f} dB"
        if self.relative_error is not None:
            return f"relative error {self.relative_error:.3g}"
        text = f"KL {self.kl_nats:.3g} nats, token agreement {self.token_agreement:.4f}"
        return text if self.cosine is None else f"{text}, cosine of text states {self.cosine:.4f}"

    def within(self, tolerances: AutoChoice) -> bool:
        """Whether the tolerances of what was measured are kept; ``None`` is always."""
        upper = (
            (self.kl_nats, tolerances.max_kl),
            (self.relative_error, tolerances.max_error),
            (tolerances.min_token_agreement, self.token_agreement),
            (tolerances.min_psnr, self.psnr_db),
        )
        return all(low <= high for low, high in upper if low is not None and high is not None)


class LayerCost(Metrics):
    """What quantizing some layers, and nothing else, costs."""

    nodes: tuple[str, ...]


class AutoChoice(Strict):
    """How layers were chosen to stay in higher precision; ``ranking``: most expensive first.

    The tolerances are on the :class:`Metrics` of the whole graph, each ``None`` where the graph is
    not judged by it.
    """

    by: Literal["layer", "block"]
    max_kl: float | None = None
    min_token_agreement: float | None = None
    max_error: float | None = None
    min_psnr: float | None = None
    ranking: tuple[LayerCost, ...] = ()


class QuantizationInfo(Metrics):
    """How a graph was quantized: enough to do it again.

    ``tool`` quantized it, with ranges by ``method`` (``percentile`` of the magnitudes, where that
    is the method) from activations of ``rollouts`` rollouts with these ``settings``. Their seeds
    count up from ``seed``; those of the ``held_out`` rollouts, on which the :class:`Metrics` of the
    whole graph were measured, follow. ``data_sha256`` is the hash of what ranges were measured on,
    ``text_sha256`` of the rollouts' texts. ``kept``: matmuls with weights that are not quantized,
    and who said so. ``weights_only``: activations are not quantized, and no ranges were measured;
    tables of embeddings count as matmuls. ``convolutions``: some are quantized; in ``kept`` they
    count as matmuls. ``other_layers``: the type of all other arithmetic.
    """

    tool: str
    method: RangeMethod
    percentile: float | None = None
    rollouts: PositiveInt
    held_out: PositiveInt
    seed: int = Field(ge=0)
    settings: dict[str, Any]
    text_sha256: Sha256 | None = None
    data_sha256: Sha256
    other_layers: OtherLayers
    weights_only: bool = False
    convolutions: bool = False
    kept: dict[str, Keeper]
    auto: AutoChoice | None = None

    @model_validator(mode="before")
    @classmethod
    def _older(cls, value: Any) -> Any:
        """Bundles made before there were other families name two settings by themselves."""
        if isinstance(value, dict) and "settings" not in value:
            older = {name: value[name] for name in ("steps", "schedule") if name in value}
            value = {k: v for k, v in value.items() if k not in older} | {"settings": older}
        return value


class GraphInfo(Strict):
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


class JudgeInfo(Strict):
    """A graph that scores images, which no program runs (:mod:`fewstep.runtime.best_of`).

    ``graph``: its file, inputs and outputs. It is the discriminator that the tuning of ``policy``
    trained in ``updates`` updates on the frozen network ``features``, with real images of the hash
    ``data_sha256``.
    """

    graph: GraphInfo
    policy: str
    features: str
    updates: PositiveInt
    data_sha256: Sha256


class FileInfo(Strict):
    """Size and hash of one file of the bundle."""

    bytes: int = Field(ge=0)
    sha256: Sha256


class KernelsInfo(Strict):
    """CUDA kernels compiled ahead of time, one file per compute capability ("8.7").

    ``compiler`` ends with its CUDA version; ``sources_sha256`` is the hash of the sources they
    were made of: a runtime with other sources refuses them.
    """

    compiler: str = Field(pattern=r"^\S+ \d+\.\d+$")
    sources_sha256: Sha256
    cubins: dict[Capability, Relative]


class ShapeRange(Strict):
    """Shapes of one input that an optimization profile spans, and the one it is tuned for."""

    min: Shape
    opt: Shape
    max: Shape

    @classmethod
    def of(cls, least: Sequence[int], best: Sequence[int], most: Sequence[int]) -> Self:
        """Of shapes that a backend gives, in any kind of sequence."""
        shapes = (tuple(int(size) for size in each) for each in (least, best, most))
        low, middle, high = shapes
        return cls(min=low, opt=middle, max=high)

    def spans(self, shape: Sequence[int]) -> bool:
        """Whether a shape lies within."""
        ends = zip(self.min, shape, self.max, strict=True)
        return all(least <= size <= most for least, size, most in ends)


class BuildOptions(Strict):
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


class VerifiedOn(Strict):
    """``fewstep verify`` passed with an engine on a GPU.

    ``driver`` is the newest CUDA version that its driver runs; ``engine_sha256`` the hash of the
    engine's file at that time. ``fewstep`` is the version that verified, ``date`` when it did.
    """

    gpu: str
    compute_capability: Capability
    driver: Annotated[str, Field(pattern=r"^\d+\.\d+$")]
    engine_sha256: Sha256
    fewstep: str
    date: str


class EngineInfo(Strict):
    """One graph compiled by TensorRT or TensorRT-RTX, and how.

    ``version`` is the backend's. ``compute_capabilities`` are those of the GPUs it runs on;
    ``gpu`` is the one it was built on, for the backend that needs one. ``graph_sha256`` is the
    hash of the ONNX file it was made of. ``profiles`` give the range of every input with a
    dimension that varies. ``seconds`` and ``peak_memory_bytes`` are of the build. ``verified``
    has a mark for every GPU that it was last verified on, and is new with every build.
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
    verified: tuple[VerifiedOn, ...] = ()
