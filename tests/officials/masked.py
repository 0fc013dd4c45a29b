"""AdaNAT and AdaGen's MaskGIT: the U-ViT, its policy, and whole rollouts.

Where a recording has one network only, the others of its bundle are stand-ins of the same sizes,
with random weights. A rollout is replayed twice: with every decision forced to the recorded one,
so that each step is judged by itself, and free. With conditional logits c, unconditional u,
guidance scale s, sampling temperature τ, masking temperature μ and recorded Gumbel noise g:

    l          = c + s·(c − u)
    token      = argmax(log softmax(l / τ) + g_tokens)
    confidence = log_softmax(l)[token] + μ·g_confidence, +∞ where known
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tests.officials.comparison import Comparison
from tests.officials.fixture import Fixture, Network, gumbel, save
from tests.officials.replay import Arguments, Replay, exported, replay, run
from tests.officials.stand_ins import any_tokenizer, any_transformer, side_of

from fewstep.export.policy_file import ACTIONS
from fewstep.runtime.families.masked.model import MaskedPolicyInfo
from fewstep.runtime.generator import Generator
from fewstep.runtime.kernels.policy_parameters import policy_parameters
from fewstep.runtime.kernels.smooth_actions import smooth_actions
from fewstep.runtime.settings import settings_of

Array = npt.NDArray[Any]

_HIDDEN = 16  # of policies that stand in


def knows(cfg: Mapping[str, Any]) -> bool:
    """Whether a recording is of AdaNAT, or of AdaGen's MaskGIT."""
    if "vqvae" in cfg:
        return False
    if "recipe" in cfg:
        return bool(cfg["recipe"].get("model_family") == "maskgit")
    alone = {"img_size", "codebook_size"} <= cfg.keys()
    return alone or bool({"uvit", "uvit_from"} & cfg.keys()) or {"policy", "upd_set"} <= cfg.keys()


def replays(fixture: Fixture, folder: Path) -> Iterator[Comparison]:
    """Replay every recorded run; ``folder`` is for checkpoints and bundles."""
    if "in/feat" in fixture:
        yield from _policy(fixture, folder)
    if "in/masked_ids" in fixture or fixture.runs("masked_ids_in"):
        yield from _transformer(fixture, folder)


# --- the transformer, alone and with its policy


@dataclass(frozen=True)
class _Rollout:
    """One recorded generation of T steps, B images, N tokens.

    ``tokens_in``, ``sampled`` and ``tokens_out`` are ids ``[T, B, N]``; ``actions [T, B, 4]``, in
    the order in which they were recorded; ``parameters [T, B, 4]`` in the order of ``ACTIONS``.
    """

    tokens_in: Array
    sampled: Array
    tokens_out: Array
    actions: Array
    parameters: Array
    token_noise: Array
    confidence_noise: Array

    @classmethod
    def of(cls, fixture: Fixture, name: str) -> _Rollout:
        room = f"out/{name}/" if name else "out/"
        found = fixture.under("in/", f"in/{name}/", "out/", room)
        tokens_in = found["masked_ids_in"].astype(np.int32)
        return cls(
            tokens_in,
            found["sampled_ids"].astype(np.int32),
            found["masked_ids_out"].astype(np.int32),
            found["actions"],
            np.stack([found[f"act/{each}"] for each in ACTIONS], axis=-1),
            gumbel(found, "gumbel_tokens").reshape(*tokens_in.shape, -1),
            gumbel(found, "gumbel_conf"),
        )

    @property
    def decisions(self) -> dict[str, Array]:
        """By the program's buffers."""
        tokens = np.concatenate([self.tokens_in, self.tokens_out[-1:]])
        return {"tokens": tokens, "sampled": self.sampled, "parameters": self.parameters}

    def sample(self, step: int, of: Arguments) -> None:
        """What ``sample_tokens`` writes with the recorded noise; ``guided`` is kept beside."""
        conditional, parameters = of["conditional"].astype(np.float64), of["parameters"]
        guidance, temperature = parameters[:, 3, None, None], parameters[:, 2, None, None]
        guided = conditional + guidance * (conditional - of["unconditional"])
        noisy = _log_softmax(guided / temperature) + self.token_noise[step]
        masked = of["tokens"] == of["mask_token"]
        of["sampled"][:] = np.where(masked, noisy.argmax(-1), of["tokens"])
        chosen = np.where(masked, of["sampled"], 0)[..., None]
        log_probability = np.take_along_axis(_log_softmax(guided), chosen, -1)[..., 0]
        confidence = log_probability + parameters[:, 1, None] * self.confidence_noise[step]
        of["confidence"][:] = np.where(masked, confidence, np.inf)
        of["guided"] = guided


def _log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(-1, keepdims=True)
    found: Array = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return found


def _transformer(fixture: Fixture, folder: Path) -> Iterator[Comparison]:
    """A U-ViT: one pass, and whole rollouts with a recorded policy or recorded actions."""
    network = fixture.network("uvit", main=True)
    side, width = network.arguments["img_size"], network.arguments["embed_dim"]
    tokenizer = any_tokenizer(side, network.arguments["codebook_size"])
    given: dict[str, Any] = {
        "transformer": network.save(folder / "nnet_ema.pth"),
        "tokenizer": tokenizer.save(folder / "vqgan.ckpt"),
    }
    config = {"transformer": network.arguments, "tokenizer": tokenizer.arguments}
    if "in/empty_context" in fixture:
        given["unconditional_text"] = folder / "empty.npy"
        np.save(given["unconditional_text"], fixture["in/empty_context"].astype(np.float32))
    elif "empty_ctx" in fixture.cfg:
        config["unconditional"] = fixture.cfg["empty_ctx"]
    runs = fixture.runs("masked_ids_in")
    if "policy" not in fixture.cfg:
        # A policy is what gives the bundle's transformer its features.
        config["policy"] = {"in_channels": width, "hidden_size": _HIDDEN, "grid_size": side}
        given["untrained_policy"] = True
        with exported("adanat", given, config, folder / "bundle") as generator:
            if "in/masked_ids" in fixture:
                yield _one_pass(generator, fixture)
            for name in runs:
                yield _rollout(generator, fixture, name, with_policy=False)
        return
    policy = fixture.network("policy", main=True)
    config["policy"] = _of_grid(policy.arguments, side)
    if "recipe" in fixture.cfg:
        config["policy_schedule"] = _recipe(fixture.cfg["recipe"])
        given["policy"] = _in_their_order(policy, fixture.cfg["recipe"]).save(folder / "policy.pth")
        with exported("adagen", given, config, folder / "bundle") as generator:
            for name in runs:
                yield _rollout(generator, fixture, name, with_policy=True)
        return
    for residual in sorted({_residual(fixture, name) for name in runs}):
        given["policy"] = _save_policy(fixture, policy, folder, residual=residual)
        with exported("adanat", given, config, folder / f"bundle{residual:d}") as generator:
            for name in runs:
                if _residual(fixture, name) == residual:
                    yield _rollout(generator, fixture, name, with_policy=True)


_RECIPE = {
    "gen_steps": "steps",
    "action_smooth": "smoothing",
    "cfg_init": "guidance",
    "temp_init": "masking_temperature",
    "manual_samp_temp_init": "sampling_temperature",
}


def _recipe(said: Mapping[str, Any]) -> dict[str, Any]:
    """AdaGen's recipe as ``policy_schedule`` of a configuration."""
    return {name: said[key] for key, name in _RECIPE.items() if key in said}


def _in_their_order(policy: Network, said: Mapping[str, Any]) -> Network:
    """With its actions in the order of ``ACTIONS``, whatever that of the recipe is."""
    rows = [list(said["action_keys"]).index(each) for each in ACTIONS]
    last = {f"linear3.{each}": policy.state[f"linear3.{each}"][rows] for each in ("weight", "bias")}
    return Network(policy.arguments, {**policy.state, **last})


def _save_policy(fixture: Fixture, policy: Network, folder: Path, *, residual: bool) -> Path:
    """As AdaNAT's training leaves it: the actor in ``model``, the command line in ``args``."""
    said = {key: fixture.cfg[key] for key in ("gen_steps", "upd_set") if key in fixture.cfg}
    actor = {f"policy_old.actor.{key}": value for key, value in policy.state.items()}
    args = argparse.Namespace(heu=int(residual), **said)
    return save({"model": actor, "args": args}, folder / "ckpt_policy.pth")


def _of_grid(arguments: Mapping[str, Any], side: int) -> dict[str, Any]:
    """The official class knows one grid, and has no argument for it."""
    return {"grid_size": side, **arguments}


def _condition(generator: Generator, fixture: Fixture) -> tuple[str, Array]:
    """The name of the transformer's input, and the recorded condition of every image."""
    context = fixture["in/context"] if "in/context" in fixture else fixture["in/labels"]
    if context.dtype.kind == "f":
        return "text", context
    return generator.model.info.condition_input, context.reshape(-1).astype(np.int32)


def _one_pass(generator: Generator, fixture: Fixture) -> Comparison:
    found = Comparison("one pass")
    name, condition = _condition(generator, fixture)
    out = run(generator, "transformer", {"tokens": fixture["in/masked_ids"], name: condition})
    found.floats("logits", out["logits"], fixture["out/logits"])
    if "out/feat" in fixture:
        found.floats("features", out["features"], fixture["out/feat"])
    return found


def _rollout(generator: Generator, fixture: Fixture, name: str, *, with_policy: bool) -> Comparison:
    rollout, residual = _Rollout.of(fixture, name), _residual(fixture, name)
    steps = len(rollout.tokens_in)
    found = Comparison(f"{name or 'rollout'}, {steps} steps")
    program, inputs = _program(generator, fixture, rollout, with_policy=with_policy)
    samplers = {"sample_tokens": rollout.sample}
    forced = replay(generator, program, inputs, samplers, rollout.decisions)
    if with_policy:
        _compare_policy(found, fixture, rollout, forced)
    else:
        parameters = _parameters(_in_order(fixture, rollout.actions), residual=residual)
        found.floats("parameters", parameters, rollout.parameters, relative=True)
    _compare_ends(found, generator, fixture, name, forced)
    samplings, remasks = forced.launches["sample_tokens"], forced.launches["remask"]
    for step, (sampling, remask) in enumerate(zip(samplings, remasks, strict=True)):
        found.ids("ids", sampling["sampled"], rollout.sampled[step], f"step {step}")
        again = remask["next_tokens"][: len(rollout.sampled[step])]
        found.ids("masks", again, rollout.tokens_out[step], f"step {step}")
    free = replay(generator, program, inputs, samplers)
    for step, sampling in enumerate(free.launches["sample_tokens"]):
        found.ids("ids of a free run", sampling["sampled"], rollout.sampled[step], f"step {step}")
    return found


def _program(
    generator: Generator, fixture: Fixture, rollout: _Rollout, *, with_policy: bool
) -> tuple[Any, dict[str, Any]]:
    """The bundle's program for a rollout, and its inputs."""
    family, model = generator.family, generator.model
    steps, batch, _ = rollout.tokens_in.shape
    chosen: dict[str, Any] = {"schedule": "policy-exported"} if with_policy else {"guidance": 1}
    settings = settings_of(model.info.defaults, {"steps": steps, **chosen})
    condition, seeds = _condition(generator, fixture)[1], np.arange(batch, dtype=np.uint64)
    request = family.request(model, condition, seeds, settings)
    program = family.program(model, family.key(model, request, batch, constants=False))
    inputs = dict(family.inputs(model, request, slice(0, batch)))
    if not with_policy:
        inputs["parameters"] = rollout.parameters
    return program, inputs


def _compare_policy(found: Comparison, fixture: Fixture, rollout: _Rollout, forced: Replay) -> None:
    launches = forced.launches["policy_parameters"]
    actions = np.stack([each.outputs["action"] for each in forced.runs["policy"]])
    found.floats("actions", actions, _in_order(fixture, rollout.actions))
    parameters = np.stack([each["parameters"] for each in launches])
    found.floats("parameters", parameters, rollout.parameters, relative=True)


def _compare_ends(
    found: Comparison, generator: Generator, fixture: Fixture, name: str, forced: Replay
) -> None:
    """The first step's log-probabilities after guidance, and features of what the last one left."""
    out = fixture.under("out/", f"out/{name}/")
    first = forced.launches["sample_tokens"][0]
    if "step0_logits_after_cfg" in out:
        guided = _log_softmax(first["guided"])
        found.floats("log-probabilities", guided, out["step0_logits_after_cfg"])
    if "final_feat_mean" in out:
        condition = dict([_condition(generator, fixture)])
        left = run(generator, "transformer", {"tokens": out["masked_ids_out"][-1], **condition})
        found.floats("features", left["features"].mean(1), out["final_feat_mean"])


def _residual(fixture: Fixture, name: str) -> bool:
    """Whether a run adds the heuristic schedule: its settings say it, or its name (``heu1``)."""
    settings = {**fixture.cfg, **fixture.cfg.get("runs", {}).get(name, {})}
    named = name.removeprefix("heu")
    return bool(settings.get("heu", int(named) if named.isdigit() else 0))


def _in_order(fixture: Fixture, actions: Array) -> Array:
    """Recorded actions in the order of ``ACTIONS``."""
    names = fixture.cfg.get("upd_set", fixture.cfg.get("recipe", {}).get("action_keys", ACTIONS))
    return actions[..., [list(names).index(each) for each in ACTIONS]]


def _parameters(actions: Array, *, residual: bool) -> Array:
    """What the runtime's kernel makes of actions ``[T, B, 4]`` in the order of ``ACTIONS``."""
    found = np.empty(actions.shape, np.float32)
    for step, action in enumerate(np.ascontiguousarray(actions, np.float32)):
        offsets = MaskedPolicyInfo(residual=residual).offsets(step, len(actions))
        error = np.zeros(1, np.int32)
        policy_parameters(action=action, **offsets, parameters=found[step], error=error)
    return found


# --- the policy alone


def _policy(fixture: Fixture, folder: Path) -> Iterator[Comparison]:
    network, features = fixture.network("policy", main=True), fixture["in/feat"]
    side = side_of(features.shape[1])
    transformer = any_transformer(side, codes=8, width=network.arguments["in_channels"])
    tokenizer = any_tokenizer(side, codes=8)
    policy = Network(_of_grid(network.arguments, side), network.state)
    networks = {"transformer": transformer, "tokenizer": tokenizer, "policy": policy}
    files = {name: each.save(folder / f"{name}.pth") for name, each in networks.items()}
    config = {name: each.arguments for name, each in networks.items()}
    found = Comparison("actions")
    with exported("adanat", files, config, folder / "actions") as generator:
        for at, step in enumerate(fixture["in/timesteps"]):
            fed = {"features": features, "step": np.full(len(features), step)}
            action = run(generator, "policy", fed)["action"]
            found.floats("actions", action, fixture["out/actions_from_in_feat"][at])
    yield found
    if "recipe" in fixture.cfg:
        yield _smoothed(fixture)
    for name in sorted({key.split("/")[0] for key in fixture.under("out/") if "bias_heu" in key}):
        yield _bias(fixture, name)
    if "in/actions_for_bias" in fixture and fixture.under("out/residual/"):
        yield _no_action(fixture)


def _bias(fixture: Fixture, name: str) -> Comparison:
    """Any action, with and without the residual."""
    found, residual = Comparison(name), name.endswith("1")
    actions = _in_order(fixture, fixture["in/actions_for_bias"])
    expected = np.stack([fixture[f"out/{name}/{each}"] for each in ACTIONS], -1)
    found.floats("parameters", _parameters(actions, residual=residual), expected, relative=True)
    return found


def _smoothed(fixture: Fixture) -> Comparison:
    """Parameters of a sequence of actions, with AdaGen's smoothing and schedule."""
    found, recipe = Comparison("smoothed actions"), _recipe(fixture.cfg["recipe"])
    info = MaskedPolicyInfo(residual=True, **recipe)
    actions = _in_order(fixture, fixture["out/actions_from_in_feat"])
    recorded = fixture.under("out/act_from_in_feat/")
    smoothed = np.zeros_like(actions[0])
    for step, action in enumerate(actions):
        if step:
            smooth_actions(action, smoothed.copy(), info.smoothing, smoothed)
        else:
            smoothed = action.copy()
        parameters, error = np.empty_like(action), np.zeros(1, np.int32)
        offsets = info.offsets(step, len(actions))
        policy_parameters(action=smoothed, **offsets, parameters=parameters, error=error)
        expected = np.stack([recorded[each][step] for each in ACTIONS], -1)
        found.floats("parameters", parameters, expected, relative=True)
    return found


def _no_action(fixture: Fixture) -> Comparison:
    """A policy that does nothing follows the recorded residuals, which are float32 differences."""
    found = Comparison("no action")
    raw = torch.from_numpy(np.stack([fixture[f"out/residual/{each}"] for each in ACTIONS], -1))
    softplus = torch.nn.functional.softplus(raw[:, 1:])
    expected = torch.cat([raw[:, :1].sigmoid(), softplus], -1).numpy()
    parameters = _parameters(np.zeros((len(expected), 1, 4), np.float32), residual=True)
    found.floats("parameters", parameters[:, 0], expected, relative=True)
    return found
