"""A text encoder's tokenizer, as it is put into a bundle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

EXAMPLES = (
    "a photo of a dog",
    "two red bicycles in front of a house",
    "an oil painting of mountains at sunset, highly detailed",
    "children play on a beach",
)
"""Texts of golden rollouts and benchmarks."""


@dataclass(frozen=True)
class TokenizerFile:
    """A tokenizer that was read.

    Args:
        json: contents of a ``tokenizer.json``; it cuts texts to ``length`` ids, the end token the
            last of them, and does not pad.
        length: ids of a text at most.
        end_id: id of the token at the end of a text.
        pad_id: id that texts are padded with.
        largest_id: of all tokens.
        nothing: ids of the empty text, not padded.
        examples: the same of :data:`EXAMPLES`.
        files: that were read.
    """

    json: str
    length: int
    end_id: int
    pad_id: int
    largest_id: int
    nothing: tuple[int, ...]
    examples: tuple[tuple[int, ...], ...]
    files: tuple[Path, ...]
