"""VAR: rollouts, rollouts under AdaGen's policy, and the multi-scale VQ autoencoder.

Every rollout is replayed twice: with tokens and parameters forced to the recorded ones, so that
each scale is judged by itself, and free. With conditional logits c, unconditional u, guidance
G at scale s of S, sampling temperature T and recorded Gumbel noise g:

    l     = (1 + t)·c − t·u,  t = G·s/(S − 1)
    top-k   drops l below the k-th largest; top-p then, in ascending order, what a cumulative
            probability of 1 − p covers, but never the largest; 0 switches either off
    token = argmax(l / T + g) over what is kept
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tests.officials.comparison import Comparison
from tests.officials.fixture import Fixture, Network, UnusableError, gumbel
from tests.officials.replay import Arguments, Replay, exported, replay, run

from fewstep.export.models.var import VAR
from fewstep.export.models.var_vae import VQVAE
from fewstep.runtime.generator import Generator
from fewstep.runtime.kernels.sample_top_k_top_p import kept
from fewstep.runtime.kernels.sampling_parameters import sampling_parameters
from fewstep.runtime.program import Launch, Program
from fewstep.runtime.settings import settings_of

Array = npt.NDArray[Any]

_ACTIONS = ("cfg", "top_k", "top_p", "manual_samp_temp")
"""AdaGen's names, in the order in which its published policies have them and the decode reads."""


def knows(cfg: Mapping[str, Any]) -> bool:
    """Whether a recording is of VAR."""
    if "recipe" in cfg:
        return bool(cfg["recipe"].get("model_family") == "var")
    vae = cfg.get("vqvae")
    return bool({"var", "var_from"} & cfg.keys()) or (
        isinstance(vae, dict) and "v_patch_nums" in vae
    )


def replays(fixture: Fixture, folder: Path) -> Iterator[Comparison]:
    """Replay every recorded run; ``folder`` is for checkpoints and bundles."""
    if "recipe" in fixture.cfg:
        yield from _policy(fixture, folder)
    elif {"var", "var_from"} & fixture.cfg.keys():
        yield from _transformer(fixture, folder)
    else:
        yield from _tokenizer(fixture, folder)


# --- rollouts


@dataclass(frozen=True)
class _Rollout:
    """One recorded generation of S scales and B images.

    ``found``: its arrays by name, inputs and outputs. ``parameters [S, B, 4]`` float32: guidance t
    of the scale, top-k and top-p with 0 for none, sampling temperature.
    """

    found: Mapping[str, Array]
    sides: tuple[int, ...]
    parameters: Array

    @property
    def labels(self) -> Array:
        return self.found["labels"].reshape(-1).astype(np.int32)

    def of(self, name: str, scale: int) -> Array:
        """An array of one scale."""
        return self.found[f"{name}/{scale}"]

    def decisions(self) -> dict[str, Any]:
        """By the program's buffers; tokens a map a scale."""
        tokens = [
            self.of("idx", scale).reshape(-1, side, side).astype(np.int32)
            for scale, side in enumerate(self.sides)
        ]
        return {"tokens": tokens, "parameters": self.parameters}

    def sample(self, scale: int, of: Arguments) -> None:
        """What ``sample_top_k_top_p`` writes with the recorded noise.

        ``guided`` logits and what is ``kept`` of them, both ``[B, n, V]``, are left beside.
        """
        conditional, parameters = of["conditional"].astype(np.float64), of["parameters"]
        guidance, temperature = parameters[:, 0, None, None], parameters[:, 3, None, None]
        guided = conditional + guidance * (conditional - of["unconditional"])
        guided = guided.astype(np.float32)
        left = np.stack(
            [
                [kept(row, float(top_k), float(top_p)) for row in rows]
                for rows, (top_k, top_p) in zip(guided, parameters[:, 1:3], strict=True)
            ]
        )
        noise = gumbel(self.found, "gumbel", f"/{scale}").reshape(guided.shape)
        noisy = np.where(left, guided / temperature + noise, -np.inf)
        of["tokens"][:] = noisy.argmax(-1)
        of["guided"], of["kept"] = guided, left


def _officially_kept(logits: Array, parameters: Array) -> Array:
    """The official filters on ``logits [B, n, V]``, top-k and top-p of ``parameters [B, 4]``."""
    left = np.ones(logits.shape, np.bool_)
    for image, (top_k, top_p) in enumerate(parameters[:, 1:3]):
        rows, mask = logits[image].astype(np.float64), left[image]
        if 1 <= top_k < rows.shape[-1]:
            mask &= rows >= np.sort(rows, -1)[:, -int(top_k), None]
        if 0 < top_p < 1:
            rows = np.where(mask, rows, -np.inf)
            order = rows.argsort(-1, kind="stable")
            weights = np.exp(rows - rows.max(-1, keepdims=True))
            ascending = np.take_along_axis(weights, order, -1).cumsum(-1)
            dropped = ascending / ascending[:, -1:] <= 1 - np.float64(top_p)
            dropped[:, -1] = False
            np.put_along_axis(mask, order, ~dropped & np.take_along_axis(mask, order, -1), -1)
    return left


def _transformer(fixture: Fixture, folder: Path) -> Iterator[Comparison]:
    """Rollouts with fixed guidance, top-k and top-p."""
    transformer, tokenizer = _networks(fixture)
    files = {
        "transformer": transformer.save(folder / "var.pth"),
        "tokenizer": tokenizer.save(folder / "vae.pth"),
    }
    config = {"transformer": transformer.arguments, "tokenizer": tokenizer.arguments}
    codes, sides = tokenizer.arguments["vocab_size"], transformer.arguments["patch_nums"]
    with exported("var", files, config, folder / "bundle") as generator:
        for name in fixture.runs("idx/0"):
            said = fixture.cfg.get("runs", {}).get(name, fixture.cfg)
            found = fixture.under("in/", "out/", f"in/{name}/", f"out/{name}/")
            if "labels" not in found:
                found["labels"] = np.array(said["labels"])
            temperature = said.get("temperature", 1.0)
            settings = {
                "guidance": said["cfg"],
                "top_k": said.get("top_k") or codes,
                "top_p": said.get("top_p") or 1.0,
                "sampling_temperature": temperature,
            }
            ramp = said["cfg"] * np.arange(len(sides)) / max(1, len(sides) - 1)
            parameters = np.empty((len(sides), len(found["labels"]), 4), np.float32)
            parameters[...] = (0, settings["top_k"], settings["top_p"], temperature)
            parameters[..., 0] = ramp[:, None]
            rollout = _Rollout(found, tuple(sides), parameters)
            yield _compared(generator, transformer, rollout, settings, name)


def _networks(fixture: Fixture) -> tuple[Network, Network]:
    """Transformer and tokenizer, which has the transformer's scales."""
    transformer, beside = fixture.network("var", main=True), fixture
    companion = fixture.cfg.get("var_from")
    if companion is not None and not ({"vqvae", "vae"} & fixture.cfg.keys()):
        beside = fixture.companion(companion)
    tokenizer = beside.network("vqvae", "vae")
    state = dict(tokenizer.state)
    if companion is not None:  # what that file changed of its own companion's
        state |= fixture.companion(companion).under("sd.vqvae/", "sd.vae/")
        state |= fixture.under("sd.vqvae/", "sd.vae/")
    scales = transformer.arguments["patch_nums"]
    hits = state.get("quantize.ema_vocab_hit_SV")
    if hits is not None and len(hits) != len(scales):  # counts of training, a row a scale
        state["quantize.ema_vocab_hit_SV"] = np.zeros((len(scales), hits.shape[1]), hits.dtype)
    return transformer, Network({**tokenizer.arguments, "v_patch_nums": scales}, state)


def _compared(
    generator: Generator,
    transformer: Network,
    rollout: _Rollout,
    settings: Mapping[str, Any],
    name: str,
) -> Comparison:
    """Replay one rollout, forced and free."""
    found = Comparison(f"{name}, {len(rollout.sides)} scales")
    program, inputs = _program(generator, rollout.labels, settings)
    samplers = {"sample_top_k_top_p": rollout.sample}
    forced = replay(generator, program, inputs, samplers, rollout.decisions())
    for scale in range(len(rollout.sides)):
        _compare_transformer(found, rollout, forced, scale)
        _compare_sampling(found, rollout, forced, scale)
        _compare_next_scale(found, transformer, rollout, forced, scale)
    _compare_image(found, rollout, forced)
    if steering := forced.launches["sampling_parameters"]:
        actions = np.stack([each["action"] for each in steering])
        found.floats("actions", actions, rollout.found["actions"])
        parameters = np.stack([each["parameters"] for each in steering])
        found.floats("parameters", parameters, rollout.parameters, relative=True)
    free = replay(generator, program, inputs, samplers)
    for scale, sampling in enumerate(free.launches["sample_top_k_top_p"]):
        recorded = rollout.of("idx", scale)
        found.ids("ids of a free run", sampling["tokens"], recorded, f"scale {scale}")
    return found


def _program(
    generator: Generator, labels: Array, given: Mapping[str, Any]
) -> tuple[Program, dict[str, Any]]:
    """The bundle's program for some images, and its inputs."""
    family, model, batch = generator.family, generator.model, len(labels)
    settings = settings_of(model.info.defaults, given)
    request = family.request(model, labels, np.arange(batch, dtype=np.uint64), settings)
    program = family.program(model, family.key(model, request, batch, constants=False))
    return program, dict(family.inputs(model, request, slice(0, batch)))


def _compare_transformer(found: Comparison, rollout: _Rollout, forced: Replay, scale: int) -> None:
    hidden = forced.runs["trunk"][scale].outputs["hidden"]
    if f"x/{scale}" in rollout.found:  # of both halves; only the conditional one without guidance
        recorded = rollout.of("x", scale)[: len(hidden)]
        found.floats("hidden", hidden, recorded, relative=True)
    if f"feat/{scale}" in rollout.found:
        features = forced.runs["features"][scale].outputs["features"]
        found.floats("features", features, rollout.of("feat", scale), relative=True)
    guided = forced.launches["sample_top_k_top_p"][scale]["guided"]
    found.floats("logits", guided, rollout.of("logits_cfg", scale))


def _compare_sampling(found: Comparison, rollout: _Rollout, forced: Replay, scale: int) -> None:
    sampling, at = forced.launches["sample_top_k_top_p"][scale], f"scale {scale}"
    parameters = rollout.parameters[scale]
    recorded = rollout.of("logits_cfg", scale)
    found.ids("kept", sampling["kept"], _officially_kept(recorded, parameters), at)
    found.ids("kept", sampling["kept"].sum(-1), rollout.of("kept", scale), at)
    found.ids("ids", sampling["tokens"], rollout.of("idx", scale), at)


def _compare_next_scale(
    found: Comparison, transformer: Network, rollout: _Rollout, forced: Replay, scale: int
) -> None:
    out = forced.runs["next_scale"][scale].outputs
    found.floats("f_hat", out["next_f_hat"], rollout.of("f_hat", scale))
    if scale + 1 < len(rollout.sides) and f"next_in/{scale}" in rollout.found:
        expected = _embedded(transformer, rollout.of("next_in", scale), rollout.sides, scale + 1)
        found.floats("next_in", out["embeds"], expected)


def _embedded(transformer: Network, words: Array, sides: tuple[int, ...], scale: int) -> Array:
    """What the transformer makes of a scale's input ``[B, Cvae, s, s]``: ``[B, s, s, C]``."""
    state, side = transformer.state, sides[scale]
    first = sum(each * each for each in sides[:scale])
    position = state["pos_1LC"][0, first : first + side * side] + state["lvl_embed.weight"][scale]
    word = words.transpose(0, 2, 3, 1) @ state["word_embed.weight"].T + state["word_embed.bias"]
    embedded: Array = word + position.reshape(side, side, -1)
    return embedded


def _compare_image(found: Comparison, rollout: _Rollout, forced: Replay) -> None:
    image = forced.runs["decoder"][-1].outputs["image"]
    for name in ("image01_f16", "image01"):
        if name in rollout.found:
            found.floats("image", image, rollout.found[name])


# --- under a policy


def _policy(fixture: Fixture, folder: Path) -> Iterator[Comparison]:
    """AdaGen's policy on recorded features, and a whole rollout that it steers."""
    recipe, policy = fixture.cfg["recipe"], fixture.network("policy", main=True)
    order = tuple(recipe["action_keys"])
    if order != _ACTIONS or recipe.get("action_smooth", 0) != 0:
        raise UnusableError(
            f"has the actions {', '.join(order)}, smoothed by {recipe.get('action_smooth')}; no "
            f"form reads other policies for VAR than {', '.join(_ACTIONS)}, not smoothed"
        )
    transformer, tokenizer = _networks(fixture)
    networks = {"transformer": transformer, "tokenizer": tokenizer, "policy": policy}
    files = {name: each.save(folder / f"{name}.pth") for name, each in networks.items()}
    config: dict[str, Any] = {name: each.arguments for name, each in networks.items()}
    config["policy_schedule"] = {
        "guidance": recipe["cfg_init"],
        "top_k": recipe["topk"],
        "top_p": recipe["topp"],
        "sampling_temperature": recipe["manual_samp_temp_init"],
    }
    with exported("var", files, config, folder / "bundle") as generator:
        if "in/feat" in fixture:
            yield _actions(generator, fixture)
        if fixture.runs("idx/0"):
            yield _steered(generator, transformer, fixture)


def _actions(generator: Generator, fixture: Fixture) -> Comparison:
    """Raw actions on recorded features, and what the program's kernel makes of them."""
    found, features = Comparison("actions"), fixture["in/feat"]
    program, _ = _program(generator, np.zeros(1, np.int32), {"schedule": "policy"})
    launches = [
        op for op in program.ops if isinstance(op, Launch) and op.kernel == "sampling_parameters"
    ]
    for at, step in enumerate(fixture["in/timesteps"]):
        fed = {"features": features, "step": np.full(len(features), step)}
        action = run(generator, "policy", fed)["action"]
        found.floats("actions", action, fixture["out/actions_from_in_feat"][at])
        parameters = np.empty_like(action)
        offsets = {k: v for k, v in launches[at].arguments.items() if isinstance(v, float)}
        unscaled = {**offsets, "guidance_scale": 1.0}
        error = np.zeros(1, np.int32)
        sampling_parameters(action=action, **unscaled, parameters=parameters, error=error)
        recorded = [fixture[f"out/act_from_in_feat/{name}"][at] for name in _ACTIONS]
        found.floats("parameters", parameters, np.stack(recorded, -1), relative=True)
    return found


def _steered(generator: Generator, transformer: Network, fixture: Fixture) -> Comparison:
    sides = tuple(transformer.arguments["patch_nums"])
    found = fixture.under("in/", "out/")
    found.setdefault("labels", np.array(fixture.cfg["labels"]))
    parameters = np.stack([found[f"act/{name}"] for name in _ACTIONS], -1)  # [S, B, 4]
    parameters[..., 0] *= np.arange(len(sides), dtype=np.float32)[:, None] / max(1, len(sides) - 1)
    rollout = _Rollout(found, sides, parameters)
    return _compared(generator, transformer, rollout, {"schedule": "policy"}, "rollout")


# --- the tokenizer


def _tokenizer(fixture: Fixture, folder: Path) -> Iterator[Comparison]:
    """f̂ → image by the bundle's decoder; image → ids of every scale by the class."""
    network = fixture.network("vqvae", "vae", main=True)
    model = VQVAE(**network.arguments).eval()
    model.load_state_dict({k: torch.from_numpy(v) for k, v in network.state.items()})
    if "in/f_hat" in fixture:
        yield _decoded(network, fixture, folder)
    if "in/image_pm1" in fixture:
        found = Comparison("image → ids (PyTorch)")
        with torch.no_grad():
            maps = model.img_to_idxBl(torch.from_numpy(fixture["in/image_pm1"]))
        for scale, ids in enumerate(maps):
            found.ids("ids", ids.numpy(), fixture[f"out/img_to_idx/{scale}"], f"scale {scale}")
        yield found


def _decoded(network: Network, fixture: Fixture, folder: Path) -> Comparison:
    found, f_hat = Comparison("f_hat → image"), fixture["in/f_hat"]
    transformer = _any_transformer(network.arguments)
    files = {
        "transformer": transformer.save(folder / "var.pth"),
        "tokenizer": network.save(folder / "vae.pth"),
    }
    config = {"transformer": transformer.arguments, "tokenizer": network.arguments}
    with exported("var", files, config, folder / "bundle") as generator:
        image = run(generator, "decoder", {"f_hat": f_hat})["image"]
    found.floats("image", 2 * image - 1, fixture["out/fhat_to_img"])
    return found


def _any_transformer(tokenizer: Mapping[str, Any]) -> Network:
    """A small one with random weights, for the codes and scales of a tokenizer."""
    sizes = {"num_classes": 2, "depth": 1, "embed_dim": 32, "num_heads": 1}
    arguments = {**sizes, "patch_nums": tokenizer["v_patch_nums"]}
    model, random = VAR(VQVAE(**tokenizer), **arguments), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.05, generator=random)
    return Network(arguments, {key: each.numpy() for key, each in model.state_dict().items()})
