"""Recorded rollouts: what they are of, that seeds and classes are even, and what goes into them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fewstep.calibration.quantize.rollouts import Rollouts, conditions, record
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.condition import ClassCondition
from fewstep.runtime.errors import RequestError
from fewstep.runtime.generator import Generator

_SETTINGS: dict[str, Any] = {"steps": 3, "schedule": "cosine"}


def _record(bundle: Bundle, count: int, graph: str = "transformer", **options: Any) -> Rollouts:
    return record(bundle, [graph], count, **options)[graph]


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.read(tiny_bundle)


@pytest.fixture(scope="module")
def recorded(bundle: Bundle) -> Rollouts:
    return _record(bundle, 11, seed=5, settings=_SETTINGS)


def test_passes_are_what_the_runtime_feeds_its_transformer(
    bundle: Bundle, recorded: Rollouts
) -> None:
    info = bundle.manifest.model.condition
    assert isinstance(info, ClassCondition)
    drawn = conditions(info, 11, 5, None)
    with Generator.open(bundle, device="cpu") as generator:
        made = generator.generate(class_ids=drawn.tolist(), seed=5, **_SETTINGS)
        mask = generator.model.info.mask_token
    assert [len(each.own["tokens"]) for each in recorded.passes] == [4] * 6 + [3] * 3
    for index, each in enumerate(recorded.passes):
        batch, step = divmod(index, 3)
        rows = slice(4 * batch, 4 * batch + 4)
        np.testing.assert_array_equal(each.own["tokens"], made.trace.tokens[step, rows])
        np.testing.assert_array_equal(each.own["condition"], drawn[rows])
        assert each.counted is not None
        np.testing.assert_array_equal(each.counted, each.own["tokens"] == mask)
        both = np.concatenate([drawn[rows], np.full(len(drawn[rows]), info.unconditional_id)])
        np.testing.assert_array_equal(each.inputs["condition"], both)
        np.testing.assert_array_equal(each.inputs["tokens"], np.tile(each.own["tokens"], (2, 1)))
        assert each.inputs["condition"].dtype == np.int32
        assert bool(each.counted.all()) == (step == 0)


@pytest.mark.parametrize(("count", "most", "least"), [(10, 2, 2), (13, 3, 2), (3, 1, 0)])
def test_classes_are_drawn_evenly_and_by_the_seed(
    bundle: Bundle, count: int, most: int, least: int
) -> None:
    info = bundle.manifest.model.condition
    drawn = conditions(info, count, 7, None)
    times = np.bincount(drawn, minlength=5)
    assert (int(times.max()), int(times.min()), len(times)) == (most, least, 5)
    np.testing.assert_array_equal(drawn, conditions(info, count, 7, None))
    orders = {tuple(conditions(info, 10, seed, None)) for seed in range(8)}
    assert len(orders) > 1


def test_without_guidance_there_is_one_branch(bundle: Bundle) -> None:
    made = _record(bundle, 2, seed=0, settings={"steps": 2, "guidance": 0.0})
    for each in made.passes:
        assert {name: len(value) for name, value in each.inputs.items()} == {
            "tokens": 2,
            "condition": 2,
        }


def test_the_hash_is_of_the_data(bundle: Bundle, recorded: Rollouts) -> None:
    def sha256(seed: int, schedule: str) -> str:
        settings = {"steps": 3, "schedule": schedule}
        return _record(bundle, 11, seed=seed, settings=settings).sha256

    assert sha256(5, "cosine") == recorded.sha256
    others = [sha256(6, "cosine"), sha256(5, "linear"), sha256(5, "policy")]
    assert len({recorded.sha256, *others}) == 4


def test_text_is_taken_in_turns_and_needed(tiny_text_bundle: Path) -> None:
    bundle = Bundle.read(tiny_text_bundle)
    text = np.random.default_rng(0).standard_normal((2, 3, 12)).astype(np.float32)
    made = _record(bundle, 3, seed=0, settings={"steps": 2}, text=text)
    empty = bundle.arrays("unconditional.npz")["text"]
    for each in made.passes:
        assert each.inputs.keys() == {"tokens", "text"}
        np.testing.assert_array_equal(each.own["text"], text[[0, 1, 0]])
        np.testing.assert_array_equal(each.inputs["text"][3:], np.stack([empty] * 3))
    with pytest.raises(RequestError, match=r"give text states \[M, 3, 12\] .* --text"):
        _record(bundle, 1, seed=0, settings={"steps": 1})


def test_what_does_not_fit_the_bundle_is_refused(bundle: Bundle, tiny_text_bundle: Path) -> None:
    text = np.zeros((1, 3, 12), np.float32)
    with pytest.raises(RequestError, match="class-conditional: leave --text-file out"):
        conditions(bundle.manifest.model.condition, 1, 0, text)
    with pytest.raises(RequestError, match=r"text must have shape \[B, 3, 12\]"):
        conditions(Bundle.read(tiny_text_bundle).manifest.model.condition, 1, 0, text[:, :2])


def test_a_graph_with_a_cache_is_fed_what_its_family_feeds_it(toy_bundle: Path) -> None:
    """Every scale is a pass, with another shape; nothing says that some position does not count."""
    made = _record(Bundle.read(toy_bundle), 2, "trunk", seed=0, settings={})
    assert [each.inputs["codes"].shape for each in made.passes] == [(4, 1), (4, 4)]
    assert [each.inputs["past"].shape[:2] for each in made.passes] == [(0, 4), (1, 4)]
    assert [each.own["past"].shape[:2] for each in made.passes] == [(0, 2), (1, 2)]
    assert [each.own["codes"].shape for each in made.passes] == [(2, 1), (2, 4)]
    assert all(each.counted is None for each in made.passes)
