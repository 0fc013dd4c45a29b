"""Next-scale prediction as a program.

    image_encoder(original) → encoded; initial_tokens → started; gather_rows → given
                                                             only where tokens of a picture stay
    start(condition) → embeds of scale 0, modulation, head_modulation
    scale s: trunk(embeds, modulation, cache[0 : p]) → hidden, cache[p : p + n]
             features(hidden) → policy(features, s) → action → parameters[s]   only with a policy
             head(hidden, head_modulation) → logits
             sample_top_k_top_p(logits, parameters[s]) → tokens[s]
             next_scale(tokens[s], f_hat[s − 1]) → f_hat[s], embeds of scale s + 1
    end:     decoder(f_hat) → image → pixels

Each scale computes its own n tokens and no other. Keys and values lie in one buffer ``[2·depth, L,
R·W]``, position before row: what came before and what a scale adds are neighbouring parts of it, so
graphs read the one and write the other in place. With guidance R = 2B, conditional half first;
where later scales run without guidance, the conditional half is moved together once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fewstep.runtime.decoders import DECODER
from fewstep.runtime.devices import Array, BufferSpec, Role
from fewstep.runtime.families import Model
from fewstep.runtime.families.var.model import VarModel
from fewstep.runtime.families.var.picture import encoded, picture_buffers, places
from fewstep.runtime.families.var.policies import offsets
from fewstep.runtime.families.var.request import FREE
from fewstep.runtime.families.var.resize import area, bicubic
from fewstep.runtime.program import Copy, Launch, Op, Program, Run, View, packed

DECISIONS = ("tokens", "parameters")
_CONSTANTS = ("modulation", "head_modulation", "cache", "logits")
"""Buffers of the unconditional half of the first scale, which depend on nothing."""


@dataclass(frozen=True)
class VarKey:
    """What a program is made for; seeds, classes, parameters and given tokens are its inputs.

    ``scales`` are decoded, ``guided`` of them with both halves. ``policy`` is the graph of the
    policy network, or ``None``. With ``reuse_first`` the unconditional half of the first scale,
    which then is one token, is a constant. ``decoder``: the graph that draws. ``of_image``: what is
    given is a picture, which is encoded.
    """

    batch: int
    scales: int
    guided: int
    policy: str | None = None
    reuse_first: bool = False
    decoder: str = DECODER
    of_image: bool = False

    def rows(self, scale: int) -> int:
        """Rows that the transformer runs with at a scale."""
        return 2 * self.batch if scale < self.guided else self.batch


def var_program(model: Model, key: VarKey) -> Program:
    """The program for a key."""
    info: VarModel = model.info
    tables = _tables(info, key)
    initial: dict[str, npt.ArrayLike] = {**tables}
    initial |= {"mask": 1} if key.of_image else {"given": FREE}
    if key.policy is None:
        initial["parameters"] = _trial(info, key)
    return Program(
        _buffers(model, key, tables),
        tuple(_operations(info, key)),
        decisions=DECISIONS,
        initial=initial,
        constants={_constant(name): _first(model, name) for name in _CONSTANTS}
        if key.reuse_first
        else {},
    )


def _operations(info: VarModel, key: VarKey) -> Iterator[Op]:
    if key.of_image:
        yield from encoded(info, batch=key.batch, scales=key.scales)
    yield from _start(info, key)
    for scale in range(key.scales):
        if key.guided and scale == key.guided:
            yield from _without_guidance(info, key)
        yield from _transformer(info, key, scale)
        yield _sample(info, key, scale)
        yield from _next_scale(info, key, scale)
    last = key.scales - 1
    drawn = {"f_hat": View("f_hat", last), "image": View("image")}
    yield Run(key.decoder, drawn, last, DECODER)
    arguments = {name: View(name) for name in ("image", "pixels", "error")}
    yield Launch("to_pixels", arguments, ("pixels", "error"), last)


def _start(info: VarModel, key: VarKey) -> Iterator[Op]:
    rows = key.batch if key.reuse_first else key.rows(0)
    modulation, head = View("modulation")[:rows], View("head_modulation")[:rows]
    bindings = {
        "condition": View("condition")[:rows],
        "embeds": View("embeds").reshaped(rows, info.counts[0], info.width),
        "modulation": modulation,
        "head_modulation": head,
    }
    yield Run("start", bindings)
    if not key.reuse_first:
        return
    sizes = {"modulation": info.depth * 6 * info.width, "head_modulation": 2 * info.width}
    for name, size in sizes.items():
        source = View(_constant(name)).reshaped(1, 1, size)
        yield _copy_rows(source, View(name).reshaped(1, key.rows(0), size), key.batch, 0)
    width = info.cache_width
    for index in range(len(info.cache_names)):
        source = View(_constant("cache"), index).reshaped(1, 1, width)
        target = View("cache", index).reshaped(1, key.rows(0), width)
        yield _copy_rows(source, target, key.batch, 0)


def _transformer(info: VarModel, key: VarKey, scale: int) -> Iterator[Op]:
    rows, count, width = key.rows(scale), info.counts[scale], info.width
    if scale == 0 and key.reuse_first:
        rows = key.batch
    hidden = View("hidden").reshaped(rows, count, width)
    bindings = {
        "embeds": View("embeds").reshaped(rows, count, width),
        "modulation": View("modulation")[:rows],
        "hidden": hidden,
        **_cached(info, key, scale, rows),
    }
    yield Run("trunk", bindings, scale)
    if key.policy:
        yield from _policy(info, key, key.policy, scale)
    logits = View("logits").reshaped(rows, count, info.codebook_size)
    modulation = View("head_modulation")[:rows]
    yield Run("head", {"hidden": hidden, "head_modulation": modulation, "logits": logits}, scale)


def _cached(info: VarModel, key: VarKey, scale: int, rows: int) -> dict[str, View]:
    """What the trunk reads of the scales before, and where it writes its own."""
    past, end = info.starts[scale], info.starts[scale + 1]
    buffer = "cache" if scale < key.guided or not key.guided else "conditional_cache"
    found = {}
    for index, name in enumerate(info.cache_names):
        own = View(buffer, index).reshaped(end, rows, info.cache_width)
        found[f"past_{name}"] = own[:past]
        found[f"new_{name}"] = own[past:end]
    return found


def _without_guidance(info: VarModel, key: VarKey) -> Iterator[Op]:
    """Move the conditional half of the cache together: from here on it is read alone."""
    past, width = info.starts[key.guided], info.cache_width
    for index in range(len(info.cache_names)):
        source = View("cache", index).reshaped(past, key.rows(0), width)
        target = View("conditional_cache", index).reshaped(past, key.batch, width)
        yield _copy_rows(source, target, 0, key.guided)


def _copy_rows(source: View, target: View, first: int, scale: int) -> Launch:
    arguments: dict[str, View | int | float] = {"source": source, "target": target, "first": first}
    return Launch("copy_rows", arguments, ("target",), scale, "cache")


def _policy(info: VarModel, key: VarKey, policy: str, scale: int) -> Iterator[Op]:
    side = info.patch_nums[scale]
    features, action = View("features"), View("action")
    bindings = {
        "hidden": View("hidden").reshaped(key.batch, side, side, info.width),
        "resize": View("resize", scale).reshaped(info.feature_side, side),
        "features": features,
    }
    yield Run("features", bindings, scale, "policy")
    yield Copy(View("policy_step"), View("step_ids")[scale], scale, "policy")
    bindings = {"features": features, "step": View("policy_step"), "action": action}
    yield Run(policy, bindings, scale, "policy")
    yield Launch(
        "sampling_parameters",
        {
            "action": action,
            **offsets(info.policies[policy]),
            "guidance_scale": scale / max(1, info.scales - 1),
            "parameters": View("parameters", scale),
            "error": View("error"),
        },
        ("parameters", "error"),
        scale,
        "policy",
    )


def _sample(info: VarModel, key: VarKey, scale: int) -> Launch:
    batch, count = key.batch, info.counts[scale]
    guided = scale < key.guided
    rows = 2 * batch if guided else batch
    shape = (batch, count, info.codebook_size)
    conditional = View("logits").reshaped(*shape)
    unconditional = conditional
    if guided:
        unconditional = View("logits").reshaped(rows, *shape[1:])[batch:rows]
        if scale == 0 and key.reuse_first:
            unconditional = View(_constant("logits"))
    return Launch(
        "sample_top_k_top_p",
        {
            "conditional": conditional,
            "unconditional": unconditional,
            "parameters": View("parameters", scale),
            "seeds": View("seeds"),
            "step": scale,
            "given": View("given", scale).reshaped(batch, count),
            "mask_token": -1,
            "tokens": View("tokens", scale).reshaped(batch, count),
            "error": View("error"),
        },
        ("tokens", "error"),
        scale,
        "sampling",
        skips=("unconditional",) if guided and scale == 0 else (),  # guidance begins at 0
    )


def _next_scale(info: VarModel, key: VarKey, scale: int) -> Iterator[Op]:
    batch, width, side = key.batch, info.width, info.patch_nums[scale]
    next_side = _next_side(info, scale)
    embeds = View("embeds").reshaped(batch, next_side, next_side, width)
    bindings = {
        "tokens": View("tokens", scale).reshaped(batch, side, side),
        "f_hat": View("f_hat", scale - 1) if scale else View("nothing"),
        "up": View("up", scale).reshaped(info.grid, side),
        "down": View("down", scale).reshaped(next_side, info.grid),
        "phi": View("phi", scale).reshaped(1),
        "positions": View("positions", scale).reshaped(next_side, next_side),
        "next_f_hat": View("f_hat", scale),
        "embeds": embeds,
    }
    yield Run("next_scale", bindings, scale)
    if scale + 1 < min(key.guided, key.scales):
        rows = View("embeds").reshaped(2 * batch, next_side**2, width)
        yield Copy(rows[batch : 2 * batch], rows[:batch], scale, "next_scale")


def _next_side(info: VarModel, scale: int) -> int:
    """Of the scale after this one; of the last one itself after the last."""
    return info.patch_nums[min(scale + 1, info.scales - 1)]


def _buffers(model: Model, key: VarKey, tables: Mapping[str, Array]) -> dict[str, BufferSpec]:
    info: VarModel = model.info
    batch, scales, grid = key.batch, key.scales, info.grid
    most, (height, width) = info.counts[scales - 1], info.image_size
    graphs = model.graphs
    latents = graphs["next_scale"].outputs["next_f_hat"].dtype
    decided: Role = "output" if key.policy else "input"
    return {
        "condition": BufferSpec((key.rows(0),), "int32", "input"),
        "seeds": BufferSpec((batch,), "uint64", "input"),
        "given": BufferSpec(
            (scales, batch * most), "int32", "internal" if key.of_image else "input"
        ),
        "parameters": BufferSpec((scales, batch, 4), "float32", decided),
        **{
            name: BufferSpec(table.shape, _table_dtype(model, name), "input")
            for name, table in tables.items()
        },
        "nothing": BufferSpec((batch, info.codebook_width, grid, grid), latents, "input"),
        "error": BufferSpec((1,), "int32", "status"),
        "tokens": BufferSpec((scales, batch * most), "int32", "output", aligned_rows=True),
        "f_hat": BufferSpec(
            (scales, batch, info.codebook_width, grid, grid), latents, "output", aligned_rows=True
        ),
        "pixels": BufferSpec((batch, height, width, 3), "uint8", "output"),
        "image": BufferSpec((batch, 3, height, width), graphs[key.decoder].outputs["image"].dtype),
        **_transformer_buffers(model, key),
        **(picture_buffers(info, batch) if key.of_image else {}),
        **(_policy_buffers(model, key) if key.policy else {}),
    }


def _table_dtype(model: Model, name: str) -> str:
    if name in ("step_ids", "places"):
        return "int32"
    return model.graphs["features" if name == "resize" else "next_scale"].inputs[name].dtype


def _transformer_buffers(model: Model, key: VarKey) -> dict[str, BufferSpec]:
    """What the transformer is bound to; flat where every scale takes the first part."""
    info: VarModel = model.info
    rows, tokens = key.rows(0), info.starts[key.scales]
    widest = max(key.rows(scale) * info.counts[scale] for scale in range(key.scales))
    next_widest = max(
        _next_side(info, scale) ** 2 * key.rows(scale + 1) for scale in range(key.scales)
    )
    embeds = max(rows * info.counts[0], next_widest) * info.width
    start, trunk, head = (model.graphs[name].outputs for name in ("start", "trunk", "head"))
    cache = trunk[f"new_{info.cache_names[0]}"].dtype
    blocks = len(info.cache_names)
    own = info.starts[key.guided] or tokens
    buffers = {
        "embeds": BufferSpec((embeds,), start["embeds"].dtype),
        "modulation": BufferSpec((rows, info.depth, 6, info.width), start["modulation"].dtype),
        "head_modulation": BufferSpec((rows, 2, info.width), start["head_modulation"].dtype),
        "hidden": BufferSpec((widest * info.width,), trunk["hidden"].dtype),
        "logits": BufferSpec((widest * info.codebook_size,), head["logits"].dtype),
        "cache": BufferSpec((blocks, own, rows * info.cache_width), cache),
    }
    if 0 < key.guided < key.scales:
        shape = (blocks, tokens, key.batch * info.cache_width)
        buffers["conditional_cache"] = BufferSpec(shape, cache)
    return buffers


def _policy_buffers(model: Model, key: VarKey) -> dict[str, BufferSpec]:
    info: VarModel = model.info
    assert key.policy is not None
    features = (key.batch, info.feature_side**2, info.width)
    return {
        "policy_step": BufferSpec((key.batch,), "int32"),
        "features": BufferSpec(features, model.graphs["features"].outputs["features"].dtype),
        "action": BufferSpec((key.batch, 4), model.graphs[key.policy].outputs["action"].dtype),
    }


def _tables(info: VarModel, key: VarKey) -> dict[str, Array]:
    """What differs between scales, a row each, as ``next_scale`` and ``features`` read it."""
    last, grid = info.scales - 1, info.grid
    rows: dict[str, list[Array]] = {"up": [], "down": [], "phi": [], "positions": []}
    for scale in range(key.scales):
        side, next_side = info.patch_nums[scale], _next_side(info, scale)
        rows["up"].append(bicubic(side, grid) if scale < last else np.eye(grid, dtype=np.float32))
        rows["down"].append(area(grid, next_side))
        rows["phi"].append(np.array([info.phis[scale]], np.int32))
        first = info.starts[scale + 1] if scale < last else 0
        rows["positions"].append(np.arange(first, first + next_side**2, dtype=np.int32))
    found = {name: packed(each) for name, each in rows.items()}
    if key.policy:
        sides = info.patch_nums[: key.scales]
        found["resize"] = packed([bicubic(side, info.feature_side) for side in sides])
        found["step_ids"] = np.arange(key.scales, dtype=np.int32)[:, None].repeat(key.batch, 1)
    if key.of_image:
        found["places"] = places(info, batch=key.batch, scales=key.scales)
    return found


def _trial(info: VarModel, key: VarKey) -> Array:
    """Parameters that let logits decide every token, for trying a plan before it is used."""
    found = np.zeros((key.scales, 1, 4), np.float32)
    found[..., 0], found[..., 1:] = float(key.guided > 0), (info.codebook_size, 1, 0)
    return found


def _constant(name: str) -> str:
    return f"unconditional_{name}"


def _first(model: Model, wanted: str) -> Program:
    """The unconditional half of the first scale, which fills one constant."""
    info: VarModel = model.info
    one = VarKey(1, 1, 0)
    shapes = {"logits": (1, info.counts[0], info.codebook_size)}
    buffers = {
        name: BufferSpec(shapes.get(name, spec.shape), spec.dtype)
        for name, spec in _transformer_buffers(model, one).items()
    }
    buffers["condition"] = BufferSpec((1,), "int32", "input")
    names = {name: name for name in buffers} | {wanted: _constant(wanted)}

    def renamed(view: View) -> View:
        return View(names[view.buffer], view.index, view.shape, view.rows)

    ops = tuple(
        Run(op.graph, {name: renamed(view) for name, view in op.bindings.items()})
        for op in (*_start(info, one), *_transformer(info, one, 0))
        if isinstance(op, Run)
    )
    initial: Mapping[str, npt.ArrayLike] = {"condition": info.condition.unconditional_id or 0}
    renamed_buffers = {names[name]: spec for name, spec in buffers.items()}
    return Program(renamed_buffers, ops, initial=initial)
