"""The diffusion of MAR's head as guided-diffusion writes it: which timesteps, and one step of each.

Independent of fewstep's: a step predicts x₀ and takes the posterior's mean, all tables are float64,
and timesteps are sets as in ``respace.py`` of LTH14/mar.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""Tokens ``[K, C]`` and their timesteps ``[K]`` → noise and what its variance is made of,
``[K, 2·C]``."""

Table = npt.NDArray[np.float64]

TIMESTEPS = 1000


def space_timesteps(sections: str, clip: int = TIMESTEPS) -> set[int]:
    """The timesteps that are taken.

    Args:
        sections: ``25``, ``ddim25`` or ``10,15``.
        clip: larger ones become this one, as DiSA's ``clip_timesteps``.

    Raises:
        ValueError: there are no such timesteps.
    """
    if sections.startswith("ddim"):
        wanted = int(sections[4:])
        for stride in range(1, TIMESTEPS):
            if len(range(0, TIMESTEPS, stride)) == wanted:
                return {min(each, clip) for each in range(0, TIMESTEPS, stride)}
        raise ValueError("no stride")
    counts = [int(each) for each in sections.split(",")]
    size_per, extra = TIMESTEPS // len(counts), TIMESTEPS % len(counts)
    start, taken = 0, list[int]()
    for index, count in enumerate(counts):
        size = size_per + (1 if index < extra else 0)
        if size < count:
            raise ValueError("a section is too small")
        fraction = 1.0 if count <= 1 else (size - 1) / (count - 1)
        current = 0.0
        for _ in range(count):
            taken.append(start + round(current))
            current += fraction
        start += size
    return {min(each, clip) for each in taken}


def cosine_betas() -> Table:
    """Betas of all timesteps, from a squared cosine, at most 0.999."""
    betas = np.zeros(TIMESTEPS)
    for index in range(TIMESTEPS):
        ends = (index / TIMESTEPS, (index + 1) / TIMESTEPS)
        first, second = (math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2 for t in ends)
        betas[index] = min(1 - second / first, 0.999)
    return betas


class Spaced:
    """A diffusion of some of the timesteps, with betas of its own."""

    def __init__(self, use: Iterable[int]) -> None:
        chosen, last, betas = set(use), 1.0, list[float]()
        self.timestep_map = list[int]()
        for timestep, product in enumerate(np.cumprod(1.0 - cosine_betas())):
            if timestep in chosen:
                betas.append(1 - product / last)
                last = float(product)
                self.timestep_map.append(timestep)
        self.betas = np.array(betas)
        self.products = np.cumprod(1.0 - self.betas)
        self.previous = np.append(1.0, self.products[:-1])
        self.variance = self.betas * (1.0 - self.previous) / (1.0 - self.products)

    def mean_and_log_variance(self, index: int, x: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
        """Of the posterior, from x ``[K, C]`` and what the head gives, ``[K, 2·C]``."""
        eps, values = out.double().chunk(2, dim=1)
        beta, product = self.betas[index], self.products[index]
        before = self.previous[index]
        start = np.sqrt(1 / product) * x - np.sqrt(1 / product - 1) * eps
        first = beta * np.sqrt(before) / (1 - product)
        second = (1 - before) * np.sqrt(1 - beta) / (1 - product)
        least = self.variance[max(index, 1)] if len(self.betas) > 1 else 1e-20
        part = (values + 1) / 2
        log_variance = part * math.log(beta) + (1 - part) * math.log(least)
        return first * start + second * x, log_variance

    def sample(
        self, model: Denoiser, noise: Callable[[int], Tensor], temperature: float = 1.0
    ) -> Tensor:
        """Tokens ``[K, C]``.

        Args:
            model: what denoises.
            noise: ``[K, C]`` of step 0 at the start, and of step t + 1 at timestep t.
            temperature: the noise of every step is multiplied by this.
        """
        x = noise(0)
        for index in reversed(range(len(self.betas))):
            timestep = self.timestep_map[index]
            out = model(x.float(), torch.full((len(x),), timestep))
            x, log_variance = self.mean_and_log_variance(index, x, out)
            if index > 0:
                x = x + torch.exp(0.5 * log_variance) * noise(timestep + 1) * temperature
        return x
