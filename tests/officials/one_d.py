"""1d-tokenizer's MaskGIT: its generators, alone and in generations.

With guided logits l, softmax temperature t, noise scale r·(1 − (s + 1)/T) = μ and recorded Gumbel
noise g:

    token      = argmax(l/t + μ·g)
    confidence = l[token]/t + μ·g', +∞ where known; the least confident are masked again
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tests.officials.comparison import Comparison
from tests.officials.fixture import Fixture, Network, gumbel
from tests.officials.masked_forms import Rollout, compare, guided
from tests.officials.replay import Arguments, Sampler, exported, run
from tests.officials.stand_ins import stand_in

from fewstep.export.models.titok import TiTok
from fewstep.export.parts.titok import constructor_arguments
from fewstep.runtime.generator import Generator

Array = npt.NDArray[Any]


def knows(cfg: Mapping[str, Any]) -> bool:
    """Whether a recording is of a generator of 1d-tokenizer."""
    return "config" in cfg and "generator" in cfg["config"].get("model", {})


def replays(fixture: Fixture, folder: Path) -> Iterator[Comparison]:
    """Replay every recorded run; ``folder`` is for checkpoints and bundles."""
    arguments, _ = constructor_arguments(fixture.cfg["config"])
    network = Network(arguments, fixture.under("sd/", "sd.transformer/"))
    tokenizer = _any_tokenizer(arguments["codebook_size"], arguments["image_seq_len"])
    files = {
        "transformer": network.save(folder / "generator.bin"),
        "tokenizer": tokenizer.save(folder / "titok.bin"),
    }
    config = {"transformer": arguments, "tokenizer": tokenizer.arguments}
    with exported("titok", files, config, folder / "bundle") as generator:
        if "in/ids" in fixture:
            yield _one_pass(generator, fixture)
        for name, said in fixture.cfg["runs"].items():
            if isinstance(said, dict):
                yield _generation(generator, fixture, name, said)


def _any_tokenizer(codes: int, tokens: int) -> Network:
    sizes: dict[str, Any] = {"vit_enc_model_size": [32, 1, 1], "vit_dec_model_size": [32, 1, 1]}
    sizes |= {"codebook_size": codes, "token_size": 8, "num_latent_tokens": tokens}
    kind = {"use_l2_norm": False, "is_legacy": False, "finetune_decoder": False}
    return stand_in(TiTok, {**sizes, **kind, "crop_size": 32})


def _one_pass(generator: Generator, fixture: Fixture) -> Comparison:
    found, ids = Comparison("one pass"), fixture["in/ids"]
    nothing = generator.model.info.condition.unconditional_id
    classes = {"cond": fixture["in/cond"], "uncond": np.full(len(ids), nothing)}
    for half, condition in classes.items():
        logits = run(generator, "transformer", {"tokens": ids, "condition": condition})["logits"]
        found.floats(f"logits, {half}", logits, fixture[f"out/logits_{half}"])
    return found


def _generation(
    generator: Generator, fixture: Fixture, name: str, said: Mapping[str, Any]
) -> Comparison:
    steps, mask = said["num_sample_steps"], generator.model.info.mask_token
    found = Comparison(f"{name}, {steps} steps")
    recorded = fixture.under(f"in/{name}/", f"out/{name}/")
    tokens = np.concatenate([recorded["ids_in"], recorded["ids"][None]]).astype(np.int32)
    # What a step drew is known where it was kept; elsewhere nobody recorded it.
    drawn = tokens[1:] != mask
    noise = gumbel(recorded, "gumbel_tokens"), gumbel(recorded, "gumbel_conf")
    rollout = Rollout(
        _settings(said),
        fixture["in/cond"],
        tokens,
        np.where(drawn, tokens[1:], 0),
        drawn,
        {"sample_tokens": _sampler(*noise)},
        {},
    )
    compare(found, generator, rollout)
    if "logits_c_step1" in recorded:
        fed = {"tokens": tokens[1], "condition": fixture["in/cond"]}
        logits = run(generator, "transformer", fed)["logits"]
        found.floats("conditional logits", logits, recorded["logits_c_step1"])
    return found


def _settings(said: Mapping[str, Any]) -> dict[str, Any]:
    scale, decay = said["guidance_scale"], said["guidance_decay"]
    noise = (said["randomize_temperature"], 0.0)
    ramps = {"constant": (scale, scale), "linear": (0.0, scale), "power-cosine": (0.0, scale - 1)}
    power = said.get("guidance_scale_pow", 3.0) if decay == "power-cosine" else 0.0
    annealed = said.get("softmax_temperature_annealing", False)
    return {
        "steps": said["num_sample_steps"],
        "guidance": ramps[decay],
        "guidance_power": power,
        "masking_temperature": noise,
        "sampling_temperature": noise,
        "softmax_temperature": (1.3, 0.5) if annealed else (1.0, 1.0),
    }


def _sampler(noise: Array, confidence_noise: Array) -> Sampler:
    def sample(step: int, of: Arguments) -> None:
        """Everything times the softmax temperature, which changes no order."""
        logits, parameters = guided(of, 3), of["parameters"]
        tempered = logits + parameters[:, 2, None, None] * noise[step]
        masked = of["tokens"] == of["mask_token"]
        of["sampled"][:] = np.where(masked, tempered.argmax(-1), of["tokens"])
        chosen = np.where(masked, of["sampled"], 0)[..., None].astype(int)
        own = np.take_along_axis(logits, chosen, -1)[..., 0]
        noisy = own + parameters[:, 1, None] * confidence_noise[step]
        of["confidence"][:] = np.where(masked, noisy, np.inf)

    return sample
