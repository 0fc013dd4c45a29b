"""The emoji sample: what is one emoji, what is held out, figures, and its weights.

``emoji.npz`` has nine images that the sample was trained with, and the states of their texts.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from emoji_data import STYLES, Emojis, base_of, catalogue, split
from emoji_evaluate import Truth, another, figures
from emoji_tokenizer import chances
from emoji_transformer import decode, tokenize, tokenizer, transformer
from train_transformer import loss_of


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1F3C3", "1F3C3-1F3FF-200D-2642-FE0F"),  # person running; man running, dark skin tone
        ("1F3C3", "1F3C3-200D-2640-FE0F-200D-27A1-FE0F"),  # woman running facing right
        ("1F468-200D-1F680", "1F469-1F3FD-200D-1F680"),  # man and woman astronaut
        ("1F468", "1F469-200D-1F9B0"),  # man; woman with red hair
    ],
)
def test_variants_have_one_base(one: str, other: str) -> None:
    assert base_of(one) == base_of(other)


@pytest.mark.parametrize(("one", "other"), [("1F34E", "1F34F"), ("2640-FE0F", "2642-FE0F")])
def test_other_emoji_have_another_base(one: str, other: str) -> None:
    assert base_of(one) != base_of(other)


def test_names_say_the_skin_tone_and_missing_images_are_left_out() -> None:
    variant = {"image": "1f44d-1f3ff.png", "has_img_google": True, "has_img_twitter": False}
    entry = {
        "name": "THUMBS UP SIGN",
        "short_name": "thumbs_up",
        "unified": "1F44D",
        "image": "1f44d.png",
        "category": "People & Body",
        "has_img_google": True,
        "has_img_twitter": True,
        "skin_variations": {"1F3FF": variant, "1F3FF-1F3FB": variant},
    }
    found = list(catalogue([entry], "google"))
    assert [each.names for each in found] == [
        ("thumbs up sign", "thumbs up"),
        ("thumbs up sign, dark skin tone", "thumbs up, dark skin tone"),
    ]
    assert [each.code for each in catalogue([entry], "twitter")] == ["1f44d"]


def test_held_out_emoji_and_pairs_are_not_trained_with() -> None:
    bases = np.repeat([f"{number:X}" for number in range(500)], 6)
    styles = np.tile(STYLES, 1000)
    found = split(bases, styles)
    pairs = {
        name: set(zip(bases[found == name], styles[found == name], strict=True))
        for name in ("train", "new_pair", "new_emoji")
    }
    trained = {base for base, _ in pairs["train"]}
    assert not trained & {base for base, _ in pairs["new_emoji"]}
    assert len(pairs["new_emoji"]) == 3 * 30
    assert not pairs["train"] & pairs["new_pair"]
    for base, style in pairs["new_pair"]:
        assert {(base, other) for other in STYLES if other != style} <= pairs["train"]


def _emojis(count: int) -> Emojis:
    names = np.array([f"emoji {row}" for row in range(count)])
    return Emojis(
        images=np.zeros((count, 64, 64, 3), np.uint8),
        texts=np.stack([names, names], 1),
        styles=np.array(STYLES)[np.arange(count) % 3],
        bases=names,
        categories=names,
        toned=np.arange(count) % 2 == 0,
    )


def test_figures_of_the_true_images_are_perfect_and_of_others_not() -> None:
    rng, emojis = np.random.default_rng(0), _emojis(30)
    centres = 3 * np.eye(3, 16, dtype=np.float32)
    features = (centres[np.arange(30) % 3] + 0.1 * rng.normal(size=(30, 16))).astype(np.float32)
    truth = Truth(emojis, features, centres)
    right, wrong = figures(features, truth), figures(features[another(emojis.styles)], truth)
    assert (right["distance"], right["top_1"], right["median_rank"], right["style"]) == (0, 1, 1, 1)
    assert (wrong["top_1"], wrong["style"]) == (0, 1)
    assert right["chance_1"] == 0.1
    assert right["chance_5"] == 0.5


def test_toned_images_are_drawn_a_third_as_often() -> None:
    found = chances(_emojis(4))
    np.testing.assert_allclose(found / found[1], [1 / 3, 1, 1 / 3, 1])


@pytest.fixture(scope="module")
def seen() -> dict[str, torch.Tensor]:
    with np.load(Path(__file__).with_name("emoji.npz")) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


def test_the_tokenizer_keeps_what_an_image_shows(seen: dict[str, torch.Tensor]) -> None:
    images, model = seen["images"].numpy(), tokenizer()
    found = decode(model, tokenize(model, images)).astype(np.float64)
    errors = np.abs(found[:, None] - images[None]).mean((2, 3, 4))
    np.testing.assert_array_equal(errors.argmin(1), np.arange(len(images)))


@torch.no_grad()
def test_the_transformer_reads_the_text(seen: dict[str, torch.Tensor]) -> None:
    model = transformer().eval()
    tokens, states = tokenize(tokenizer(), seen["images"].numpy()), seen["states"].float()
    masked = torch.full_like(tokens, model.codebook_size)
    own = loss_of(model, tokens, masked, states).item()
    assert own < loss_of(model, tokens, masked, states.roll(1, 0)).item()
