"""Decoders: what turns tokens or latents into an image, and smaller ones that do it faster.

The full decoder is that of the tokenizer's authors, the graph ``decoder``. ``fewstep calibrate
decoder`` distils smaller ones from it: further graphs ``decoder-NAME`` with the same inputs and
outputs, which a request chooses by the setting ``decoder``. Tokens do not depend on that choice.

The model's description lists them as ``decoders``: a :class:`DecoderInfo` by name. Each has a
golden rollout under the name of its graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field, PositiveInt

from fewstep.runtime.errors import RequestError, choose
from fewstep.runtime.records import Sha256, Strict

DECODER = "decoder"
"""The graph of the full decoder."""

FULL = "full"
"""The setting that chooses it."""


def _no_other(name: str) -> str:
    if name == FULL:
        raise ValueError(f"{FULL} is the decoder of the bundle's tokenizer")
    return name


DecoderName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$"), AfterValidator(_no_other)]
"""Of a distilled decoder."""

DECODER_SETTING = Field(
    default=FULL,
    description="What draws the image: full, the tokenizer's own, or a smaller one of the bundle's "
    "(fewstep calibrate decoder makes one, small).",
)
"""The setting ``decoder`` of families whose models may have several."""


class DecoderInfo(Strict):
    """A decoder that ``fewstep calibrate decoder`` distilled from the full one.

    ``full_sha256``: of the graph that it learned from, ``tokenizer_sha256`` of the checkpoint of
    that. ``rollouts``: of the bundle, with ``settings`` and seeds from ``seed`` on, whose images it
    learned in ``updates``. ``psnr_db``: from the full decoder's images of ``held_out`` further
    rollouts, clamped, the mean over images. ``flops``, ``full_flops``: operations of matmuls and
    convolutions of one image, of it and of the full decoder.
    """

    created: str
    command: str
    tools: dict[str, str]
    full_sha256: Sha256
    tokenizer_sha256: Sha256 | None = None
    rollouts: PositiveInt
    settings: dict[str, Any]
    seed: int
    updates: PositiveInt
    held_out: PositiveInt
    psnr_db: float
    flops: PositiveInt
    full_flops: PositiveInt

    @property
    def smaller(self) -> float:
        """How many times fewer operations it has."""
        return self.full_flops / self.flops


Decoders = dict[DecoderName, DecoderInfo]
"""Distilled decoders by name, as a manifest has them."""

Shapes = dict[tuple[str, str], tuple[int | str, ...]]


def decoder_graph(name: str) -> str:
    """The graph of a distilled decoder."""
    return f"{DECODER}-{name}"


def chosen_decoder(decoders: Mapping[str, DecoderInfo], name: str) -> str:
    """The graph that the setting ``decoder`` chooses.

    Raises:
        RequestError: there is no such decoder.
    """
    if name == FULL:
        return DECODER
    if name not in decoders:
        hint = "" if decoders else " Make a small one with: fewstep calibrate decoder"
        raise RequestError(choose("decoder", name, [FULL, *decoders]) + hint)
    return decoder_graph(name)


def with_decoders(shapes: Shapes, decoders: Mapping[str, DecoderInfo]) -> Shapes:
    """Shapes by graph and tensor, those of distilled decoders too: the full one's."""
    own = {tensor: shape for (graph, tensor), shape in shapes.items() if graph == DECODER}
    more = {(decoder_graph(name), t): shape for name in decoders for t, shape in own.items()}
    return {**shapes, **more}


def with_decoder_rollouts(
    rollouts: dict[str, dict[str, Any]], decoders: Mapping[str, DecoderInfo]
) -> dict[str, dict[str, Any]]:
    """Golden rollouts, which all use the full decoder, and the first of them again with each of the
    others, under the name of its graph."""
    full = {name: {**settings, "decoder": FULL} for name, settings in rollouts.items()}
    first = next(iter(full.values()))
    return {**full, **{decoder_graph(name): {**first, "decoder": name} for name in decoders}}


def decoders_described(decoders: Mapping[str, DecoderInfo]) -> dict[str, str]:
    """What ``fewstep inspect`` shows of them."""
    said = [
        f"{name} ({each.smaller:.1f} times fewer operations, {each.psnr_db:.1f} dB from full)"
        for name, each in decoders.items()
    ]
    return {"decoders": ", ".join([FULL, *said])} if said else {}
