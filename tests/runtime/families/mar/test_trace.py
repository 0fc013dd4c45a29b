"""What a MAR result says of its tokens, and the previews of its iterations.

Covered: tokens in the order of their decision and in their places, counts of every iteration,
similarities where parts are computed, latents that can be given again, and previews with what is
undecided.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests import tiny_mar
from tests.runtime.families.mar import drawn
from tests.runtime.families.mar.eager import image

from fewstep.runtime.errors import RequestError
from fewstep.runtime.generator import Generator
from fewstep.runtime.preview import StepPreview

TOKENS, CHANNELS, POSITIONS = 16, 12, 22
SEEDS = [5, 2**63]


@pytest.fixture(scope="module")
def generator(mar_bundle: Path) -> Iterator[Generator]:
    with Generator.open(mar_bundle, max_batch=4, threads=1) as made:
        yield made


def _generate(generator: Generator, **settings: Any) -> Any:
    return generator.generate(class_ids=[1, 3], seed=SEEDS, max_timestep=950, **settings)


def test_tokens_are_in_the_order_of_their_decision_and_in_their_places(
    generator: Generator,
) -> None:
    made = _generate(generator)
    counts = (1, 2, 2, 3, 4, 4)  # 15, 13, 11, 8 and 4 are left: ⌊16·cos(π/2·n/6)⌋
    order, trace = drawn.orders(SEEDS, TOKENS).flip(1).numpy(), made.trace
    assert trace.sampled.shape == (6, 2, 4 * CHANNELS)
    assert trace.tokens.shape == (6, 2, TOKENS, CHANNELS)
    known = 0
    for step, count in enumerate(counts):
        for row in range(2):
            new = trace.sampled[step, row].reshape(4, CHANNELS)
            places = order[row, known : known + count]
            np.testing.assert_array_equal(
                trace.tokens[step:, row, places], [new[:count]] * (6 - step)
            )
            assert np.isnan(trace.tokens[:step, row, places]).all()
            assert not new[count:].any()
        known += count
    assert known == TOKENS


def test_decisions_are_named(generator: Generator) -> None:
    made = _generate(generator)
    assert made.trace.similarity is None
    assert {*made.trace.decisions} == {"sampled", "tokens"}
    np.testing.assert_array_equal(made.tokens, made.trace.final)
    np.testing.assert_array_equal(made.trace.final, made.trace.tokens[-1])


@pytest.mark.parametrize(("reuse", "halves"), [(False, 2), (True, 1)])
def test_similarities_are_of_the_iterations_that_compute_a_part(
    generator: Generator, reuse: bool, halves: int
) -> None:
    parts = "0,0,1,0,0,0,0,0"
    made = _generate(
        generator, iterations=8, refresh=4, refresh_first=1, recompute=parts, reuse_guidance=reuse
    )
    found = made.trace.decisions["similarity"]
    assert found.shape == (8, 2, halves * POSITIONS)
    partial = [step for step, each in enumerate(found) if each.any()]
    assert partial == [3, 4, 6, 7]  # refreshes are 0, 1 and 5; iteration 2 computes everything
    assert (np.abs(found) <= 1 + 1e-6).all()
    # The buffer and the position that was decided last have changed, all others but a little.
    assert (found[partial] < 1).any()


def test_similarities_of_no_iteration_are_not_there(generator: Generator) -> None:
    made = _generate(generator, refresh=4, refresh_first=1, recompute=1)
    assert made.trace.similarity is None


def test_latents_can_be_decoded_and_given_again(generator: Generator) -> None:
    made = _generate(generator)
    mar, tokenizer = tiny_mar.models()
    latents = made.trace.latents
    assert latents.shape == (2, 3, 8, 8)
    again = mar.tokens(torch.from_numpy(latents)).numpy()
    np.testing.assert_array_equal(again, made.trace.final)
    with torch.no_grad():
        drawn_as = tokenizer.unclamped(torch.from_numpy(latents) / tiny_mar.LATENT_SCALE)
    pixels = ((drawn_as + 1) / 2).clamp(0, 1).mul(255).round().permute(0, 2, 3, 1).numpy()
    assert np.abs(made.images - pixels).max() <= 1
    given = np.isnan(made.trace.tokens[2, ..., 0]) == 0
    edit = {"latents": latents, "given": given.reshape(2, 4, 4)}
    request = generator.request(class_ids=[2, 2], seed=9, iterations=4, edit=edit)
    kept = generator.run(request).trace.tokens
    np.testing.assert_array_equal(kept[:, given], [made.trace.final[given]] * 4)
    assert not np.isnan(kept[-1]).any()


@pytest.mark.parametrize("settings", [{}, {"refresh": 3, "refresh_first": 1, "iterations": 8}])
def test_every_iteration_has_a_preview(generator: Generator, settings: dict[str, Any]) -> None:
    previews: dict[tuple[int, int], StepPreview] = {}
    pixels = {}

    def callback(step: int, preview: StepPreview) -> None:
        previews[preview.rows.start, step] = preview
        pixels[preview.rows.start, step] = preview.pixels

    request = generator.request(
        class_ids=[0, 1, 2, 3, 4], seed=2, max_timestep=950, diffusion_steps=3, **settings
    )
    made = generator.run(request, callback=callback)
    mar, tokenizer = tiny_mar.models()
    iterations = len(made.trace.tokens)
    assert previews.keys() == {(first, step) for first in (0, 4) for step in range(iterations)}
    for (first, step), preview in previews.items():
        rows = slice(preview.rows.start, preview.rows.stop)
        assert rows == (slice(0, 4) if first == 0 else slice(4, 5))
        tokens = made.trace.tokens[step, rows]
        undecided = np.isnan(tokens[..., 0]).reshape(-1, 4, 4)
        np.testing.assert_array_equal(preview.undecided, undecided)
        decided = TOKENS - int(undecided[0].sum())
        assert preview.caption == f"iteration {step + 1} of {iterations}: {decided} of 16 tokens"
        known = torch.from_numpy(np.nan_to_num(tokens))
        wanted = image(mar, tokenizer, known, tiny_mar.LATENT_SCALE)
        wanted = wanted.mul(255).round().permute(0, 2, 3, 1)
        assert np.abs(pixels[first, step] - wanted.numpy()).max() <= 1
    np.testing.assert_array_equal(pixels[0, iterations - 1], made.images[:4])


def test_watching_changes_nothing(generator: Generator) -> None:
    plain = _generate(generator, refresh=3, refresh_first=1)
    request = generator.request(
        class_ids=[1, 3], seed=SEEDS, max_timestep=950, refresh=3, refresh_first=1
    )
    watched = generator.run(request, callback=lambda step, preview: None)
    np.testing.assert_array_equal(watched.trace.tokens, plain.trace.tokens)


def test_runs_of_one_plan_leave_nothing_behind(generator: Generator) -> None:
    """Caches of a request are not seen by the next, which other tokens and classes fill."""
    settings: dict[str, Any] = {"iterations": 8, "refresh": 3, "refresh_first": 1}
    first = _generate(generator, **settings)
    generator.generate(class_ids=[0, 4], seed=77, max_timestep=950, **settings)
    again = _generate(generator, **settings)
    np.testing.assert_array_equal(again.trace.tokens, first.trace.tokens)
    np.testing.assert_array_equal(again.trace.similarity, first.trace.similarity)


def test_an_unconditional_class_is_no_class_to_ask_for(generator: Generator) -> None:
    with pytest.raises(RequestError, match="class ids must be 0 … 4, got 5 .5 stands for no class"):
        generator.request(class_ids=[5])
