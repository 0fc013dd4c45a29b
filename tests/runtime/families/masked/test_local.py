"""Local steps: which steps they are, where their positions lie, and what they leave as it is.

What they compute is compared with PyTorch in ``tests/export/test_cached_context.py``.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.errors import RequestError
from fewstep.runtime.families.masked.local import LocalSteps, local_steps, places
from fewstep.runtime.families.masked.order import ranks
from fewstep.runtime.generator import Generator

_HALTON: dict[str, Any] = {"order": "halton", "steps": 6, "guidance": (1.0, 2.0)}
_LOCAL: dict[str, Any] = {**_HALTON, "local_steps": 1}


@pytest.fixture(scope="module")
def generator(cached_bundle: Path) -> Iterator[Generator]:
    with Generator.open(cached_bundle, threads=1, max_batch=4) as found:
        yield found


# --- which steps are local


@given(
    counts=st.lists(st.integers(0, 5), min_size=1, max_size=12),
    after=st.integers(1, 4),
    first=st.integers(0, 14),
    more=st.integers(0, 3),
)
def test_local_steps_follow_full_ones(counts: list[int], after: int, first: int, more: int) -> None:
    """Step by step: after the first ones, so many local ones follow each full one. A group is all
    that is decided from its full step on, up to the next."""
    decided = tuple(np.cumsum([0, *counts]).tolist())
    found = local_steps(decided, decided[-1] + more, after, first)
    for step in range(len(counts)):
        place = (step - first) % (after + 1) if step >= first else 0
        start, end = step - place, min(step - place + after + 1, len(counts))
        group = decided[start], decided[end]
        useful = 0 < group[1] - group[0] < decided[-1] + more
        around = found.around(step) if found else None
        assert (around is not None) == (place > 0 and useful)
        if around:
            assert (around.start, around.end, around.first, around.last) == (start, end, *group)
        alone = place > 0 or step < first or end - start == 1
        assert bool(found and found.starting(step)) == (useful and not alone)


def test_no_groups_are_no_local_steps() -> None:
    assert local_steps((0, 4), 4, 1, 0) is None
    assert local_steps((0, 2, 4), 4, 1, 0) is None  # its group would be all positions
    assert local_steps((0, 2, 3, 4), 4, 1, 2) is None


@given(given_share=st.floats(0, 0.8), halves=st.integers(1, 2), seed=st.integers(0, 99))
def test_positions_of_a_group_and_all_others(given_share: float, halves: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    known = np.zeros((3, 20), np.bool_)
    for image in known:
        image[rng.permutation(20)[: int(20 * given_share)]] = True
    masked = int((~known[0]).sum())
    decided = (0, 1, masked // 2, masked - 1, masked)
    local = local_steps(decided, 20, 1, 0)
    assert local is not None
    own = ranks("random", (4, 5), np.arange(3, dtype=np.uint64), known)
    found: dict[str, Any] = dict(places(local, own, halves))
    rows = 3 * halves
    for place, group in enumerate(local.groups):
        inside = found["group_positions"][place, : rows * group.size].reshape(rows, -1)
        flat = found["group_index"][place, : rows * group.size].reshape(rows, -1)
        others = found["other_index"][place, : rows * (20 - group.size)].reshape(rows, -1)
        for row in range(rows):
            assert own[row % 3, inside[row]].tolist() == [*range(group.first, group.last)]
            assert (flat[row] == row * 20 + inside[row]).all()
            both = np.concatenate([flat[row], others[row]])
            assert sorted(both) == [*range(row * 20, row * 20 + 20)]


# --- what stays as it is


@pytest.mark.parametrize(
    "settings",
    [{"steps": 4}, {"steps": 4, "schedule": "cosine"}, _HALTON, {"order": "random", "guidance": 0}],
    ids=("policy", "cosine", "halton", "unguided"),
)
def test_without_local_steps_images_are_those_of_the_bundle_without_a_cache(
    generator: Generator, tiny_bundle: Path, settings: dict[str, Any]
) -> None:
    request: dict[str, Any] = {"class_ids": [0, 4, 2], "seed": 8, **settings}
    with Generator.open(tiny_bundle, threads=1, max_batch=4) as plain:
        expected = plain.generate(**request)
    turned_off: dict[str, Any] = {"local_steps": 0, "full_first": 3}
    for more in {}, turned_off:
        found = generator.generate(**request, **more)
        np.testing.assert_array_equal(found.images, expected.images)
        for name, decided in expected.trace.decisions.items():
            np.testing.assert_array_equal(found.trace.decisions[name], decided)


@pytest.mark.parametrize("more", [{"steps": 2}, {"full_first": 6}, {"full_first": 5}])
def test_no_local_step_changes_nothing(generator: Generator, more: dict[str, Any]) -> None:
    """Where a group is all positions, and where all steps are first ones."""
    found = generator.generate(class_ids=[1, 3], seed=2, **{**_LOCAL, **more})
    settings = {**_HALTON, **more, "full_first": 0}
    expected = generator.generate(class_ids=[1, 3], seed=2, **settings)
    np.testing.assert_array_equal(found.trace.tokens, expected.trace.tokens)


def test_local_steps_change_what_they_decide_alone(generator: Generator) -> None:
    settings = {**_LOCAL, "full_first": 2}  # full, full, full, local, full, local
    found = generator.generate(class_ids=[0, 1, 2, 3], seed=5, **settings).trace.tokens
    expected = generator.generate(class_ids=[0, 1, 2, 3], seed=5, **_HALTON).trace.tokens
    np.testing.assert_array_equal(found[:4], expected[:4])
    assert (found[4] != expected[4]).any()


@pytest.mark.parametrize("order", ["halton", "halton-rolled", "random"])
def test_decided_tokens_stay_and_every_turn_is_taken(generator: Generator, order: str) -> None:
    settings = {**_LOCAL, "order": order, "local_steps": 2}
    trace = generator.generate(class_ids=[0, 1, 4], seed=1, **settings).trace
    masked = trace.tokens == trace.mask_token
    for before, after in zip(trace.tokens, trace.tokens[1:], strict=False):
        kept = before != trace.mask_token
        np.testing.assert_array_equal(before[kept], after[kept])
    plain = generator.generate(class_ids=[0, 1, 4], seed=1, **_HALTON | {"order": order}).trace
    np.testing.assert_array_equal(masked, plain.tokens == plain.mask_token)
    assert not masked[-1].any()


def _edit(rng: np.random.Generator, *counts: int) -> dict[str, Any]:
    """So many given tokens of each image."""
    mask = np.ones((len(counts), 16), np.bool_)
    for row, count in zip(mask, counts, strict=True):
        row[rng.permutation(16)[:count]] = False
    return {"given": rng.integers(0, 24, mask.shape), "mask": mask}


def test_given_tokens_stay(generator: Generator) -> None:
    edit = _edit(np.random.default_rng(0), 5, 5)
    request = generator.request(class_ids=[1, 2], edit=edit, **_LOCAL)
    tokens = generator.run(request).tokens
    kept = ~edit["mask"]
    np.testing.assert_array_equal(tokens[kept], edit["given"][kept])


def test_given_tokens_are_as_many_of_every_image(generator: Generator) -> None:
    edit = _edit(np.random.default_rng(0), 5, 4)
    with pytest.raises(RequestError, match="as many tokens must be given of each"):
        generator.request(class_ids=[1, 2], edit=edit, **_LOCAL)


@pytest.mark.parametrize("guidance", [0.0, 2.0])
def test_an_image_does_not_depend_on_its_batch(generator: Generator, guidance: float) -> None:
    settings = {**_LOCAL, "guidance": guidance, "full_first": 1}
    together = generator.generate(class_ids=[0, 3, 1, 4, 2], seed=6, **settings).images
    alone = generator.generate(class_ids=[4], seed=9, **settings).images
    np.testing.assert_array_equal(together[3:4], alone)


@pytest.mark.parametrize("guidance", ["0,2,0,2,0,0", "1,0,2,2,0,1"])
def test_unguided_steps_of_a_group_need_no_second_half(
    generator: Generator, cached_bundle: Path, guidance: str
) -> None:
    settings = {**_LOCAL, "guidance": guidance}
    found = generator.generate(class_ids=[0, 3, 1], seed=6, **settings).trace
    request = generator.request(class_ids=[0, 3, 1], **settings)
    program = generator.family.program(
        generator.model, generator.family.key(generator.model, request, 3)
    )
    rows = [shapes["tokens"][0] for run, shapes in program.runs() if run.graph == "transformer"]
    assert {*rows} == {3, 6}
    with Generator.open(cached_bundle, threads=1, max_batch=4) as other:
        other._constants = False
        expected = other.generate(class_ids=[0, 3, 1], seed=6, **settings).trace
    np.testing.assert_array_equal(found.tokens, expected.tokens)


# --- what is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": "cosine"}, "local_steps need an order that is known before: halton"),
        ({"schedule": "policy"}, "local_steps need an order that is known before: halton"),
        ({"order": "halton", "schedule": "policy"}, "a policy decides how many"),
    ],
)
def test_local_steps_need_a_known_order(
    generator: Generator, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        generator.request(class_ids=[0], local_steps=1, **settings)


def test_local_steps_need_a_cache(tiny_bundle: Path) -> None:
    with (
        Generator.open(tiny_bundle, threads=1) as plain,
        pytest.raises(RequestError, match="export the bundle again with --cached-context"),
    ):
        plain.request(class_ids=[0], **_LOCAL)


@pytest.mark.parametrize(("name", "value"), [("local_steps", -1), ("full_first", -2)])
def test_numbers_below_0_are_refused(generator: Generator, name: str, value: int) -> None:
    with pytest.raises(RequestError, match=f"{name} must be at least 0, got {value}"):
        generator.request(class_ids=[0], **{**_LOCAL, name: value})


def test_a_bundle_may_have_local_steps_by_default(cached_bundle: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(cached_bundle, tmp_path / "bundle"))
    bundle = Bundle.read(path)
    model: Any = bundle.manifest.model
    chosen = {"order": "halton", "schedule": "cosine", "local_steps": 1}
    defaults = model.defaults.model_copy(update=chosen)
    manifest = bundle.manifest.model_copy(
        update={"model": model.model_copy(update={"defaults": defaults})}
    )
    (path / "bundle.json").write_text(manifest.model_dump_json())
    with Generator.open(path, threads=1) as generator:
        request = generator.request(class_ids=[0])
    assert isinstance(request.local, LocalSteps)
