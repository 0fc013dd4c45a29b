"""What a manifest says of a masked model."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt, model_validator
from typing_extensions import Self

from fewstep.runtime.condition import ClassCondition, TextCondition
from fewstep.runtime.families import ModelInfo
from fewstep.runtime.families.masked.settings import MaskedSettings
from fewstep.runtime.policies import PolicyInfo, PolicyName, described


class MaskedPolicyInfo(PolicyInfo):
    """A policy network of AdaNAT.

    ``residual``: the heuristic schedule is added before the activations, so that a zero
    action follows it (AdaNAT's ``heu`` option).
    """

    residual: bool


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
    policies: dict[PolicyName, MaskedPolicyInfo] = {}
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
            "policy networks": described(self.policies),
        }

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.mask_token < self.codebook_size:
            raise ValueError(f"mask_token {self.mask_token} is one of the codes")
        return self
