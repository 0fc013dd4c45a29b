"""MAR: generations, the diffusion head on its own, and the KL autoencoder.

Every generation is replayed twice: with the tokens of every iteration forced to the recorded ones,
so that each iteration is judged by itself, and free. The recorded order is the official one, of
which the last positions are decided first; within an iteration tokens were drawn in the order of
their positions. With noise ε and variance v of the head, recorded noise n and temperature τ,

    x' = a·x − b·(εu + s·(εc − εu)) + τ·exp(v·high + (1 − v)·low)·n
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tests.officials.comparison import Comparison
from tests.officials.fixture import Fixture, Network, UnusableError
from tests.officials.replay import Arguments, Replay, exported, replay, run

from fewstep.export.models.kl import AutoencoderKL
from fewstep.export.models.mar import MAR
from fewstep.runtime.families.mar.diffusion import coefficients, timesteps
from fewstep.runtime.families.mar.key import MarKey
from fewstep.runtime.families.mar.request import latents_of, tokens_of
from fewstep.runtime.generator import Generator
from fewstep.runtime.program import Program
from fewstep.runtime.settings import settings_of

Array = npt.NDArray[Any]

_SCALE = 0.2325  # of the latents that the recordings of KL-16 are divided by
_LARGE = 1e3
_STEPS = "100"  # num_sampling_steps of the official constructor


def knows(cfg: Mapping[str, Any]) -> bool:
    """Whether a recording is of MAR, or of a KL autoencoder."""
    return "mar" in cfg or {"embed_dim", "ch_mult"} <= cfg.keys()


def replays(fixture: Fixture, folder: Path) -> Iterator[Comparison]:
    """Replay every recorded run; ``folder`` is for checkpoints and bundles."""
    if "mar" in fixture.cfg:
        yield from _transformer(fixture, folder)
    else:
        yield from _tokenizer(fixture, folder)


# --- generations


@dataclass
class _Rollout:
    """One recorded generation of N iterations and B images.

    ``found``: its arrays by name, inputs and outputs. ``x``: what a replay's diffusion is at.
    """

    found: Mapping[str, Array]
    key: MarKey
    x: Array = field(default_factory=lambda: np.zeros(0))

    @property
    def order(self) -> Array:
        """Positions in the order in which they are decided, ``[L, B]``."""
        found = self.found["order"][:, ::-1].T.astype(np.int32).copy()
        for start, end in zip(self.key.known, self.key.known[1:], strict=False):
            found[start:end] = np.sort(found[start:end], axis=0)
        return found

    def of(self, name: str, iteration: int) -> Array:
        """An array of one iteration."""
        return self.found[f"{name}/{iteration}"]

    def sampled(self, iteration: int) -> Array:
        """Recorded tokens ``[B, K, C]``, of the conditional half."""
        batch, count = self.key.batch, self.key.counts[iteration]
        tokens = self.of("sampled", iteration)
        return tokens[: batch * count].reshape(batch, count, -1)

    def decisions(self) -> dict[str, Any]:
        """By the program's buffers; a row an iteration."""
        rows = [self.sampled(each) for each in range(len(self.key.counts))]
        return {"sampled": rows}

    def write_order(self, _: int, of: Arguments) -> None:
        """What ``random_order`` writes."""
        of["order"][:] = np.tile(self.order, (1, of["order"].shape[1] // self.key.batch))

    def write_noise(self, iteration: int, of: Arguments) -> None:
        """What ``start_diffusion`` writes."""
        shape = self.key.batch, self.key.counts[iteration], -1
        noise = self.of("noise_init", iteration).reshape(shape)
        self.x = noise.astype(np.float32)
        of["x"][:] = np.tile(self.x, (len(of["x"]) // self.key.batch, 1, 1))

    def step(self, number: int, of: Arguments) -> None:
        """What ``diffusion_step`` writes."""
        iteration, substep = self._place(number)
        batch, channels, denoised = self.key.batch, of["x"].shape[2], of["denoised"]
        a, b, low, high, noisy = of["coefficients"][of["counter"][0]]
        guidance, temperature = of["parameters"]
        noise = denoised[:batch, :, :channels]
        if len(denoised) > batch:
            other = denoised[batch:, :, :channels]
            noise = other + guidance * (noise - other)
        self.x = a * self.x - b * noise
        if noisy:
            part = (denoised[:batch, :, channels:] + 1) / 2
            recorded = self.of("noise_steps", iteration)[substep]
            drawn = recorded[: self.x.shape[0] * self.x.shape[1]].reshape(self.x.shape)
            deviation = np.exp(part * high + (1 - part) * low)
            self.x = self.x + temperature * deviation * drawn
        self.x = self.x.astype(np.float32)
        of["x"][:] = np.tile(self.x, (len(of["x"]) // batch, 1, 1))

    def _place(self, number: int) -> tuple[int, int]:
        """Iteration and diffusion step of the ``number``-th launch."""
        for iteration, taken in enumerate(self.key.taken):
            if number < len(taken):
                return iteration, number
            number -= len(taken)
        raise UnusableError("has fewer iterations than the program")

    def mask(self, iteration: int) -> Array:
        """What is masked before an iteration, ``[B, L]``."""
        found = np.zeros((self.key.batch, len(self.order)), np.bool_)
        found[np.arange(self.key.batch), self.order[self.key.known[iteration] :]] = True
        return found


def _transformer(fixture: Fixture, folder: Path) -> Iterator[Comparison]:
    """Generations, then the head alone and the tables of the diffusion."""
    network = fixture.network("mar", main=True)
    arguments = known_arguments(MAR, network.arguments)
    tokenizer = _any_tokenizer(arguments)
    files = {
        "transformer": network.save(folder / "mar.pth"),
        "tokenizer": tokenizer.save(folder / "kl.pth"),
    }
    config = {
        "transformer": arguments,
        "tokenizer": tokenizer.arguments,
        "latent_scale": 1.0,
        "defaults": {"iterations": 1, "diffusion_steps": "1"},
    }
    runs = fixture.cfg.get("runs", {})
    with exported("mar", files, config, folder / "bundle") as generator:
        for name in fixture.runs("tokens_bchw"):
            said = {**arguments, **fixture.cfg, **runs.get(name, {})}
            found = fixture.under("in/", "out/", f"in/{name}/", f"out/{name}/")
            yield _compared(generator, found, said, name)
        if "in/mlp_x" in fixture:
            yield _head(generator, network, fixture)
    yield from _tables(fixture)


def known_arguments(kind: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that a constructor takes."""
    taken = inspect.signature(kind).parameters
    return {name: value for name, value in arguments.items() if name in taken}


def _any_tokenizer(arguments: Mapping[str, Any]) -> Network:
    """A KL autoencoder with random weights that fits a transformer."""
    levels = round(math.log2(arguments.get("vae_stride", 16)))
    made = {
        "embed_dim": arguments.get("vae_embed_dim", 16),
        "ch": 32,
        "ch_mult": [1] * (levels + 1),
        "num_res_blocks": 1,
    }
    return _stand_in(AutoencoderKL, made)


def _stand_in(kind: Any, arguments: Mapping[str, Any]) -> Network:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        state = kind(**arguments).state_dict()
    return Network(dict(arguments), {key: value.numpy() for key, value in state.items()})


def _compared(
    generator: Generator, found: Mapping[str, Array], said: Mapping[str, Any], name: str
) -> Comparison:
    """Replay one generation, forced and free."""
    labels = found["labels"] if "labels" in found else said.get("labels")
    batch = len(found["order"])
    if labels is None:
        labels = np.full(batch, generator.model.info.condition.unconditional_id)
    linear = said.get("cfg_schedule", "linear") == "linear"
    scale = float(said.get("cfg", 1.0))
    settings = {
        "iterations": said["num_iter"],
        "diffusion_steps": str(said.get("num_sampling_steps") or _STEPS).replace(",", "+"),
        "guidance": (1.0, scale) if linear else (scale, scale),
        "temperature": said.get("temperature", 1.0),
    }
    program, inputs, key = _program(generator, np.array(labels, np.int32), settings)
    rollout = _Rollout(found, key)
    comparison = Comparison(f"{name}, {said['num_iter']} iterations")
    samplers = {
        "random_order": rollout.write_order,
        "start_diffusion": rollout.write_noise,
        "diffusion_step": rollout.step,
    }
    forced = replay(generator, program, inputs, samplers, rollout.decisions())
    for iteration in range(len(key.counts)):
        _compare_iteration(comparison, rollout, forced, iteration)
    if "cfg_iter" in found:
        guidance = np.asarray(inputs["parameters"])[:, 0]
        comparison.floats("guidance", guidance, found["cfg_iter"])
    free = replay(generator, program, inputs, samplers)
    tokens = free.launches["scatter_tokens"][-1]["target"]
    latents = latents_of(generator.model.info, tokens)
    _of_its_size(comparison, "tokens of a free run", latents, found["tokens_bchw"])
    return comparison


def _program(
    generator: Generator, labels: Array, given: Mapping[str, Any]
) -> tuple[Program, dict[str, Any], MarKey]:
    """The bundle's program for some images, its inputs, and its key."""
    family, model, batch = generator.family, generator.model, len(labels)
    settings = settings_of(model.info.defaults, given)
    request = family.request(model, labels, np.arange(batch, dtype=np.uint64), settings)
    key = family.key(model, request, batch, constants=False)
    return family.program(model, key), dict(family.inputs(model, request, slice(0, batch))), key


def _compare_iteration(
    found: Comparison, rollout: _Rollout, forced: Replay, iteration: int
) -> None:
    at, key = f"iteration {iteration}", rollout.key
    mask = rollout.mask(iteration)
    recorded = rollout.of("mask", iteration)
    found.ids("masks", np.tile(mask, (len(recorded) // len(mask), 1)), recorded, at)
    z = forced.runs["readout"][iteration].outputs["z"]
    expected = rollout.of("z", iteration)
    found.floats("z", z.reshape(-1, z.shape[-1]), expected)
    last = sum(map(len, key.taken[: iteration + 1])) - 1
    drawn = forced.launches["diffusion_step"][last]["x"][: key.batch]
    _of_its_size(found, "sampled", drawn, rollout.sampled(iteration))


def _of_its_size(found: Comparison, stage: str, own: Array, recorded: Array) -> None:
    """Compare tokens; those of a diffusion from the last timestep, where 1/√ᾱ is 2·10⁴, in units of
    the largest."""
    largest = float(np.abs(recorded).max())
    unit = np.float32(largest if largest > _LARGE else 1.0)
    found.floats(stage, own / unit, recorded / unit)


def _head(generator: Generator, network: Network, fixture: Fixture) -> Comparison:
    """The head on recorded inputs, a token at a time, and with guidance."""
    found = Comparison("head")
    state = network.state
    weight, bias = (state[f"diffloss.net.cond_embed.{each}"] for each in ("weight", "bias"))
    embedded = fixture["in/mlp_c"] @ weight.T + bias

    def head(x: Array, rows: Sequence[int]) -> Array:
        made = []
        for token, row in zip(x, rows, strict=True):
            fed = {
                "x": token[None, None],
                "timestep": fixture["in/mlp_t"][row : row + 1],
                "embedded": embedded[None, row : row + 1],
            }
            made.append(run(generator, "head", fed)["denoised"][0, 0])
        return np.stack(made)

    x = fixture["in/mlp_x"]
    found.floats("head", head(x, range(len(x))), fixture["out/mlp"])
    for name in (each for each in fixture.arrays if each.startswith("out/mlp_cfg")):
        scale, half, channels = float(name.removeprefix("out/mlp_cfg")), len(x) // 2, x.shape[1]
        both = head(np.tile(x[:half], (2, 1)), range(len(x)))
        own, other = both[:half, :channels], both[half:, :channels]
        both[:, :channels] = np.tile(other + scale * (own - other), (2, 1))
        found.floats("guided head", both, fixture[name])
    return found


def _tables(fixture: Fixture) -> Iterator[Comparison]:
    """Which timesteps are taken, and what they do."""
    found = Comparison("tables")
    for name in fixture.arrays:
        if name.startswith("aux/timestep_map_"):
            spacing = name.removeprefix("aux/timestep_map_").replace(",", "+")
            taken = np.array(timesteps(spacing))[::-1]
            found.ids("timesteps", taken, fixture[name], spacing)
        elif name.startswith("aux/") and name.endswith("/timestep_map"):
            room = name.removesuffix("timestep_map")
            spacing = room.removeprefix("aux/").rstrip("/").replace(",", "+")
            taken = np.array(timesteps(spacing))[::-1]
            found.ids("timesteps", taken, fixture[name], spacing)
            _compare_table(found, fixture.under(room), coefficients(timesteps(spacing))[::-1])
    if found.exact:
        yield found


def _compare_table(found: Comparison, said: Mapping[str, Array], own: Array) -> None:
    alphas, betas = said["alphas_cumprod"], said["betas"]
    first, second = said["posterior_mean_coef1"], said["posterior_mean_coef2"]
    a = first / np.sqrt(alphas) + second
    b = first * np.sqrt(1 / alphas - 1)
    low, high = said["posterior_log_variance_clipped"] / 2, np.log(betas) / 2
    found.floats("table", own[:, :4], np.stack([a, b, low, high], 1), relative=True)


# --- the tokenizer


def _tokenizer(fixture: Fixture, folder: Path) -> Iterator[Comparison]:
    """Images of latents through the bundle, and latents of images."""
    network = fixture.network("kl", main=True)
    arguments = known_arguments(AutoencoderKL, network.arguments)
    stride = 2 ** (len(arguments["ch_mult"]) - 1)
    given = next((name for name in fixture.arrays if name.startswith("in/z")), None)
    if given is not None:
        found, z = Comparison("latents → image"), fixture[given]
        mar = _stand_in(
            MAR,
            {
                **{f"{part}_embed_dim": 8 for part in ("encoder", "decoder")},
                **{f"{part}_depth": 1 for part in ("encoder", "decoder")},
                **{f"{part}_num_heads": 1 for part in ("encoder", "decoder")},
                **{"img_size": stride * z.shape[-1], "vae_stride": stride},
                **{"vae_embed_dim": z.shape[1], "class_num": 2, "buffer_size": 2},
                **{"diffloss_d": 1, "diffloss_w": 8},
            },
        )
        files = {
            "transformer": mar.save(folder / "mar.pth"),
            "tokenizer": network.save(folder / "kl.pth"),
        }
        config = {
            "transformer": mar.arguments,
            "tokenizer": arguments,
            "latent_scale": _SCALE,
            "defaults": {"iterations": 1, "diffusion_steps": "1"},
        }
        with exported("mar", files, config, folder / "bundle") as generator:
            tokens = tokens_of(generator.model.info, z * np.float32(_SCALE))
            image = run(generator, "decoder", {"tokens": tokens})["image"]
        for name in ("out/image_pm1", "out/image_pm1_f16"):
            if name in fixture:
                recorded = np.clip(fixture[name].astype(np.float64) / 2 + 0.5, 0, 1)
                found.floats("image", image, recorded)
        yield found
    if "in/enc_image" in fixture:
        model = AutoencoderKL(**arguments).eval()
        model.load_state_dict({key: torch.from_numpy(v) for key, v in network.state.items()})
        found = Comparison("image → mean (PyTorch)")
        with torch.no_grad():
            mean = model.mean(torch.from_numpy(fixture["in/enc_image"])).numpy()
        found.floats("mean", mean, fixture["out/enc_mean"])
        yield found
