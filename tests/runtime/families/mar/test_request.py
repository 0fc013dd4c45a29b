"""Requests to a MAR model: what they become, presets, tokens that are given, and what is refused
with which words.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests import tiny_mar

from fewstep.runtime.bundle import Bundle
from fewstep.runtime.condition import ClassCondition
from fewstep.runtime.errors import RequestError
from fewstep.runtime.families import Model, model_of
from fewstep.runtime.families.mar.iterations import counts
from fewstep.runtime.families.mar.model import MarModel
from fewstep.runtime.families.mar.request import MarRequest, latents_of, tokens_of
from fewstep.runtime.request import checked_request
from fewstep.runtime.settings import settings_of

LATENTS, PLACES = (2, 3, 8, 8), (2, 4, 4)
Array = npt.NDArray[Any]


@pytest.fixture(scope="module")
def model(mar_bundle: Path) -> Model:
    return model_of(Bundle.read(mar_bundle))


def _changed(model: Model, **fields: Any) -> Model:
    info: MarModel = model.info
    return Model(MarModel.model_validate({**info.model_dump(), **fields}), model.graphs)


def _unguided(model: Model, **fields: Any) -> Model:
    nothing = ClassCondition(num_classes=6, unconditional_id=None)
    return _changed(model, condition=nothing.model_dump(), **fields)


def _request(model: Model, edit: Any = None, **settings: Any) -> MarRequest:
    found = checked_request(
        model, class_ids=[0, 3], text=None, seed=5, settings=settings, edit=edit
    )
    assert isinstance(found, MarRequest)
    return found


def _first(count: int) -> Array:
    """As many tokens that stay, the first ones."""
    return np.tile((np.arange(16) < count).reshape(4, 4), (2, 1, 1))


def test_a_request_says_everything_of_every_iteration(model: Model) -> None:
    found = _request(model, temperature="1:0.5", refresh=3, refresh_first=1, recompute="0:1")
    assert found.counts == (1, 2, 2, 3, 4, 4)
    # 1 + (2 − 1)·part, of the tokens that are decided; at the end the official code counts 15.
    wanted = 1 + np.array([1, 3, 5, 8, 12, 15]) / 16
    np.testing.assert_allclose(found.parameters[:, 0], wanted)
    np.testing.assert_allclose(found.parameters[:, 1], [1, 0.9, 0.8, 0.7, 0.6, 0.5])
    assert (found.spacings, found.largest_timestep) == (("5",) * 6, 999)
    # Refreshes are 0, 1 and 4; between them those decided last and now, and 15 more, are least.
    assert found.recomputed == (0, 0, 19, 20, 0, 22)
    assert found.guided
    assert not found.reuse_guidance
    assert found.condition.tolist() == [0, 3]
    assert found.seeds.tolist() == [5, 6]


def test_lazymars_table_is_the_default(model: Model) -> None:
    found = _request(_large(model), iterations=64, refresh=9)
    decided, refreshed = counts(256, 64), {0, 1, 2, 3, 4, 5, 14, 23, 32, 41, 50, 59}
    for step, count in enumerate(found.recomputed):
        least = decided[step - 1] + decided[step] + 15
        share = 1 if step < 20 else 0.6 if step < 21 else 0.5 if step < 25 else 0.4
        share = share if step < 30 else 0.15 if step < 35 else 0.12 if step < 40 else 0.05
        assert count == (0 if step in refreshed else max(least, int(320 * share)))


def _large(model: Model) -> Model:
    """256 tokens, and as many buffer positions as published models have."""
    return _changed(model, side=16, buffer_size=64, image_size=(64, 64))


@pytest.mark.parametrize(
    ("settings", "guided"),
    [
        ({}, True),
        ({"guidance": 1}, False),
        ({"guidance": "1:1"}, False),
        ({"guidance": "1,1,1,1,1,1"}, False),
        ({"guidance": "1,1,1,1,1,2"}, True),
        ({"guidance": 0}, True),
    ],
)
def test_the_unconditional_half_runs_where_it_counts(
    model: Model, settings: dict[str, Any], guided: bool
) -> None:
    assert _request(model, **settings).guided is guided
    reuse = _request(model, refresh=2, reuse_guidance=True, **settings).reuse_guidance
    assert reuse is guided
    assert not _request(model, refresh=1, reuse_guidance=True, **settings).reuse_guidance


def test_a_preset_stands_in_for_the_defaults(model: Model) -> None:
    said = {"iterations": 3, "diffusion_steps": "4:2", "refresh": 2}
    found, wanted = _request(model, preset="fast"), _request(model, **said)
    assert (found.counts, found.spacings) == (wanted.counts, wanted.spacings)
    assert (found.recomputed, found.largest_timestep) == (wanted.recomputed, 950)
    np.testing.assert_array_equal(found.parameters, wanted.parameters)


@pytest.mark.parametrize(
    ("given", "counts", "spacings"),
    [
        ({"iterations": 4}, (2, 3, 5, 6), ("4", "3", "2", "2")),
        ({"iterations": 6}, (1, 2, 2, 3, 4, 4), ("4", "3", "3", "2", "2", "2")),  # as the default
        ({"diffusion_steps": 7}, (3, 5, 8), ("7", "7", "7")),
        ({"guidance": "2,2,2"}, (3, 5, 8), ("4", "3", "2")),
    ],
)
def test_what_is_said_beside_a_preset_counts(
    model: Model, given: dict[str, Any], counts: Any, spacings: Any
) -> None:
    found = _request(model, preset="fast", **given)
    assert (found.counts, found.spacings) == (counts, spacings)


def test_presets_that_there_are_not(model: Model) -> None:
    with pytest.raises(RequestError, match="no preset 'slow': it has fast"):
        _request(model, preset="slow")
    with pytest.raises(RequestError, match="no preset 'slow': it has none"):
        _request(_changed(model, presets={}), preset="slow")


def test_presets_are_checked_with_the_manifest(model: Model) -> None:
    for wrong, words in (
        ({"steps": 3}, "preset 'x': unknown setting 'steps'"),
        ({"guidance": -1}, "preset 'x': guidance must be finite"),
        ({"preset": "fast"}, "preset 'x' names another one"),
    ):
        with pytest.raises(ValueError, match=words):
            _changed(model, presets={"x": wrong})


def test_without_an_unconditional_class_there_is_no_guidance(model: Model) -> None:
    plain = _unguided(model)  # its defaults have guidance
    for settings in ({}, {"guidance": 1}, {"guidance": "1:1"}, {"preset": "fast"}):
        found = _request(plain, **settings)
        assert not found.guided
        assert (found.parameters[:, 0] == 1).all()
    assert not _request(plain, refresh=2, reuse_guidance=True).reuse_guidance
    guided = _unguided(model, presets={"strong": {"guidance": 3}})
    for settings in ({"guidance": 2}, {"guidance": "1,1,1,1,1,1.5"}, {"guidance": 0}):
        with pytest.raises(RequestError, match="no unconditional class: use guidance 1"):
            _request(plain, **settings)
    with pytest.raises(RequestError, match="no unconditional class: use guidance 1"):
        _request(guided, preset="strong")
    assert not _request(guided, preset="strong", guidance=1).guided


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"iterations": 17}, "iterations must be 1 … 16, as many as there are tokens .* got 17"),
        ({"iterations": 0}, "iterations must be 1 … 16, .* got 0"),
        ({"iterations": 10**30}, "iterations must be 1 … 16"),
        ({"max_timestep": -1}, "max_timestep must be at least 0, got -1"),
        ({"refresh": 0}, "refresh must be at least 1, got 0"),
        ({"refresh_first": 0}, "refresh_first must be at least 1, got 0"),
        ({"reuse_guidance": True}, "reuse_guidance needs refresh: after how many iterations"),
        ({"guidance": "1,2"}, "each of the 6 iterations, got guidance 2"),
        ({"temperature": "1,1,1"}, "each of the 6 iterations, got temperature 3"),
        ({"recompute": "1,0"}, "each of the 6 iterations, got recompute 2"),
        ({"recompute": "1,0", "refresh": 1}, "each of the 6 iterations, got recompute 2"),
        ({"diffusion_steps": "5,4"}, "each of the 6 iterations, got diffusion_steps 2"),
        ({"diffusion_steps": 0}, "diffusion_steps must be at least 1, got 0"),
        ({"diffusion_step": 4}, "unknown setting 'diffusion_step'.*'diffusion_steps'"),
    ],
)
def test_what_cannot_be_served_is_said(model: Model, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words) as raised:
        _request(model, **settings)
    assert "\n" not in str(raised.value)


# --- tokens that are given


@given(seed=st.integers(0, 100), side=st.integers(1, 5), patch=st.integers(1, 3))
def test_tokens_and_latents_are_patches_of_each_other(seed: int, side: int, patch: int) -> None:
    """``patchify`` and ``unpatchify`` of models/mar.py in LTH14/mar."""
    info = MarModel.model_construct(side=side, channels=2 * patch**2, patch_size=patch)
    latents = np.random.default_rng(seed).random((3, 2, side * patch, side * patch))
    x = torch.from_numpy(latents).reshape(3, 2, side, patch, side, patch)
    wanted = torch.einsum("nchpwq->nhwcpq", x).reshape(3, side**2, 2 * patch**2).numpy()
    np.testing.assert_array_equal(tokens_of(info, latents), wanted)
    np.testing.assert_array_equal(latents_of(info, wanted), latents)


def test_given_tokens_count_as_decided(model: Model) -> None:
    latents = np.random.default_rng(0).standard_normal(LATENTS)
    edit = {"latents": latents, "given": _first(10)}
    found = _request(model, edit, iterations=3)
    assert found.counts == (1, 2, 3)  # of 6 tokens
    np.testing.assert_allclose(found.parameters[:, 0], 1 + np.array([11, 13, 15]) / 16)
    assert found.given is not None
    assert found.given.count == 10
    assert found.given.where.tolist() == [[1] * 10 + [0] * 6] * 2
    mar, _ = tiny_mar.models()
    wanted = mar.tokens(torch.from_numpy(latents.astype(np.float32)))
    np.testing.assert_array_equal(found.given.tokens, wanted)
    assert (
        _request(model, {"latents": latents, "given": _first(0)}).counts == _request(model).counts
    )


def test_nothing_given_is_no_edit(model: Model) -> None:
    latents = np.zeros((2, *model.info.latent_shape), np.float32)
    assert _request(model, {"latents": latents, "given": _first(0)}).given is None


def test_given_tokens_may_be_lists_and_other_numbers(model: Model) -> None:
    latents = np.arange(np.prod(LATENTS)).reshape(LATENTS) % 7
    one = _request(model, {"latents": latents, "given": _first(3)})
    other = _request(
        model, {"latents": latents.tolist(), "given": (_first(3) * 5).astype(int).tolist()}
    )
    assert one.given is not None
    assert other.given is not None
    np.testing.assert_array_equal(one.given.tokens, other.given.tokens)
    np.testing.assert_array_equal(one.given.where != 0, other.given.where != 0)


_ZEROS = np.zeros(LATENTS)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        ({}, "given as `latents` or `image`, and `given` that says which tokens stay"),
        ({"latents": _ZEROS}, "given as `latents` or `image`, and `given`"),
        (
            {"latents": _ZEROS, "given": _first(2), "tokens": 1},
            "given as `latents` or `image`, and `given`",
        ),
        ({"tokens": np.zeros((2, 16), int)}, "given as `latents` or `image`, and `given`"),
        (5, "given as `latents` or `image`, and `given`"),
        (
            {"latents": _ZEROS[:1], "given": _first(2)},
            r"latents must be \[2, 3, 8, 8\], got \[1, 3, 8, 8\]",
        ),
        ({"latents": _ZEROS.reshape(2, 16, 12), "given": _first(2)}, r"got \[2, 16, 12\]"),
        ({"latents": [[1], [1, 2]], "given": _first(2)}, r"latents must be \[2, 3, 8, 8\], got"),
        ({"latents": _ZEROS, "given": _first(2)[0]}, r"given must be \[2, 4, 4\], got \[4, 4\]"),
        ({"latents": _ZEROS, "given": _first(2).reshape(2, 16)}, r"given must be \[2, 4, 4\]"),
        ({"latents": _ZEROS, "given": [[1], [1, 2]]}, r"given must be \[2, 4, 4\], got"),
        ({"latents": _ZEROS + np.nan, "given": _first(2)}, "latents to keep must be finite numb"),
        ({"latents": _ZEROS + np.inf, "given": _first(2)}, "latents to keep must be finite numb"),
        ({"latents": _ZEROS + 1e300, "given": _first(2)}, "latents to keep must be finite numb"),
        ({"latents": _ZEROS + 1j, "given": _first(2)}, "latents to keep must be finite numbers"),
        ({"latents": np.full(LATENTS, "1"), "given": _first(2)}, "must be finite numbers"),
        ({"latents": np.full(LATENTS, None), "given": _first(2)}, "must be finite numbers"),
        ({"latents": _ZEROS, "given": _first(2) * 1.0}, "must be true or false, got float64"),
        (
            {"latents": _ZEROS, "given": np.stack([_first(2)[0], _first(5)[0]])},
            "as many tokens of every image have to stay, got 2 to 5",
        ),
        ({"latents": _ZEROS, "given": _first(16)}, "all tokens stay: there is nothing to decide"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_given_tokens_are_checked(model: Model, edit: Any, words: str) -> None:
    with pytest.raises(RequestError, match=words) as raised:
        _request(model, edit)
    assert "\n" not in str(raised.value)


def test_an_edit_has_no_more_iterations_than_tokens_to_decide(model: Model) -> None:
    """The default is 6: it gives way, and what is asked for does not."""
    edit = {"latents": _ZEROS, "given": _first(12)}
    assert len(_request(model, edit).counts) == 4
    assert len(_request(model, edit, iterations=3).counts) == 3
    with pytest.raises(RequestError, match=r"iterations must be 1 … 4, as many as .* got 6"):
        _request(model, edit, iterations=6)


def test_defaults_that_do_not_fit_are_said(model: Model) -> None:
    info: MarModel = model.info
    many = settings_of(info.defaults, {"iterations": 20})
    with pytest.raises(RequestError, match="iterations must be 1 … 16"):
        _request(_changed(model, defaults=many.model_dump()))
