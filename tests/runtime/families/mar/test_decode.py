"""What a MAR bundle decodes, against eager PyTorch as the authors write it.

Covered: guidance, temperature, spacings of timesteps, numbers of iterations, tokens that are given,
and what LazyMAR computes between refreshes; that an image depends on no other of its batch, and
which settings change nothing. Most cases cap timesteps at 950: from the last one an untrained head
gives numbers of 10⁵, beside which later noise is too small to be seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tests import tiny_mar
from tests.runtime.families.mar import drawn
from tests.runtime.families.mar.eager import (
    Decoded,
    Given,
    Guidance,
    constant,
    decode,
    image,
    linear,
    listed,
)
from tests.runtime.families.mar.gaussian import Spaced, space_timesteps
from tests.runtime.families.mar.lazy import Lazy

from fewstep.runtime.generator import Generator

TOKENS, CHANNELS, FULL_BLOCKS = 16, 12, 1
CLASSES, SEEDS = [0, 3, 4], [7, 2**40 + 1, 9]
CLOSE = 1e-5
"""Of the largest number."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Case:
    """Settings, and what they mean to the eager decode."""

    settings: dict[str, Any]
    spacings: Sequence[str] = ("5",) * 6
    clip: int = 950
    guidance: Guidance = field(default_factory=lambda: linear(2, TOKENS))
    temperature: Sequence[float] | None = None
    lazy: dict[str, Any] | None = None


def _lazy(
    iterations: int,
    refresh: int,
    first: int,
    parts: float | Sequence[float] = 0,
    reuse: bool = False,
    constantly: float | None = None,
) -> Case:
    """A case that computes everything only at refreshes; ``constantly``: its guidance."""
    each = parts if isinstance(parts, Sequence) else [parts] * iterations
    settings: dict[str, Any] = {
        "iterations": iterations,
        "refresh": refresh,
        "refresh_first": first,
        "recompute": ",".join(map(str, each)),
        "reuse_guidance": reuse,
    }
    if constantly is not None:
        settings["guidance"] = (constantly, constantly)
    return Case(
        settings,
        ("5",) * iterations,
        guidance=linear(2, TOKENS) if constantly is None else constant(constantly),
        lazy={
            "refresh": refresh,
            "first": first,
            "parts": each,
            "reuse_guidance": reuse,
        },
    )


CASES = {
    "all timesteps": Case({"max_timestep": None}, clip=1000),
    "a lower cap": Case({"max_timestep": 500}, clip=500),
    "constant guidance": Case({"guidance": "3:3"}, guidance=constant(3)),
    "a guidance an iteration": Case(
        {"guidance": "1,3,2,0,1.5,4"}, guidance=listed(1, 3, 2, 0, 1.5, 4)
    ),
    "no guidance": Case({"guidance": 1}, guidance=constant(1)),
    "less noise": Case({"temperature": 0.6}, temperature=[0.6] * 6),
    "no noise": Case({"temperature": 0}, temperature=[0.0] * 6),
    "noise that fades": Case({"temperature": "1:0"}, temperature=[1, 0.8, 0.6, 0.4, 0.2, 0]),
    "one stride": Case({"diffusion_steps": "ddim10"}, ["ddim10"] * 6),
    "two sections": Case({"diffusion_steps": "3+4"}, ["3,4"] * 6),
    "annealed": Case(  # DiSA: 2 + int((5 − i) / 5 · (12 − 2))
        {"diffusion_steps": "12:2", "max_timestep": None}, ["12", "10", "8", "6", "4", "2"]
    ),
    "steps an iteration": Case(
        {"diffusion_steps": "5,1,ddim4,2+2,3,20", "max_timestep": None},
        ["5", "1", "ddim4", "2,2", "3", "20"],
    ),
    "one step": Case({"diffusion_steps": "1"}, ["1"] * 6),
    "one token an iteration": Case({"iterations": 16}, ["5"] * 16),
    "all tokens at once": Case({"iterations": 1}, ["5"]),
    "every other iteration": _lazy(6, 2, 1),
    "a long start": _lazy(16, 9, 5),
    "parts of each size": _lazy(10, 20, 1, [0, 1, 0.9, 0.8, 0.99, 0, 0.95, 1, 0.85, 0.3]),
    "everything, from the encoder's cache": _lazy(16, 4, 2, 1),
    "one token from caches": _lazy(16, 3, 1),
    "guidance of the last refresh": _lazy(16, 3, 1, reuse=True),
    "that, and other parts": _lazy(10, 4, 3, 0.9, reuse=True, constantly=2),
    "caches without guidance": _lazy(8, 3, 1, reuse=True, constantly=1),
}


@pytest.fixture(scope="module")
def generator(mar_bundle: Path) -> Iterator[Generator]:
    with Generator.open(mar_bundle, max_batch=4, threads=1) as made:
        yield made


def _request(case: Case, **more: Any) -> dict[str, Any]:
    return {"class_ids": CLASSES, "seed": SEEDS, "max_timestep": 950, **case.settings, **more}


def _eager(case: Case, trace: Any, given: Given | None = None) -> Decoded:
    mar, _ = tiny_mar.models()
    orders = drawn.orders(SEEDS, TOKENS, None if given is None else given.where.numpy())
    lazy = None
    if case.lazy is not None:
        found = trace.similarity
        lazy = Lazy(mar, orders, full_blocks=FULL_BLOCKS, similarity=found, **case.lazy)
    return decode(
        mar,
        CLASSES,
        orders,
        lambda step: drawn.noise(SEEDS, step, TOKENS, CHANNELS),
        [Spaced(space_timesteps(each, case.clip)) for each in case.spacings],
        case.guidance,
        case.temperature,
        given,
        lazy,
    )


def _assert_same(found: Array, wanted: torch.Tensor) -> None:
    """Equal, and undecided in the same places."""
    largest = float(wanted.nan_to_num().abs().max())
    np.testing.assert_allclose(found, wanted.numpy(), rtol=0, atol=CLOSE * max(1.0, largest))


def _pixels(tokens: torch.Tensor) -> Array:
    mar, tokenizer = tiny_mar.models()
    drawn_as = image(mar, tokenizer, tokens, tiny_mar.LATENT_SCALE)
    pixels: Array = drawn_as.permute(0, 2, 3, 1).mul(255).round().numpy()
    return pixels


@pytest.mark.parametrize("name", CASES)
def test_tokens_and_images_are_those_of_eager_pytorch(generator: Generator, name: str) -> None:
    case = CASES[name]
    made = generator.generate(**_request(case))
    wanted = _eager(case, made.trace)
    assert len(made.trace.tokens) == len(wanted.tokens)
    for found, tokens in zip(made.trace.tokens, wanted.tokens, strict=True):
        _assert_same(found, tokens)
    assert np.abs(made.images - _pixels(wanted.tokens[-1])).max() <= 1


def test_the_defaults_are_those_of_the_bundle(generator: Generator) -> None:
    said = generator.generate(
        class_ids=CLASSES, seed=3, iterations=6, diffusion_steps=5, guidance=2, temperature=1
    )
    plain = generator.generate(class_ids=CLASSES, seed=3)
    np.testing.assert_array_equal(plain.trace.tokens, said.trace.tokens)


def _given(random: torch.Generator, kept: int) -> Given:
    tokens = torch.randn(len(CLASSES), TOKENS, CHANNELS, generator=random)
    ranks = torch.rand(len(CLASSES), TOKENS, generator=random).argsort(1)
    return Given(tokens, ranks < kept)


@pytest.mark.parametrize(
    ("kept", "case"),
    [
        (1, Case({})),
        (7, Case({"iterations": 9}, ["5"] * 9)),
        (15, Case({"iterations": 1}, ["5"])),
        (5, _lazy(8, 4, 1)),
        (5, _lazy(8, 4, 1, reuse=True)),
        (5, _lazy(8, 4, 1, 1)),
    ],
)
def test_given_tokens_stay_and_the_others_follow_from_them(
    generator: Generator, kept: int, case: Case
) -> None:
    given = _given(torch.Generator().manual_seed(kept), kept)
    mar, _ = tiny_mar.models()
    where = given.where.numpy()
    edit = {"latents": mar.latents(given.tokens).numpy(), "given": where.reshape(3, 4, 4)}
    request = generator.request(**_request(case), edit=edit)
    made = generator.run(request)
    wanted = _eager(case, made.trace, given)
    for found, tokens in zip(made.trace.tokens, wanted.tokens, strict=True):
        np.testing.assert_array_equal(found[where], given.tokens.numpy()[where])
        _assert_same(found, tokens)
    assert np.abs(made.images - _pixels(wanted.tokens[-1])).max() <= 1


def test_the_other_latents_do_not_matter(generator: Generator) -> None:
    random = np.random.default_rng(0)
    latents = random.standard_normal((2, 3, 8, 8))
    where = np.zeros((2, 4, 4), bool)
    where[:, 1:3, 1] = True
    first = generator.run(
        generator.request(class_ids=[1, 2], edit={"latents": latents, "given": where})
    )
    elsewhere = ~np.kron(where, np.ones((1, 2, 2), bool))[:, None].repeat(3, 1)
    latents[elsewhere] = 9.0
    second = generator.run(
        generator.request(class_ids=[1, 2], edit={"latents": latents, "given": where})
    )
    np.testing.assert_array_equal(first.trace.tokens, second.trace.tokens)
    kept = second.trace.latents
    np.testing.assert_array_equal(kept[~elsewhere], latents[~elsewhere].astype(np.float32))


@pytest.mark.parametrize(
    "case",
    [
        Case({}),
        _lazy(16, 4, 2, 1),
        _lazy(16, 4, 2, 1, reuse=True),
        _lazy(8, 9, 6),  # with this seed no two similarities are so close that rounding decides
    ],
)
def test_an_image_depends_on_no_other_of_its_batch(generator: Generator, case: Case) -> None:
    classes = [0, 1, 2, 3, 4, 0]
    together = generator.generate(**_request(case, class_ids=classes, seed=7))  # 4 and 2
    largest = float(np.abs(together.trace.final).max())
    for index in (0, 3, 5):
        request = _request(case, class_ids=[classes[index]], seed=7 + index)
        alone = generator.generate(**request)
        np.testing.assert_allclose(
            alone.trace.tokens[:, 0], together.trace.tokens[:, index], atol=CLOSE * largest
        )
        assert np.abs(alone.images[0].astype(int) - together.images[index]).max() <= 1


def test_seeds_and_classes_matter(generator: Generator) -> None:
    made = generator.generate(class_ids=[0, 0, 1], seed=[1, 2, 1], max_timestep=950)
    undecided = np.isnan(made.trace.tokens[0, ..., 0])
    assert not np.array_equal(undecided[0], undecided[1])  # another order
    assert np.array_equal(undecided[0], undecided[2])
    assert not np.array_equal(made.images[0], made.images[2])


@pytest.mark.parametrize(
    "settings",
    [
        {"refresh": 1},
        {"refresh": 1, "refresh_first": 1, "recompute": 0, "reuse_guidance": True},
        {"refresh": 3, "refresh_first": 6},
        {"refresh": 3, "refresh_first": 9, "reuse_guidance": False},
        {"refresh_first": 1},
    ],
)
def test_without_an_iteration_between_refreshes_nothing_is_kept(
    generator: Generator, settings: dict[str, Any]
) -> None:
    plain, said = (
        generator.request(class_ids=[2, 4], seed=1, **each) for each in (dict[str, Any](), settings)
    )
    keys = [generator.family.key(generator.model, each, 2) for each in (plain, said)]
    assert keys[0] == keys[1]
    found = [generator.run(each).trace.tokens for each in (plain, said)]
    np.testing.assert_array_equal(found[0], found[1])
