"""Recorded rollouts: what they are of, that seeds and classes are even, and what goes into them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fewstep.calibration.quantize.rollouts import Rollouts, conditions, record
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import RequestError
from fewstep.runtime.generator import Generator

_STEPS = 3


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.read(tiny_bundle)


@pytest.fixture(scope="module")
def recorded(bundle: Bundle) -> Rollouts:
    return record(bundle, 11, seed=5, steps=_STEPS, schedule="cosine")


def test_rollouts_are_what_the_runtime_generates(bundle: Bundle, recorded: Rollouts) -> None:
    with Generator.open(bundle, device="cpu") as generator:
        made = generator.generate(
            class_ids=recorded.condition.tolist(), seed=5, steps=_STEPS, schedule="cosine"
        )
    np.testing.assert_array_equal(recorded.tokens, made.trace.tokens[:-1])
    np.testing.assert_array_equal(recorded.sampled, made.trace.sampled)
    assert (recorded.tokens[0] == recorded.mask_token).all()
    masked = (recorded.tokens == recorded.mask_token).mean((1, 2))
    assert masked[0] == 1 and (np.diff(masked) < 0).all()


@pytest.mark.parametrize(("count", "most", "least"), [(10, 2, 2), (13, 3, 2), (3, 1, 0)])
def test_classes_are_drawn_evenly_and_by_the_seed(
    bundle: Bundle, count: int, most: int, least: int
) -> None:
    model = bundle.manifest.model
    drawn = conditions(model, count, 7, None)
    times = np.bincount(drawn, minlength=5)
    assert (times.max(), times.min(), len(times)) == (most, least, 5)
    np.testing.assert_array_equal(drawn, conditions(model, count, 7, None))
    orders = {tuple(conditions(model, 10, seed, None)) for seed in range(8)}
    assert len(orders) > 1


def test_passes_hold_every_step_in_both_branches(recorded: Rollouts) -> None:
    passes = list(recorded.passes())
    assert len(passes) == recorded.num_passes == _STEPS * 2 * 2
    assert max(len(each["tokens"]) for each in passes) == 8
    rows = {
        (tokens.tobytes(), int(condition))
        for each in passes
        for tokens, condition in zip(each["tokens"], each["condition"], strict=True)
    }
    for step in recorded.tokens:
        for tokens, condition in zip(step, recorded.condition, strict=True):
            assert {(tokens.tobytes(), int(condition)), (tokens.tobytes(), 5)} <= rows
    assert all(each["condition"].dtype == np.int32 for each in passes)


def test_without_guidance_there_is_one_branch(bundle: Bundle) -> None:
    """A bundle whose own guidance is 0 never runs the unconditional branch."""
    defaults = bundle.manifest.model.defaults.model_copy(update={"guidance": (0.0, 0.0)})
    model = bundle.manifest.model.model_copy(update={"defaults": defaults})
    plain = Bundle(bundle.path, bundle.manifest.model_copy(update={"model": model}))
    made = record(plain, 2, seed=0, steps=2, schedule="cosine")
    assert made.unconditional is None
    assert made.num_passes == len(list(made.passes())) == 2


def test_conditional_batches_say_what_is_masked(recorded: Rollouts) -> None:
    count = 0
    for inputs, masked in recorded.conditional():
        np.testing.assert_array_equal(masked, inputs["tokens"] == recorded.mask_token)
        assert (inputs["condition"] < 5).all()
        count += len(masked)
    assert count == _STEPS * 11


def test_the_hash_is_of_the_data(bundle: Bundle, recorded: Rollouts) -> None:
    same = record(bundle, 11, seed=5, steps=_STEPS, schedule="cosine")
    assert same.sha256 == recorded.sha256
    others = [
        record(bundle, 11, seed=6, steps=_STEPS, schedule="cosine"),
        record(bundle, 11, seed=5, steps=_STEPS, schedule="linear"),
        record(bundle, 11, seed=5, steps=_STEPS, schedule="policy"),
    ]
    assert len({recorded.sha256, *(each.sha256 for each in others)}) == 4


def test_text_is_taken_in_turns_and_needed(tiny_text_bundle: Path) -> None:
    bundle = Bundle.read(tiny_text_bundle)
    text = np.random.default_rng(0).standard_normal((2, 3, 12)).astype(np.float32)
    made = record(bundle, 3, seed=0, steps=2, schedule="cosine", text=text)
    np.testing.assert_array_equal(made.condition, text[[0, 1, 0]])
    batches = list(made.passes())
    assert batches[0].keys() == {"tokens", "text"}
    empty = bundle.arrays("unconditional.npz")["text"] if made.unconditional is None else None
    assert empty is None and made.unconditional is not None
    np.testing.assert_array_equal(batches[1]["text"][2], made.unconditional)
    with pytest.raises(RequestError, match=r"give text states \[M, 3, 12\] .* --text"):
        record(bundle, 1, seed=0, steps=1, schedule="cosine")


def test_what_does_not_fit_the_bundle_is_refused(bundle: Bundle, tiny_text_bundle: Path) -> None:
    text = np.zeros((1, 3, 12), np.float32)
    with pytest.raises(RequestError, match="class-conditional: leave --text out"):
        conditions(bundle.manifest.model, 1, 0, text)
    with pytest.raises(RequestError, match=r"text must have shape \[B, 3, 12\]"):
        conditions(Bundle.read(tiny_text_bundle).manifest.model, 1, 0, text[:, :2])
