"""MAR's networks beside recordings of the official code, and what their constructors refuse.

Covered: z of every iteration, all at once as training computes it; the diffusion head; the KL
autoencoder's decoder and encoder; tokens of patches and back. What is exported of them is replayed
by ``tests/test_official.py``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tests import tiny_mar
from tests.officials.mar import known_arguments
from torch import Tensor

from fewstep.export import presets
from fewstep.export.models.kl import AutoencoderKL
from fewstep.export.models.mar import MAR
from fewstep.runtime.families.mar.iterations import counts
from fewstep.runtime.families.mar.request import latents_of, tokens_of

Recorded = Callable[[str], dict[str, npt.NDArray[Any]]]


def _close(found: Tensor, recorded: npt.NDArray[Any]) -> None:
    np.testing.assert_allclose(found.numpy(), recorded, rtol=0, atol=1e-4)


def _model(kind: Callable[..., Any], data: dict[str, npt.NDArray[Any]], arguments: Any) -> Any:
    state = {key[3:]: torch.from_numpy(data[key]) for key in data if key.startswith("sd/")}
    return presets.load(kind, state, Path("x.pth"), known_arguments(kind, arguments))


@pytest.fixture(scope="module")
def mar(recorded: Recorded) -> MAR:
    data = recorded("mar")
    model: MAR = _model(MAR, data, json.loads(str(data["cfg"]))["mar"])
    return model


@torch.no_grad()
@pytest.mark.parametrize(("run", "halves"), [("lin", 2), ("const", 2), ("nocfg", 1)])
def test_z_of_all_at_once_is_the_official_one(
    run: str, halves: int, mar: MAR, recorded: Recorded
) -> None:
    """With the tokens that the official code decided before."""
    data = recorded("mar")
    said = json.loads(str(data["cfg"]))["runs"][run]
    order = data[f"in/{run}/order"][:, ::-1].astype(np.int64)  # the last are decided first
    decided = counts(order.shape[1], said["num_iter"])
    starts = np.cumsum([0, *decided])
    for start, end in zip(starts, starts[1:], strict=False):
        order[:, start:end] = np.sort(order[:, start:end], axis=1)
    rows = torch.from_numpy(np.tile(order, (halves, 1)))
    classes = torch.tensor(said["labels"])
    condition = torch.cat([classes, torch.full_like(classes, mar.class_num)])[: len(rows)]
    known = torch.zeros(len(rows), 0, mar.token_embed_dim)
    for iteration, count in enumerate(decided):
        z = mar(known, rows, condition)[:, :count]
        _close(z.flatten(0, 1), data[f"out/{run}/z/{iteration}"])
        sampled = data[f"out/{run}/sampled/{iteration}"].reshape(-1, count, mar.token_embed_dim)
        tokens = torch.from_numpy(sampled[: len(order)]).repeat(halves, 1, 1)
        known = torch.cat([known, tokens], 1)


@torch.no_grad()
def test_the_head_is_the_official_one(mar: MAR, recorded: Recorded) -> None:
    data = recorded("mar")
    x, t, c = (torch.from_numpy(data[f"in/mlp_{name}"]) for name in "xtc")
    _close(mar.diffloss.net(x, t, c), data["out/mlp"])


@torch.no_grad()
def test_the_autoencoder_is_the_official_one(recorded: Recorded) -> None:
    data = recorded("mar_kl16")
    kl = _model(AutoencoderKL, data, json.loads(str(data["cfg"])))
    image = kl.unclamped(torch.from_numpy(data["in/z_div_0.2325"]))
    _close(image.clamp(-1, 1), data["out/image_pm1"].clip(-1, 1))
    given = torch.from_numpy(data["in/enc_image"])
    _close(kl.mean(given), data["out/enc_mean"])
    assert kl.moments(given).shape[1] == 2 * kl.embed_dim


def test_tokens_are_patches_of_latents_row_by_row() -> None:
    """By hand, and as the runtime cuts them."""
    mar, _ = tiny_mar.models()
    latents = torch.arange(2 * 3 * 8 * 8).reshape(2, 3, 8, 8)
    tokens = mar.tokens(latents)
    assert tokens.shape == (2, mar.seq_len, 12)
    row, column = 2, 1
    patch = latents[1, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
    assert tokens[1, 4 * row + column].tolist() == patch.flatten().tolist()
    assert torch.equal(mar.latents(tokens), latents)


def test_the_runtime_cuts_the_same_tokens(mar_bundle: Path) -> None:
    from fewstep.runtime.bundle import Bundle

    model: Any = Bundle.read(mar_bundle).manifest.model
    mar, _ = tiny_mar.models()
    latents = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    tokens = tokens_of(model, latents.numpy())
    np.testing.assert_array_equal(tokens, mar.tokens(latents))
    np.testing.assert_array_equal(latents_of(model, tokens), latents)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"encoder_embed_dim": 50}, "50 must be a multiple of encoder_num_heads 3"),
        ({"decoder_num_heads": 5}, "decoder_embed_dim 32 must be a multiple of decoder_num_heads"),
        ({"img_size": 18}, "img_size 18 must be a multiple of vae_stride times patch_size 4"),
        ({"encoder_depth": 0}, "encoder_depth must be a whole number, at least 1, got 0"),
        ({"decoder_num_heads": 2.0}, "decoder_num_heads must be a whole number"),
        ({"patch_size": True}, "patch_size must be a whole number, at least 1, got True"),
        ({"img_size": "16"}, "img_size must be a whole number, at least 1, got '16'"),
        ({"mlp_ratio": "4"}, "mlp_ratio must be above 0, got '4'"),
        ({"norm_layer_eps": 0}, "norm_layer_eps must be above 0 and below 1, got 0"),
    ],
)
def test_sizes_that_do_not_build_are_refused(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        MAR(**{**tiny_mar.TRANSFORMER, **changed})
