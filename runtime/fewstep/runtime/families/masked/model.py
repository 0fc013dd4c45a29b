"""What a manifest says of a masked model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, PositiveInt, model_validator
from typing_extensions import Self

from fewstep.runtime.condition import ClassCondition, TextCondition
from fewstep.runtime.errors import BundleError
from fewstep.runtime.families import ModelInfo
from fewstep.runtime.families.masked.settings import MaskedSettings
from fewstep.runtime.records import Precision, Sha256, Strict

if TYPE_CHECKING:
    from fewstep.runtime.bundle import Bundle

PolicyName = Annotated[str, Field(pattern=r"^policy[a-z0-9-]*$")]
"""Of a policy graph; "policy" in front keeps it apart from other graphs and schedules."""


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


class MaskedModel(ModelInfo):
    """A masked token transformer with a VQ tokenizer (MaskGIT, AdaNAT).

    ``mask_token`` is the id of a masked position; tokens are 0 … ``codebook_size − 1``.
    ``policies`` are by graph name, oldest first. ``at_least_one``: every step decides a token at
    least (MaskGIT's rule); AdaNAT has none, and its steps may decide nothing.
    """

    kind: Literal["masked"] = "masked"
    grid: tuple[PositiveInt, PositiveInt]
    codebook_size: PositiveInt
    mask_token: int = Field(ge=0)
    feature_width: PositiveInt
    image_size: tuple[PositiveInt, PositiveInt]
    condition: ClassCondition | TextCondition = Field(discriminator="kind")
    policies: dict[PolicyName, PolicyInfo] = {}
    at_least_one: bool = False
    defaults: MaskedSettings = MaskedSettings()

    @property
    def num_tokens(self) -> int:
        """Tokens per image, N."""
        return self.grid[0] * self.grid[1]

    @property
    def condition_input(self) -> str:
        """Name of the transformer's condition input."""
        return "condition" if isinstance(self.condition, ClassCondition) else "text"

    @property
    def can_guide(self) -> bool:
        """Whether there is an unconditional condition."""
        return self.condition.has_unconditional

    def tensor_shapes(self) -> dict[tuple[str, str], tuple[int | str, ...]]:
        """Shape of every (graph, tensor) that the decode binds."""
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
        return {name: ("batch", *shape) for name, shape in shapes.items()}

    def describe(self) -> dict[str, str]:
        """Tokens and policies, for people."""
        rows, columns = self.grid
        least = "; every step decides one at least" if self.at_least_one else ""
        return {
            "tokens": f"{rows} × {columns} of {self.codebook_size:,} codes{least}",
            "policy networks": ", ".join(map(_policy, self.policies.items())) or "-",
        }

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
        return self


def _policy(named: tuple[str, PolicyInfo]) -> str:
    name, info = named
    if info.untrained_seed is not None:
        return f"{name} (untrained)"
    return name if info.steps is None else f"{name} (for {info.steps} steps)"


def masked_model(bundle: Bundle) -> MaskedModel:
    """A bundle's model, for what only masked models have.

    Raises:
        BundleError: the bundle is of another family.
    """
    model = bundle.manifest.model
    if not isinstance(model, MaskedModel):
        raise BundleError(
            f"{bundle.path} is of the family {model.kind}; only masked models have policies"
        )
    return model
