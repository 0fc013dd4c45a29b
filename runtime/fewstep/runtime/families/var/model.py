"""What a manifest says of a VAR model."""

from __future__ import annotations

import itertools
from typing import Literal

from pydantic import Field, PositiveInt, model_validator
from typing_extensions import Self

from fewstep.runtime.condition import ClassCondition
from fewstep.runtime.decoders import Shapes, decoders_described, with_decoders
from fewstep.runtime.devices import aligned_width
from fewstep.runtime.editing import editing_described, encoder_shapes
from fewstep.runtime.families import ModelInfo
from fewstep.runtime.families.var.settings import VarSettings
from fewstep.runtime.policies import PolicyInfo, PolicyName, described
from fewstep.runtime.presets import Presets, check_presets, presets_described


class VarPolicyInfo(PolicyInfo):
    """A policy network of AdaGen, under the name of its graph.

    ``guidance``, ``top_k``, ``top_p`` and ``sampling_temperature`` are the schedule that an action
    of zeros follows: the authors' training recipe, which their files do not hold.
    """

    guidance: float = Field(default=1.5, gt=0, allow_inf_nan=False)
    top_k: float = Field(default=900.0, gt=0, lt=4096)  # 4096 times a sigmoid, in every model
    top_p: float = Field(default=0.96, gt=0, lt=1)
    sampling_temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)


class VarModel(ModelInfo):
    """A transformer that predicts the next scale, with a multi-scale tokenizer.

    ``patch_nums``: sides of the token maps, in their order; the last is the side of f̂.
    ``codebook_size``: codes V; ``codebook_width``: of a code, and channels of f̂. ``phis``: which φ
    each scale is smoothed with. ``depth``, ``width``: of the transformer. ``policies`` are by
    graph name, oldest first; ``feature_side`` of the map that they read. ``presets``: settings by
    the name of a preset.
    """

    kind: Literal["var"] = "var"
    patch_nums: tuple[PositiveInt, ...] = Field(min_length=1)
    phis: tuple[int, ...]
    codebook_size: PositiveInt
    codebook_width: PositiveInt
    depth: PositiveInt
    width: PositiveInt
    image_size: tuple[PositiveInt, PositiveInt]
    condition: ClassCondition
    policies: dict[PolicyName, VarPolicyInfo] = {}
    presets: Presets = {}
    feature_side: PositiveInt = 16
    defaults: VarSettings = VarSettings()

    @property
    def scales(self) -> int:
        """How many scales there are, S."""
        return len(self.patch_nums)

    @property
    def counts(self) -> tuple[int, ...]:
        """Tokens of every scale."""
        return tuple(side * side for side in self.patch_nums)

    @property
    def starts(self) -> tuple[int, ...]:
        """Tokens before every scale, and of all: S + 1 numbers."""
        return (0, *itertools.accumulate(self.counts))

    @property
    def num_tokens(self) -> int:
        """Tokens of all scales, L."""
        return self.starts[-1]

    @property
    def cell(self) -> tuple[int, int]:
        """Of the last scale."""
        height, width = self.image_size
        return height // self.grid, width // self.grid

    @property
    def grid(self) -> int:
        """Side of f̂, G."""
        return self.patch_nums[-1]

    @property
    def cache_width(self) -> int:
        """Width of a key or value in the cache: so many that any of them may begin a tensor that
        an engine reads."""
        return aligned_width(self.width)

    @property
    def cache_names(self) -> tuple[str, ...]:
        """Of the keys and values of all blocks, in the order of the cache."""
        return tuple(f"{what}_{block}" for block in range(self.depth) for what in ("key", "value"))

    @property
    def can_guide(self) -> bool:
        """Whether there is an unconditional condition."""
        return self.condition.has_unconditional

    def tensor_shapes(self) -> dict[tuple[str, str], tuple[int | str, ...]]:
        """Shape of every (graph, tensor) that the decode binds."""
        width, grid, side = self.width, self.grid, self.feature_side
        modulation = ("batch", self.depth, 6, width)
        head_modulation, hidden = ("batch", 2, width), ("batch", "length", width)
        latents = ("batch", self.codebook_width, grid, grid)
        shapes: Shapes = {
            ("start", "condition"): ("batch",),
            ("start", "embeds"): ("batch", self.counts[0], width),
            ("start", "modulation"): modulation,
            ("start", "head_modulation"): head_modulation,
            ("trunk", "embeds"): hidden,
            ("trunk", "modulation"): modulation,
            ("trunk", "hidden"): hidden,
            ("head", "hidden"): hidden,
            ("head", "head_modulation"): head_modulation,
            ("head", "logits"): ("batch", "length", self.codebook_size),
            ("next_scale", "tokens"): ("batch", "side", "side"),
            ("next_scale", "f_hat"): latents,
            ("next_scale", "up"): (grid, "side"),
            ("next_scale", "down"): ("next_side", grid),
            ("next_scale", "phi"): (1,),
            ("next_scale", "positions"): ("next_side", "next_side"),
            ("next_scale", "next_f_hat"): latents,
            ("next_scale", "embeds"): ("batch", "next_side", "next_side", width),
            ("decoder", "f_hat"): latents,
            ("decoder", "image"): ("batch", 3, *self.image_size),
        }
        for name in self.cache_names:
            shapes["trunk", f"past_{name}"] = ("past", "batch", self.cache_width)
            shapes["trunk", f"new_{name}"] = ("length", "batch", self.cache_width)
        if self.policies:
            shapes["features", "hidden"] = ("batch", "side", "side", width)
            shapes["features", "resize"] = (side, "side")
            shapes["features", "features"] = ("batch", side * side, width)
        for graph in self.policies:
            shapes[graph, "features"] = ("batch", side * side, width)
            shapes |= {(graph, "step"): ("batch",), (graph, "action"): ("batch", 4)}
        return with_decoders(shapes, self.decoders) | encoder_shapes(self, self.num_tokens)

    def describe(self) -> dict[str, str]:
        """Scales and policies, for people."""
        sides = ", ".join(map(str, self.patch_nums))
        return {
            "scales": f"{self.scales} of sides {sides}: {self.num_tokens} tokens of "
            f"{self.codebook_size:,} codes",
            "policy networks": described(self.policies),
            **presets_described(self.presets),
            **decoders_described(self.decoders),
            **editing_described(self),
        }

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if list(self.patch_nums) != sorted(set(self.patch_nums)):
            raise ValueError(f"patch_nums must be rising sides, got {list(self.patch_nums)}")
        if len(self.phis) != self.scales or min(self.phis) < 0:
            raise ValueError(f"phis must be {self.scales} indices, got {list(self.phis)}")
        check_presets(self.presets, self.defaults)
        return self
