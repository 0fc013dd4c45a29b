"""aMUSEd as diffusers has it: its transformer, its tokenizer, and generations of the scheduler.

With guided logits l, a temperature r and recorded Gumbel noise g and uniforms u:

    token      = argmax(log softmax(l) + g)
    confidence = log softmax(l)[token] − r·log(−log u), +∞ where known

Text states are recorded, so the bundle's encoder is a stand-in.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tests.officials.comparison import Comparison
from tests.officials.fixture import Fixture, Network, UnusableError, gumbel
from tests.officials.masked_forms import Rollout, compare, guided, log_softmax
from tests.officials.replay import Arguments, Sampler, exported, run
from tests.officials.stand_ins import side_of, stand_in
from tests.tiny_amused import VOCABULARY, write_tokenizer

from fewstep.export import presets
from fewstep.export.models.amused_vq import VQModel
from fewstep.export.models.clip_text import CLIPTextModelWithProjection
from fewstep.export.models.uvit2d import UVit2DModel
from fewstep.runtime.generator import Generator

Array = npt.NDArray[Any]

_WEIGHTS = "diffusion_pytorch_model.bin"
_SCORE = 6.0  # of the pipeline


def knows(cfg: Mapping[str, Any]) -> bool:
    """Whether a recording is of aMUSEd."""
    return {"uvit2d", "vqmodel"} <= cfg.keys()


def replays(fixture: Fixture, folder: Path) -> Iterator[Comparison]:
    """Replay every recorded run; ``folder`` is for checkpoints and bundles."""
    runs = fixture.cfg.get("runs", {})
    sides = {name: _side(fixture, name) for name in runs}
    pixels = 2 ** (len(fixture.cfg["vqmodel"]["block_out_channels"]) - 1)
    yield _one_pass(fixture)
    if "in/codes" in fixture:
        yield _tokenizer(fixture)
    for side in dict.fromkeys(sides.values()):
        pipeline = _pipeline(fixture, side, folder / f"pipeline-{side}")
        with exported("amused", {"folder": pipeline}, {}, folder / f"bundle-{side}") as generator:
            if _is_told(fixture, side, side * pixels):
                yield _one_pass_of_the_graph(generator, fixture)
            for name in (each for each in runs if sides[each] == side):
                yield _generation(generator, fixture, name, runs[name])


def _side(fixture: Fixture, name: str) -> int:
    rows, columns = fixture[f"out/{name}/ids_in"].shape[2:]
    if rows != columns:
        raise UnusableError(f"has a grid of {rows}×{columns} tokens, and bundles have square ones")
    return side_of(rows * columns)


def _pipeline(fixture: Fixture, side: int, folder: Path) -> Path:
    """The folder of diffusers, for a grid of ``side × side`` tokens."""
    sizes = {**fixture.cfg["uvit2d"], "sample_size": side}
    length, width = fixture["in/enc"].shape[1:]
    text = stand_in(
        CLIPTextModelWithProjection,
        {
            "vocab_size": VOCABULARY,
            "hidden_size": width,
            "intermediate_size": 8,
            "projection_dim": fixture["in/pooled"].shape[1],
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "max_position_embeddings": length,
            "eos_token_id": 2,
        },
    )
    said = {"architectures": ["CLIPTextModelWithProjection"]}
    parts = {
        "transformer": (Network(sizes, fixture.under("sd.transformer/")), "UVit2DModel"),
        "vqvae": (Network(fixture.cfg["vqmodel"], fixture.under("sd.vqvae/")), "VQModel"),
    }
    for name, (network, kind) in parts.items():
        _write(folder / name, network, _WEIGHTS, {"_class_name": kind})
    _write(folder / "text_encoder", text, "pytorch_model.bin", said)
    write_tokenizer(folder / "tokenizer")
    scheduler = {"_class_name": "AmusedScheduler", "mask_token_id": fixture.cfg["mask_token_id"]}
    (folder / "scheduler").mkdir()
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(scheduler))
    return folder


def _write(folder: Path, network: Network, file: str, said: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True)
    network.save(folder / file)
    (folder / "config.json").write_text(json.dumps({**said, **network.arguments}))


# --- one pass


def _one_pass(fixture: Fixture) -> Comparison:
    """By the PyTorch class, with any grid and micro conditions."""
    found = Comparison("one pass (PyTorch)")
    model = _loaded(UVit2DModel, fixture, "transformer", "uvit2d")
    given = (fixture[f"in/{name}"] for name in ("ids", "enc", "pooled", "micro_conds"))
    with torch.no_grad():
        logits = model(*map(torch.from_numpy, given)).numpy()
    found.floats("logits", logits, fixture["out/logits"])
    return found


def _tokenizer(fixture: Fixture) -> Comparison:
    """Of a grid with any sides, by the PyTorch class."""
    found, codes = Comparison("code → image, image → ids (PyTorch)"), fixture["in/codes"]
    model = _loaded(VQModel, fixture, "vqvae", "vqmodel")
    with torch.no_grad():
        image = model.decode(torch.from_numpy(codes)).numpy()
        ids = model.encode(torch.from_numpy(fixture["in/image"])).numpy()
    found.floats("image", image, fixture["out/image"])
    found.ids("ids", ids.reshape(codes.shape), fixture["out/encoded"])
    return found


def _loaded(kind: Any, fixture: Fixture, network: str, arguments: str) -> Any:
    state = {k: torch.from_numpy(v) for k, v in fixture.under(f"sd.{network}/").items()}
    return presets.load(kind, state, Path(network), fixture.cfg[arguments])


def _is_told(fixture: Fixture, side: int, pixels: int) -> bool:
    """Whether the recorded pass has the grid and the micro conditions of the bundle."""
    same = fixture["in/ids"].shape[1:] == (side, side)
    return same and bool((fixture["in/micro_conds"] == [pixels, pixels, 0, 0, _SCORE]).all())


def _one_pass_of_the_graph(generator: Generator, fixture: Fixture) -> Comparison:
    found, ids = Comparison("one pass"), fixture["in/ids"]
    fed = {"tokens": ids.reshape(len(ids), -1), "text": _text(fixture)}
    logits = run(generator, "transformer", fed)["logits"]
    found.floats("logits", logits, _flat(fixture["out/logits"]))
    return found


def _flat(logits: Array) -> Array:
    """``[B, V, h, w]`` → ``[B, N, V]``."""
    return logits.reshape(*logits.shape[:2], -1).transpose(0, 2, 1)


def _text(fixture: Fixture, kind: str = "") -> Array:
    """A text as bundles have it: the pooled one, then the states, zeros behind the narrower."""
    pooled, states = fixture[f"in/{kind}pooled"], fixture[f"in/{kind}enc"]
    width = max(pooled.shape[-1], states.shape[-1])
    found = np.zeros((len(states), 1 + states.shape[1], width), np.float32)
    found[:, 0, : pooled.shape[1]] = pooled
    found[:, 1:, : states.shape[2]] = states
    return found


# --- generations


def _generation(
    generator: Generator, fixture: Fixture, name: str, said: Mapping[str, Any]
) -> Comparison:
    recorded = fixture.under(f"in/{name}/", f"out/{name}/")
    found = Comparison(f"{name}, {said['num_inference_steps']} steps")
    rollout, last = _rollout(fixture, said, recorded)
    compare(found, generator, rollout)
    found.floats("last logits", last[0], _flat(recorded["logits_last"]))
    image = run(generator, "decoder", {"tokens": rollout.tokens[-1]})["image"]
    found.floats("image", image, recorded["image01"])
    return found


def _rollout(
    fixture: Fixture, said: Mapping[str, Any], recorded: Mapping[str, Array]
) -> tuple[Rollout, list[Array]]:
    """The generation, and a list that gets the guided logits of the last step of every replay."""
    before = recorded["ids_in"].reshape(*recorded["ids_in"].shape[:2], -1).astype(np.int32)
    steps, batch, tokens = before.shape
    noise = gumbel(recorded, "gumbel").reshape(steps, batch, tokens, -1)
    masked = before == fixture.cfg["mask_token_id"]
    # The last tokens are what the recorded logits give with the recorded noise.
    drawn = (log_softmax(_flat(recorded["logits_last"])) + noise[-1]).argmax(-1)
    final = np.where(masked[-1], drawn, before[-1]).astype(np.int32)
    after = np.concatenate([before[1:], final[None]])
    known = after != fixture.cfg["mask_token_id"]
    settings, guides, last = _settings(said), said["guidance_scale"] > 1, list[Array]()
    text = _text(fixture)
    both = np.concatenate([text, _text(fixture, "neg_")]) if guides else text
    rollout = Rollout(
        settings,
        text,
        np.concatenate([before, final[None]]),
        np.where(known, after, 0),
        masked & known,
        {"sample_tokens": _sampler(noise, recorded["uniform_conf"], last)},
        {"condition": both},
    )
    return rollout, last


def _settings(said: Mapping[str, Any]) -> dict[str, Any]:
    temperature = said.get("temperature", (2, 0))
    first, last = temperature if isinstance(temperature, list | tuple) else (temperature, 0.01)
    return {
        "steps": said["num_inference_steps"],
        "schedule": said.get("masking_schedule", "cosine"),
        "guidance": max(0.0, said["guidance_scale"] - 1),
        "masking_temperature": (first, last),
    }


def _sampler(noise: Array, uniforms: Array, last: list[Array]) -> Sampler:
    def sample(step: int, of: Arguments) -> None:
        logits = guided(of, 3)
        scores, masked = log_softmax(logits), of["tokens"] == of["mask_token"]
        drawn = (scores + noise[step]).argmax(-1)
        of["sampled"][:] = np.where(masked, drawn, of["tokens"])
        if step == len(noise) - 1:
            last.append(logits)
            return
        own = np.take_along_axis(scores, drawn[..., None], -1)[..., 0]
        noisy = own - of["parameters"][:, 1, None] * np.log(-np.log(uniforms[step]))
        of["confidence"][:] = np.where(masked, noisy, np.inf)

    return sample
