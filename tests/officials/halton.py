"""Halton-MaskGIT: its transformer, its tokenizer, and generations of both samplers.

With guided logits l, a temperature t that multiplies and recorded Gumbel noise g:

    token      = argmax(log softmax(t·l) + g)
    confidence = log softmax(t·l)[token] + r·g'      of the confidence sampler; +∞ where known

The confidence sampler draws known tokens again, the other one its own positions alone.
"""

from __future__ import annotations

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

from fewstep.export import presets
from fewstep.export.models.halton_transformer import HaltonTransformer
from fewstep.export.models.halton_vq import LlamaGenVQ
from fewstep.runtime.families.masked.halton import halton_order
from fewstep.runtime.generator import Generator

Array = npt.NDArray[Any]

_FIRST = {"confidence": "conf", "halton": "halton"}
_CURVES = {"root": "square-root"}


def knows(cfg: Mapping[str, Any]) -> bool:
    """Whether a recording is of Halton-MaskGIT, or of LlamaGen's tokenizer."""
    return {"transformer", "mask_value"} <= cfg.keys() or "f_factor" in cfg


def replays(fixture: Fixture, folder: Path) -> Iterator[Comparison]:
    """Replay every recorded run; ``folder`` is for checkpoints and bundles."""
    if "transformer" in fixture.cfg:
        yield from _transformer(fixture, folder)
    else:
        yield from _tokenizer(fixture, folder)


# --- the transformer, alone and in generations


def _transformer(fixture: Fixture, folder: Path) -> Iterator[Comparison]:
    network = Network(fixture.cfg["transformer"], fixture.under("sd/", "sd.transformer/"))
    side = network.arguments["input_size"]
    tokenizer = _companion(fixture, network.arguments["codebook_size"])
    files = {
        "transformer": network.save(folder / "halton.pth"),
        "tokenizer": tokenizer.save(folder / "vq.pt"),
    }
    config = {"transformer": network.arguments, "tokenizer": tokenizer.arguments}
    yield _order(fixture, side)
    with exported("halton", files, config, folder / "bundle") as generator:
        if "in/ids" in fixture:
            yield _one_pass(generator, fixture)
        for name, said in fixture.cfg["runs"].items():
            found = Comparison(f"{name}, {said['step']} steps")
            rollout = _rollout(fixture, name, said, side, network.arguments["codebook_size"])
            compare(found, generator, rollout, fixture.under(f"out/{name}/").get("logits_first"))
            _image(found, generator, fixture, name, rollout)
            yield found


def _companion(fixture: Fixture, codes: int) -> Network:
    """The recorded tokenizer, or one with random weights where it is not at hand."""
    try:
        recorded = fixture.companion(fixture.cfg["vq"])
    except UnusableError:
        sizes = {"codebook_size": codes, "z_channels": 32, "ch": 32, "num_res_blocks": 1}
        return stand_in(LlamaGenVQ, sizes)
    return Network(_arguments(recorded.cfg), recorded.under("sd/", "sd.tokenizer/"))


def _order(fixture: Fixture, side: int) -> Comparison:
    found = Comparison("order of positions")
    for key, cells in fixture.under("aux/").items():
        if key.startswith("halton_mask"):
            own = side if key == "halton_mask" else int(key.removeprefix("halton_mask_"))
            order = halton_order(own, own)
            found.ids("positions", order, cells[:, 0] * own + cells[:, 1], key)
    return found


def _one_pass(generator: Generator, fixture: Fixture) -> Comparison:
    found, ids = Comparison("one pass"), fixture["in/ids"]
    classes = np.where(
        fixture["in/drop"], generator.model.info.condition.unconditional_id, fixture["in/y"]
    )
    fed = {"tokens": ids.reshape(len(ids), -1), "condition": classes}
    found.floats("logits", run(generator, "transformer", fed)["logits"], fixture["out/logits"])
    return found


def _rollout(
    fixture: Fixture, name: str, said: Mapping[str, Any], side: int, codes: int
) -> Rollout:
    recorded = fixture.under(f"in/{name}/", f"out/{name}/")
    pred = recorded["pred_codes"].reshape(said["step"], -1, side**2).astype(np.int32)
    masks = recorded["masks"].reshape(pred.shape) != 0
    noise = gumbel(recorded, "gumbel").reshape(*pred.shape, -1)
    classes = np.array(said["labels"], np.int32)
    start = np.full((1, *pred.shape[1:]), codes, np.int32)
    if said["kind"] == "confidence":
        # What is known is what was drawn last, at every step.
        after = np.where(masks, codes, pred)
        return Rollout(
            _by_confidence(said),
            classes,
            np.concatenate([start, after]),
            pred,
            np.ones(pred.shape, bool),
            {"sample_tokens": _confidence_sampler(noise, recorded["gumbel_conf"])},
            {},
        )
    tokens = [start[0]]
    for own, turn in zip(pred, masks, strict=True):
        tokens.append(np.where(turn, own, tokens[-1]))
    after = np.stack(tokens)
    return Rollout(
        _in_order(said),
        classes,
        after,
        after[1:],
        masks,
        {"sample_top_k_top_p": _order_sampler(noise)},
        _rolled(recorded, side, len(classes)),
    )


def _by_confidence(said: Mapping[str, Any]) -> dict[str, Any]:
    curve = said["sched_mode"]
    return {
        "steps": said["step"],
        "order": "confidence",
        "schedule": _CURVES.get(curve, curve),
        "guidance": (0.0, said["w"]),
        "sampling_temperature": said["sm_temp"],
        "masking_temperature": (said["r_temp"], 0.0),
    }


def _in_order(said: Mapping[str, Any]) -> dict[str, Any]:
    steps = said["step"]
    powers = np.linspace(said["sm_temp_min"], said["sm_temp_max"], steps) ** said["temp_pow"]
    powers[: said.get("temp_warmup", 0)] *= 0.5
    return {
        "steps": steps,
        "order": "halton-rolled" if said["randomize"] else "halton",
        "schedule": "arccos",
        "guidance": said["w"],
        "sampling_temperature": ",".join(map(repr, powers.tolist())),
        "top_k": max(0, said["top_k"]),
    }


def _rolled(recorded: Mapping[str, Array], side: int, images: int) -> dict[str, Array]:
    """The turn of every position, begun where recorded."""
    rolls = recorded.get("roll")
    rolls = np.zeros(images, int) if rolls is None else rolls
    ranks = np.empty((images, side**2), np.int32)
    for image, roll in enumerate(rolls):
        ranks[image, np.roll(halton_order(side, side), roll)] = np.arange(side**2)
    return {"ranks": ranks}


def _confidence_sampler(noise: Array, confidence_noise: Array) -> Sampler:
    def sample(step: int, of: Arguments) -> None:
        parameters = of["parameters"]
        scores = log_softmax(guided(of, 3) / parameters[:, 2, None, None])
        of["sampled"][:] = (scores + noise[step]).argmax(-1)
        own = np.take_along_axis(scores, of["sampled"][..., None].astype(int), -1)[..., 0]
        noisy = own + parameters[:, 1, None] * confidence_noise[step]
        of["confidence"][:] = np.where(of["tokens"] == of["mask_token"], noisy, np.inf)

    return sample


def _order_sampler(noise: Array) -> Sampler:
    def sample(step: int, of: Arguments) -> None:
        scores = log_softmax(guided(of, 0) / of["parameters"][:, 3, None, None])
        kept = noise.shape[-1]
        if kept < scores.shape[-1]:  # the noise is of the likeliest codes, in their order
            order = np.argsort(-scores, axis=-1, kind="stable")[..., :kept]
            best = (np.take_along_axis(scores, order, -1) + noise[step]).argmax(-1)
            drawn = np.take_along_axis(order, best[..., None], -1)[..., 0]
        else:
            drawn = (scores + noise[step]).argmax(-1)
        of["tokens"][:] = np.where(of["given"] < 0, drawn, of["given"])

    return sample


def _image(
    found: Comparison, generator: Generator, fixture: Fixture, name: str, rollout: Rollout
) -> None:
    """The image of the recorded tokens, where the recorded tokenizer is at hand."""
    recorded = fixture.under(f"out/{name}/").get("image_f16")
    try:
        fixture.companion(fixture.cfg["vq"])
    except UnusableError:
        return
    if recorded is not None:
        image = run(generator, "decoder", {"tokens": rollout.tokens[-1]})["image"]
        found.floats("image", 2 * image - 1, recorded)


# --- the tokenizer


def _arguments(cfg: Mapping[str, Any]) -> dict[str, Any]:
    names = ("ch", "codebook_size", "codebook_embed_dim", "z_channels")
    return {name: cfg[name] for name in names}


def _tokenizer(fixture: Fixture, folder: Path) -> Iterator[Comparison]:
    network = Network(_arguments(fixture.cfg), fixture.under("sd/", "sd.tokenizer/"))
    state = {key: torch.from_numpy(value) for key, value in network.state.items()}
    model = presets.load(LlamaGenVQ, state, folder / "vq.pt", network.arguments)
    codes = fixture["in/code"]
    found = Comparison(f"code → {codes.shape[1]}×{codes.shape[2]} tokens (PyTorch)")
    with torch.no_grad():
        image = 2 * model.decode(torch.from_numpy(codes)).numpy() - 1
    found.floats("image", image, fixture["out/raw_f32"])
    yield found
    found = Comparison("image → ids (PyTorch)")
    with torch.no_grad():
        ids = model.encode((torch.from_numpy(fixture["in/image_pm1"]) + 1) / 2).numpy()
    found.ids("ids", ids, fixture["out/enc_idx"].reshape(ids.shape))
    yield found
    yield _engine_image(network, codes, folder)


def _engine_image(network: Network, codes: Array, folder: Path) -> Comparison:
    """A square part of the grid, by the decoder of a bundle, beside the PyTorch class."""
    side = side_of(min(codes.shape[1:]) ** 2)
    sizes = {"input_size": side, "hidden_dim": 32, "depth": 1, "heads": 1, "mlp_dim": 64}
    sizes |= {"codebook_size": network.arguments["codebook_size"], "nclass": 2}
    transformer = stand_in(HaltonTransformer, sizes)
    files = {
        "transformer": transformer.save(folder / "halton.pth"),
        "tokenizer": network.save(folder / "vq.pt"),
    }
    config = {"transformer": transformer.arguments, "tokenizer": network.arguments}
    found, part = Comparison(f"code → {side}×{side} tokens"), codes[:, :side, :side]
    state = {key: torch.from_numpy(value) for key, value in network.state.items()}
    model = presets.load(LlamaGenVQ, state, folder / "vq.pt", network.arguments)
    with torch.no_grad():
        expected = model.decode(torch.from_numpy(part.copy())).numpy().clip(0, 1)
    with exported("halton", files, config, folder / "square") as generator:
        fed = {"tokens": part.reshape(len(part), -1)}
        found.floats("image", run(generator, "decoder", fed)["image"], expected)
    return found
