"""What a manifest says of a masked model."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from typing_extensions import Self

from fewstep.runtime.condition import ClassCondition, TextCondition, TextEncoder
from fewstep.runtime.decoders import Shapes, decoders_described, with_decoders
from fewstep.runtime.editing import editing_described, encoder_shapes
from fewstep.runtime.families import ModelInfo
from fewstep.runtime.families.masked.rules import Rules
from fewstep.runtime.families.masked.settings import MaskedSettings
from fewstep.runtime.policies import PolicyInfo, PolicyName, described
from fewstep.runtime.presets import Presets, check_presets, presets_described

_MARGIN = 1e-3  # keeps residuals finite at the first and last step


def _inverse_softplus(value: float) -> float:
    return math.log(math.expm1(value))


class MaskedPolicyInfo(PolicyInfo):
    """A policy network of AdaNAT.

    ``residual``: a heuristic schedule is added before the activations, so that a zero action
    follows it (AdaNAT's ``heu`` option, and AdaGen): a cosine, a masking temperature that falls
    from ``masking_temperature`` to 0, ``sampling_temperature``, and a guidance that rises to
    ``guidance``. ``smoothing``: how much of the actions before a step counts (AdaGen), 0 … 1.
    """

    residual: bool
    masking_temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    sampling_temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    guidance: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    smoothing: float = Field(default=0.0, ge=0, lt=1)

    def offsets(self, step: int, steps: int) -> dict[str, float]:
        """What ``kernels.policy_parameters`` adds to the actions of a step, by argument.

        With r = (t + 1 − 10⁻³) / T these are logit(cos(π·r/2)), softplus⁻¹((1 − r)·masking),
        softplus⁻¹(sampling) and softplus⁻¹(guidance·(t + 10⁻³) / T), as in ``PPO.py`` of the
        AdaNAT repository; 0 without ``residual``.
        """
        names = ("ratio_offset", "masking_offset", "sampling_offset", "guidance_offset")
        if not self.residual:
            return dict.fromkeys(names, 0.0)
        r = (step + 1 - _MARGIN) / steps
        ratio = math.cos(math.pi * r / 2)
        followed = (
            (1 - r) * self.masking_temperature,
            self.sampling_temperature,
            self.guidance * (step + _MARGIN) / steps,
        )
        offsets = (math.log(ratio / (1 - ratio)), *map(_inverse_softplus, followed))
        return dict(zip(names, offsets, strict=True))


class MaskedModel(ModelInfo):
    """A masked token transformer with a VQ tokenizer (MaskGIT, AdaNAT).

    ``mask_token`` is the id of a masked position; tokens are 0 … ``codebook_size − 1``.
    ``policies`` are by graph name, oldest first. ``at_least_one``: every step decides a token at
    least (MaskGIT's rule); AdaNAT has none, and its steps may decide nothing. ``rules``: what else
    differs between forms. ``cached_blocks``: blocks whose keys and values the transformer takes and
    gives, so that it can compute some positions beside others; 0 if it always computes all.
    ``presets``: settings by the name of a preset.
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
    rules: Rules = Rules()
    cached_blocks: NonNegativeInt = 0
    presets: Presets = {}
    defaults: MaskedSettings = MaskedSettings()

    @property
    def num_tokens(self) -> int:
        """Tokens per image, N."""
        return self.grid[0] * self.grid[1]

    @property
    def placed(self) -> bool:
        """Whether every token has a square of the picture, row by row; those of 1D tokenizers have
        no place in it."""
        return self.image_size[0] * self.grid[1] == self.image_size[1] * self.grid[0]

    @property
    def cell(self) -> tuple[int, int]:
        (height, width), (rows, columns) = self.image_size, self.grid
        return (height // rows, width // columns) if self.placed else self.image_size

    @property
    def logits_width(self) -> int:
        """Numbers of a position's logits: the codes, and the mask token where it is sampled."""
        return self.codebook_size + self.rules.mask_sampled

    @property
    def condition_input(self) -> str:
        """Name of the transformer's condition input."""
        return "condition" if isinstance(self.condition, ClassCondition) else "text"

    @property
    def encoder(self) -> TextEncoder | None:
        """Of prompts, if there is one."""
        return None if isinstance(self.condition, ClassCondition) else self.condition.encoder

    @property
    def cache_names(self) -> tuple[str, ...]:
        """Of the keys and values of the transformer's blocks, in the order of their cache."""
        blocks = range(self.cached_blocks)
        return tuple(f"{what}_{block}" for block in blocks for what in ("key", "value"))

    @property
    def can_guide(self) -> bool:
        """Whether there is an unconditional condition."""
        return self.condition.has_unconditional

    def tensor_shapes(self) -> dict[tuple[str, str], tuple[int | str, ...]]:
        """Shape of every (graph, tensor) that the decode binds."""
        n, width, text = self.num_tokens, self.feature_width, self.condition
        condition = () if isinstance(text, ClassCondition) else (text.length, text.width)
        length = "length" if self.cached_blocks else n
        shapes: Shapes = {
            ("transformer", "tokens"): (length,),
            ("transformer", self.condition_input): condition,
            ("transformer", "logits"): (length, self.logits_width),
            ("decoder", "tokens"): (n,),
            ("decoder", "image"): (3, *self.image_size),
        }
        if self.encoder is not None:
            shapes |= {("text_encoder", "ids"): (self.encoder.tokens,)}
            shapes |= {("text_encoder", "text"): condition}
        if self.cached_blocks:
            shapes["transformer", "positions"] = (length,)
        for name in self.cache_names:
            shapes["transformer", f"past_{name}"] = ("past", width)
            shapes["transformer", f"new_{name}"] = (length, width)
        for graph in self.policies:
            shapes |= {("transformer", "features"): (length, width)}
            shapes |= {(graph, "features"): (n, width)}
            shapes |= {(graph, "step"): (), (graph, "action"): (4,)}
        batched: Shapes = {name: ("batch", *shape) for name, shape in shapes.items()}
        return with_decoders(batched, self.decoders) | encoder_shapes(self, n)

    def describe(self) -> dict[str, str]:
        """Tokens and policies, for people."""
        rows, columns = self.grid
        cached = {"cached context": f"{self.cached_blocks} blocks"} if self.cached_blocks else {}
        least = "; every step decides one at least" if self.at_least_one else ""
        return {
            "tokens": f"{rows} × {columns} of {self.codebook_size:,} codes{least}",
            "policy networks": described(self.policies),
            **cached,
            **presets_described(self.presets),
            **decoders_described(self.decoders),
            **editing_described(self),
        }

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.mask_token < self.codebook_size:
            raise ValueError(f"mask_token {self.mask_token} is one of the codes")
        if self.rules.mask_sampled and self.mask_token != self.codebook_size:
            raise ValueError(f"a mask token that is sampled must be {self.codebook_size}")
        check_presets(self.presets, self.defaults)
        return self
