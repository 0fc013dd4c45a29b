"""Best of several: which candidates, which of them is kept, and when the judge is opened.

References: plain generations of all candidates by their seeds, scored in NumPy.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.judged import add_judge, expected_scores, with_judge
from tests.prompts import with_encoder

from fewstep.runtime.best_of import Judge, best_images, candidates
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import BundleError, DeviceError, EngineError, RequestError
from fewstep.runtime.generator import Generator

_CLASSES, _SEEDS = [3, 0, 4, 1, 2], [7, 8, 2**64 - 1, 0, 8]


@pytest.fixture(scope="module")
def judged(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with a judge."""
    return with_judge(tiny_bundle, tmp_path_factory.mktemp("judged") / "bundle")


@pytest.fixture(scope="module")
def generator(judged: Path) -> Iterator[Generator]:
    """Of it, in batches of two images."""
    with Generator.open(judged, threads=1, max_batch=2) as opened:
        yield opened


def test_candidates_are_the_own_seed_and_hashes_of_it() -> None:
    found = candidates(7, 4)
    assert found[0] == 7
    for each in range(1, 4):
        digest = hashlib.blake2b(f"7:candidate:{each}".encode(), digest_size=8).digest()
        assert found[each] == int.from_bytes(digest, "big") // 2**11
    assert candidates(7, 2) == found[:2]  # of more candidates the first are the same
    every = [each for seed in range(2_000) for each in candidates(seed, 4)]
    assert len(set(every)) == len(every)
    assert max(every) < 2**53


def _by_hand(
    generator: Generator, count: int, conditions: list[Any], by: str, **settings: Any
) -> list[tuple[int, Any, float]]:
    """Seed, image and score of the best candidate of every image, one generation each."""
    found = []
    for condition, seed in zip(conditions, _SEEDS, strict=True):
        made = []
        for each in candidates(seed, count):
            asked: dict[str, Any] = {by: [condition], "seed": [each], **settings}
            result = generator.generate(**asked)
            score = expected_scores(result.images, np.array([condition]))[0]
            made.append((each, result.images[0], float(score)))
        found.append(max(made, key=lambda one: one[2]))
    return found


def test_the_best_candidate_of_every_image_is_kept(generator: Generator) -> None:
    expected = _by_hand(generator, 3, _CLASSES, "class_ids", steps=3)
    result = generator.generate(class_ids=_CLASSES, seed=_SEEDS, steps=3, best_of=3)
    assert result.seeds.tolist() == [seed for seed, _, _ in expected]
    assert len(set(result.seeds.tolist()) - set(_SEEDS)) > 0
    images = np.stack([image for _, image, _ in expected]).astype(int)
    assert np.abs(result.images - images).max() <= 1
    assert result.scores is not None and result.scores.shape == (5, 3)
    np.testing.assert_allclose(result.scores.max(1), [score for *_, score in expected], rtol=0.02)
    assert {"judge", "total", "transformer"} <= result.timings_ms.keys()


def test_an_image_is_made_again_from_its_own_seed_without_a_judge(generator: Generator) -> None:
    best = generator.generate(class_ids=_CLASSES, seed=_SEEDS, steps=3, best_of=3)
    again = generator.generate(class_ids=_CLASSES, seed=best.seeds.tolist(), steps=3)
    assert np.abs(again.images.astype(int) - best.images).max() <= 1
    for name, expected in again.trace.decisions.items():
        np.testing.assert_array_equal(best.trace.decisions[name], expected)
    np.testing.assert_array_equal(best.tokens, again.tokens)


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_batches_and_neighbours_do_not_matter(
    batch: int, judged: Path, generator: Generator
) -> None:
    expected = generator.generate(class_ids=_CLASSES, seed=_SEEDS, steps=3, best_of=3).seeds
    with Generator.open(judged, threads=1, max_batch=batch) as other:
        order = [4, 2, 0]
        found = other.generate(
            class_ids=[_CLASSES[k] for k in order],
            seed=[_SEEDS[k] for k in order],
            steps=3,
            best_of=3,
        )
    assert found.seeds.tolist() == expected[order].tolist()


def test_more_candidates_never_score_less(generator: Generator) -> None:
    scores = [
        generator.generate(class_ids=_CLASSES, seed=3, steps=2, best_of=count).scores
        for count in (2, 5)
    ]
    assert scores[0] is not None and scores[1] is not None
    np.testing.assert_allclose(scores[0], scores[1][:, :2], rtol=0.02, atol=0.02)
    assert (scores[1].max(1) >= scores[0].max(1) - 0.02).all()


def test_one_candidate_is_a_plain_image(generator: Generator) -> None:
    plain = generator.generate(class_ids=[3, 1], seed=5, steps=2)
    one = generator.generate(class_ids=[3, 1], seed=5, steps=2, best_of=1)
    np.testing.assert_array_equal(one.images, plain.images)
    assert one.scores is None and "judge" not in one.timings_ms


def test_a_call_counts_progress_over_all_candidates(generator: Generator) -> None:
    done: list[float] = []
    pictures = generator(
        [1, 3], count=2, seed=4, steps=2, best_of=3, progress=lambda _, part: done.append(part)
    )
    expected = generator.generate(class_ids=[1, 1, 3, 3], seed=4, steps=2, best_of=3)
    assert pictures.seeds.tolist() == expected.seeds.tolist()
    assert done == sorted(done) and len(done) == 6 and done[-1] == 1.0


# --- other conditions, other families


def test_text_states_are_judged(tiny_text_bundle: Path, tmp_path: Path) -> None:
    states = np.random.default_rng(0).standard_normal((5, 3, 12)).astype(np.float32)
    with Generator.open(with_judge(tiny_text_bundle, tmp_path / "text"), threads=1) as opened:
        expected = _by_hand(opened, 3, list(states), "text", steps=2)
        found = opened.generate(text=states, seed=_SEEDS, steps=2, best_of=3)
    assert found.seeds.tolist() == [seed for seed, _, _ in expected]


def test_prompts_are_judged_by_their_states(tiny_text_bundle: Path, tmp_path: Path) -> None:
    bundle = with_encoder(Path(shutil.copytree(tiny_text_bundle, tmp_path / "prompts")))
    prompts = ["a red dog", "a green cat", "a cat"]
    with Generator.open(add_judge(bundle), threads=1, max_batch=2) as opened:
        states = opened.conditions(opened.request(text=prompts))
        assert states.shape == (3, 3, 12)
        given: dict[str, Any] = {
            "negative": "a dog",
            "guidance": 1.0,
            "seed": 3,
            "steps": 2,
            "best_of": 4,
        }
        by_prompt = opened.generate(text=prompts, **given)
        by_states = opened.generate(text=states, **given)
    assert by_prompt.seeds.tolist() == by_states.seeds.tolist()
    assert by_prompt.scores is not None and by_states.scores is not None
    np.testing.assert_allclose(by_prompt.scores, by_states.scores, rtol=1e-3)


@pytest.mark.parametrize("kind", ["var_bundle", "mar_bundle"])
def test_other_families_alike(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    bundle = with_judge(request.getfixturevalue(kind), tmp_path / "judged")
    with Generator.open(bundle, threads=1, max_batch=3) as opened:
        expected = _by_hand(opened, 2, _CLASSES, "class_ids")
        found = opened.generate(class_ids=_CLASSES, seed=_SEEDS, best_of=2)
        again = opened.generate(class_ids=_CLASSES, seed=found.seeds.tolist())
    assert found.seeds.tolist() == [seed for seed, _, _ in expected]
    for name, decided in again.trace.decisions.items():
        np.testing.assert_allclose(found.trace.decisions[name], decided, rtol=1e-4, atol=1e-4)


# --- what is refused, and when the judge is opened


def test_without_a_judge_it_is_refused(tiny_bundle: Path) -> None:
    found = Generator.open(tiny_bundle, threads=1)
    with found as opened, pytest.raises(BundleError, match="no judge.*--keep-judge"):
        opened.generate(class_ids=[1], best_of=2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"best_of": 0}, "integer of 1 … 64, got 0"),
        ({"best_of": 65}, "integer of 1 … 64, got 65"),
        ({"best_of": 2.0}, "integer of 1 … 64, got 2.0"),
        ({"best_of": 2, "edit": {}}, "cannot be had with edit"),
        ({"best_of": 2, "seed": [1, 2]}, "expected 1 seeds"),
        ({"best_of": 2, "steps": 0}, "steps must be"),
    ],
)
def test_bad_requests_are_refused(
    given: dict[str, Any], message: str, generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Generator, "run", None)
    with pytest.raises(RequestError, match=message):
        generator.generate(class_ids=[1], **given)


def test_a_callback_sees_no_candidates(generator: Generator) -> None:
    with pytest.raises(RequestError, match="cannot be had with callback"):
        generator(1, best_of=2, callback=lambda step, preview: None)


def test_the_judge_is_opened_when_it_is_asked(judged: Path, tmp_path: Path) -> None:
    """So a bundle whose judge is damaged still makes images."""
    bundle = Path(shutil.copytree(judged, tmp_path / "damaged"))
    (bundle / "judge.onnx").write_bytes(b"nothing")
    with Generator.open(bundle, threads=1) as opened:
        assert len(opened.generate(class_ids=[1], steps=1).images) == 1
        with pytest.raises(BundleError, match=r"judge\.onnx has 7 bytes"):
            opened.generate(class_ids=[1], steps=1, best_of=2)


def test_a_closed_generator_opens_no_judge(judged: Path) -> None:
    opened = Generator.open(judged, threads=1)
    opened.generate(class_ids=[1], steps=1, best_of=2)
    opened.close()
    with pytest.raises(DeviceError, match="closed"):
        opened.generate(class_ids=[1], steps=1, best_of=2)


def test_scores_that_are_no_numbers_are_an_error(
    judged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "fewstep.runtime.best_of.run_once", lambda *_: {"score": np.array([1, np.nan])}
    )
    judge = Judge(Bundle.read(judged))
    with pytest.raises(EngineError, match="'judge' gave NaN"):
        judge.scores(np.zeros((2, 8, 8, 3), np.uint8), np.zeros(2, np.int32))
    judge.close()


def test_a_judge_of_other_images_is_no_valid_manifest(judged: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(judged, tmp_path / "other"))
    fields = json.loads((bundle / "bundle.json").read_text())
    fields["judge"]["graph"]["inputs"]["pixels"]["shape"] = ["batch", 9, 9, 3]
    (bundle / "bundle.json").write_text(json.dumps(fields))
    with pytest.raises(BundleError, match="judge: the model needs"):
        Bundle.read(bundle)


def test_many_images_are_scored_in_parts(judged: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (70, 8, 8, 3)).astype(np.uint8)
    ids = (np.arange(70) % 5).astype(np.int32)
    judge = Judge(Bundle.read(judged), threads=1)
    np.testing.assert_allclose(judge.scores(pixels, ids), expected_scores(pixels, ids), rtol=1e-5)
    judge.close()


def test_results_of_parts_are_one(generator: Generator) -> None:
    """Five images in batches of two, as one by one."""
    asked: dict[str, Any] = {"class_ids": _CLASSES, "seed": _SEEDS, "steps": 2}
    whole = best_images(generator, 2, asked)
    for row, (one, seed) in enumerate(zip(_CLASSES, _SEEDS, strict=True)):
        part = best_images(generator, 2, {"class_ids": [one], "seed": [seed], "steps": 2})
        assert whole.seeds[row] == part.seeds[0]
        np.testing.assert_array_equal(whole.tokens[row], part.tokens[0])
