"""What a manifest says of a MAR model."""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from typing_extensions import Self

from fewstep.runtime.condition import ClassCondition
from fewstep.runtime.decoders import Shapes, decoders_described, with_decoders
from fewstep.runtime.devices import aligned_width
from fewstep.runtime.editing import editing_described, encoder_shapes
from fewstep.runtime.families import ModelInfo
from fewstep.runtime.families.mar.settings import MarSettings
from fewstep.runtime.presets import Presets, check_presets, presets_described


class MarModel(ModelInfo):
    """A transformer over continuous tokens, with a diffusion head and a KL autoencoder.

    ``side``: tokens along the side of an image; ``channels``: numbers of a token, those of a patch
    of ``patch_size`` × ``patch_size`` positions of the latents. ``latent_scale``: what tokens are
    divided by before they are decoded. ``buffer_size``: positions beside the tokens.
    ``encoder_…`` and ``decoder_…`` of the transformer. ``full_blocks``: of the decoder's blocks,
    those that are computed for all positions even between refreshes; of the next one its attention
    is, whose values tell what has changed. ``head_width``: of the diffusion head. ``presets``:
    settings by the name of a preset.
    """

    kind: Literal["mar"] = "mar"
    side: PositiveInt
    channels: PositiveInt
    patch_size: PositiveInt
    latent_scale: PositiveFloat
    buffer_size: PositiveInt
    encoder_width: PositiveInt
    encoder_depth: PositiveInt
    decoder_width: PositiveInt
    decoder_depth: PositiveInt
    decoder_heads: PositiveInt
    full_blocks: NonNegativeInt
    head_width: PositiveInt
    image_size: tuple[PositiveInt, PositiveInt]
    condition: ClassCondition
    presets: Presets = {}
    defaults: MarSettings = MarSettings()

    @property
    def cell(self) -> tuple[int, int]:
        height, width = self.image_size
        return height // self.side, width // self.side

    @property
    def num_tokens(self) -> int:
        """Tokens of an image, L."""
        return self.side**2

    @property
    def positions(self) -> int:
        """Of the decoder: tokens, then buffer."""
        return self.num_tokens + self.buffer_size

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the latents of an image."""
        side = self.side * self.patch_size
        return self.channels // self.patch_size**2, side, side

    @property
    def cache_width(self) -> int:
        """Width of an encoder's key or value in its cache: so many that any of them may begin a
        tensor that an engine reads."""
        return aligned_width(self.encoder_width)

    @property
    def encoder_names(self) -> tuple[str, ...]:
        """Of the keys and values of the encoder's blocks, in the order of their cache."""
        return _names(range(self.encoder_depth))

    @property
    def decoder_names(self) -> tuple[str, ...]:
        """Of the keys and values of the decoder's blocks that have a cache, in its order."""
        return _names(range(self.full_blocks + 1, self.decoder_depth))

    @property
    def can_guide(self) -> bool:
        """Whether there is an unconditional condition."""
        return self.condition.has_unconditional

    def tensor_shapes(self) -> dict[tuple[str, str], tuple[int | str, ...]]:
        """Shape of every (graph, tensor) that the decode binds."""
        tokens, places = self.num_tokens, self.positions
        width, head = self.decoder_width, self.head_width
        buffer = (self.buffer_size, "batch", width)
        every, x = (places, "batch", width), ("batch", "count", self.channels)
        given, output = ("length", "batch", width), ("wanted", "batch", width)
        shapes: Shapes = {
            ("encoder", "tokens"): ("length", "batch", self.channels),
            ("encoder", "positions"): ("length", "batch"),
            ("encoder", "condition"): ("batch",),
            ("encoder", "buffer"): buffer,
            ("encoder", "embeds"): given,
            ("decoder_start", "buffer"): buffer,
            ("decoder_start", "embeds"): given,
            ("decoder_start", "order"): (tokens, "batch"),
            ("decoder_start", "hidden"): every,
            ("decoder_start", "value"): every,
            ("decoder_rest", "hidden"): given,
            ("decoder_rest", "wanted"): ("wanted",),
            ("decoder_rest", "output"): output,
            ("readout", "output"): output,
            ("readout", "positions"): output[:2],
            ("readout", "z"): ("batch", "wanted", width),
            ("readout", "embedded"): ("batch", "wanted", head),
            ("head", "x"): x,
            ("head", "timestep"): (1,),
            ("head", "embedded"): ("batch", "count", head),
            ("head", "denoised"): ("batch", "count", 2 * self.channels),
            ("decoder", "tokens"): ("batch", tokens, self.channels),
            ("decoder", "image"): ("batch", 3, *self.image_size),
        }
        own = {
            "encoder": (self.encoder_names, self.cache_width),
            "decoder_rest": (self.decoder_names, width),
        }
        for graph, (names, cached) in own.items():
            for name in names:
                shapes[graph, f"past_{name}"] = ("past", "batch", cached)
                shapes[graph, f"new_{name}"] = ("length", "batch", cached)
        shapes |= encoder_shapes(self, tokens, self.channels)
        return with_decoders(shapes, self.decoders)

    def describe(self) -> dict[str, str]:
        """Tokens and networks, for people."""
        patch = f", patches of {self.patch_size}×{self.patch_size}" if self.patch_size > 1 else ""
        return {
            "tokens": f"{self.side}×{self.side} of {self.channels} numbers{patch}",
            "transformer": f"encoder {self.encoder_depth} × {self.encoder_width}, decoder "
            f"{self.decoder_depth} × {self.decoder_width}, {self.buffer_size} buffer positions",
            "diffusion head": f"width {self.head_width}",
            "latent scale": f"{self.latent_scale:g}",
            **presets_described(self.presets),
            **decoders_described(self.decoders),
            **editing_described(self),
        }

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.channels % self.patch_size**2:
            raise ValueError(
                f"channels must be a multiple of patch_size squared, got {self.channels} and "
                f"{self.patch_size}"
            )
        if self.decoder_width % self.decoder_heads:
            raise ValueError(
                f"decoder_width must be a multiple of decoder_heads, got {self.decoder_width} and "
                f"{self.decoder_heads}"
            )
        if self.full_blocks >= self.decoder_depth:
            raise ValueError(
                f"full_blocks must be below decoder_depth, {self.decoder_depth}, got "
                f"{self.full_blocks}"
            )
        check_presets(self.presets, self.defaults)
        return self


def _names(blocks: range) -> tuple[str, ...]:
    return tuple(f"{what}_{block}" for block in blocks for what in ("key", "value"))
