"""Google's MaskGIT as ported by maskgit-torch: networks, and generations with and without tokens
that are kept.

With logits l, temperature μ and recorded Gumbel noise g:

    token      = argmax(log softmax(l) + g)
    confidence = log softmax(l)[token] + μ·g', +∞ where known; the least confident are masked again
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tests.officials.comparison import Comparison
from tests.officials.fixture import Fixture, Network, gumbel
from tests.officials.masked_forms import Rollout, compare, log_softmax
from tests.officials.replay import Arguments, Sampler, exported, run

from fewstep.export import presets
from fewstep.export.models.maskgit_tokenizer import VQVAE
from fewstep.runtime.generator import Generator

Array = npt.NDArray[Any]


def knows(cfg: Mapping[str, Any]) -> bool:
    """Whether a recording is of maskgit-torch."""
    return {"transformer", "num_class"} <= cfg.keys()


def replays(fixture: Fixture, folder: Path) -> Iterator[Comparison]:
    """Replay every recorded run; ``folder`` is for checkpoints and bundles."""
    transformer, tokenizer = _networks(fixture)
    files = {
        "transformer": transformer.save(folder / "maskgit.ckpt"),
        "tokenizer": tokenizer.save(folder / "tokenizer.ckpt"),
    }
    config = {"transformer": transformer.arguments, "tokenizer": tokenizer.arguments}
    with exported("maskgit-torch", files, config, folder / "bundle") as generator:
        yield _one_pass(generator, fixture)
        for name, said in fixture.cfg["runs"].items():
            yield _generation(generator, fixture, name, said)
    yield _encoder(fixture, tokenizer)


def transformer_arguments(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor's arguments, of the configuration that a recording has."""
    said, codes = cfg["transformer"], cfg["vqvae"]["codebook_size"]
    return {
        "num_image_tokens": cfg["grid"] ** 2 + 1,
        "num_codebook_vectors": codes + cfg["num_class"] + 1,
        "dim": said["num_embeds"],
        "hidden_dim": said["intermediate_size"],
        "num_heads": said["num_heads"],
        "n_layers": said["num_layers"],
        "codebook_size": codes,
    }


def _networks(fixture: Fixture) -> tuple[Network, Network]:
    return (
        Network(transformer_arguments(fixture.cfg), fixture.under("sd.transformer/")),
        Network(dict(fixture.cfg["vqvae"]), fixture.under("sd.tokenizer/", "sd.vqvae/")),
    )


def _tokens(ids: Array, cfg: Mapping[str, Any]) -> Array:
    """Recorded ids ``[…, 1 + N]`` as a bundle has them: without the class, the mask id V."""
    codes, mask = cfg["vqvae"]["codebook_size"], cfg["mask_token_id"]
    found = ids[..., 1:].astype(np.int32)
    return np.where(found == mask, codes, found)


def _one_pass(generator: Generator, fixture: Fixture) -> Comparison:
    found, cfg = Comparison("one pass"), fixture.cfg
    codes = cfg["vqvae"]["codebook_size"]
    fed = {
        "tokens": _tokens(fixture["in/ids"], cfg),
        "condition": fixture["in/ids"][:, 0] - codes,
    }
    logits = run(generator, "transformer", fed)["logits"]
    found.floats("logits", logits, fixture["out/logits"][:, 1:, :codes])
    code = fixture["in/code"]
    image = run(generator, "decoder", {"tokens": code.reshape(len(code), -1)})["image"]
    found.floats("image", image, fixture["out/image_raw"].clip(0, 1))
    return found


def _generation(
    generator: Generator, fixture: Fixture, name: str, said: Mapping[str, Any]
) -> Comparison:
    recorded = fixture.under(f"in/{name}/", f"out/{name}/")
    found = Comparison(f"{name}, {said['num_iter']} steps")
    before = _tokens(recorded["ids_in"], fixture.cfg)
    sampled = _tokens(recorded["final_seqs"].transpose(1, 0, 2), fixture.cfg)
    start = _tokens(recorded["ids"], fixture.cfg)
    mask = start == generator.model.info.mask_token
    given = None if mask.all() else {"given": np.where(mask, 0, start), "mask": mask}
    rollout = Rollout(
        {"steps": said["num_iter"], "masking_temperature": (said["choice_temperature"], 0.0)},
        np.array(said["labels"]),
        np.concatenate([before, sampled[-1:]]),
        sampled,
        np.ones(sampled.shape, bool),
        {
            "sample_tokens": _sampler(
                gumbel(recorded, "gumbel_tokens")[:, :, 1:],
                gumbel(recorded, "gumbel_conf")[..., 1:],
            )
        },
        {},
        given,
    )
    compare(found, generator, rollout)
    if "step1_logits" in recorded:
        fed = {"tokens": before[1], "condition": np.array(said["labels"])}
        logits = run(generator, "transformer", fed)["logits"]
        found.floats("logits", logits, recorded["step1_logits"][:, 1:])
    if "image_clipped_f16" in recorded:
        image = run(generator, "decoder", {"tokens": sampled[-1]})["image"]
        expected = recorded["image_clipped_f16"]
        found.floats("image", image[: len(expected)], expected)
    return found


def _sampler(noise: Array, confidence_noise: Array) -> Sampler:
    def sample(step: int, of: Arguments) -> None:
        scores = log_softmax(of["conditional"])
        masked = of["tokens"] == of["mask_token"]
        drawn = (scores + noise[step]).argmax(-1)
        of["sampled"][:] = np.where(masked, drawn, of["tokens"])
        own = np.take_along_axis(scores, drawn[..., None], -1)[..., 0]
        noisy = own + of["parameters"][:, 1, None] * confidence_noise[step]
        of["confidence"][:] = np.where(masked, noisy, np.inf)

    return sample


def _encoder(fixture: Fixture, tokenizer: Network) -> Comparison:
    found = Comparison("image → ids (PyTorch)")
    state = {key: torch.from_numpy(value) for key, value in tokenizer.state.items()}
    model = presets.load(VQVAE, state, Path("tokenizer.ckpt"), tokenizer.arguments)
    with torch.no_grad():
        ids = model.encode(torch.from_numpy(fixture["in/image01"])).numpy()
    found.ids("ids", ids, fixture["out/enc_idx"].reshape(ids.shape))
    return found
