"""What a program of masked autoregression is made for."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

from fewstep.runtime.decoders import DECODER
from fewstep.runtime.families.mar.diffusion import timesteps


@dataclass(frozen=True)
class MarKey:
    """What a program is made for; seeds, classes, numbers and given tokens are its inputs.

    ``given``: tokens of an image that stay; then ``counts`` are decided, iteration by iteration.
    ``spacings``, ``largest_timestep``, ``recomputed``, ``reuse_guidance`` and ``decoder`` as of a
    request. ``of_image``: tokens that stay are those of a picture, which is encoded.
    """

    batch: int
    given: int
    counts: tuple[int, ...]
    spacings: tuple[str, ...]
    largest_timestep: int
    guided: bool
    recomputed: tuple[int, ...] = ()
    reuse_guidance: bool = False
    decoder: str = DECODER
    of_image: bool = False

    @property
    def rows(self) -> int:
        """Rows that the head runs with."""
        return 2 * self.batch if self.guided else self.batch

    @property
    def transformer_rows(self) -> int:
        """Rows that the transformer runs with."""
        return self.batch if self.reuse_guidance else self.rows

    @property
    def known(self) -> tuple[int, ...]:
        """Tokens that are known before every iteration, and at the end."""
        return tuple(accumulate(self.counts, initial=self.given))

    def refreshes(self, iteration: int) -> bool:
        """Whether everything is computed in an iteration."""
        return not self.recomputed or not self.recomputed[iteration]

    def selects(self, positions: int) -> bool:
        """Whether any iteration computes a part of all positions."""
        return any(0 < each < positions for each in self.recomputed)

    def wanted(self, iteration: int) -> int:
        """Tokens that the decoder gives its output of: those of the iteration, or all that the
        difference of the halves is kept of."""
        if not (self.reuse_guidance and self.refreshes(iteration)):
            return self.counts[iteration]
        ends = (n for n in range(iteration + 1, len(self.counts)) if self.refreshes(n))
        return sum(self.counts[iteration : next(ends, len(self.counts))])

    @property
    def taken(self) -> tuple[tuple[int, ...], ...]:
        """The timesteps of every iteration."""
        return tuple(timesteps(each, self.largest_timestep) for each in self.spacings)

    @property
    def starts(self) -> dict[tuple[int, ...], int]:
        """Where each diffusion begins in the table of all that differ, one after the other."""
        different = dict.fromkeys(self.taken)
        return dict(zip(different, accumulate(map(len, different), initial=0), strict=False))

    @property
    def most_wanted(self) -> int:
        """The most that any iteration wants of the decoder."""
        return max(self.wanted(each) for each in range(len(self.counts)))
