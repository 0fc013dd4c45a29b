"""Masked decoding as a program.

    start:   image_encoder(original) → given                     only where tokens of a picture stay
             initial_tokens(given, mask) → tokens[0]
             text_encoder(ids) → condition                       only where texts are given by ids
    step t:  tokens[t] → transformer_tokens
             transformer(transformer_tokens) → logits, features
             policy(features, t) → action → parameters[t]        only with a policy
             sample_tokens(logits, parameters[t]) → sampled[t], confidence
             remask(confidence, sampled[t]) → tokens[t + 1]
             or, where the order of the positions is known before:
             [local steps compute some positions alone (``local.py``)]
             choose_tokens(tokens[t], ranks, decided[t : t + 2]) → chosen
             sample_top_k_top_p(logits, chosen, parameters[t]) → sampled[t] → tokens[t + 1]
    end:     decoder(sampled[T − 1]) → image → pixels

Engines read and write the same views at every step, so that each is bound once for every batch
that it runs with. With guidance the transformer runs at batch 2B, conditional half first, but for
steps whose guidance is 0. At step 0 every token is masked, so that its logits are known from other
images of the class (``transformer.py``), and no pass is made.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fewstep.runtime.decoders import DECODER
from fewstep.runtime.devices import BufferSpec, Role
from fewstep.runtime.editing import encoding, original_buffer
from fewstep.runtime.families import Model
from fewstep.runtime.families.masked.local import (
    LocalSteps,
    keep_others,
    local_buffers,
    local_run,
    positions,
    tried,
)
from fewstep.runtime.families.masked.model import MaskedModel
from fewstep.runtime.families.masked.transformer import (
    ENTRIES,
    UNCONDITIONAL,
    first_step,
    kept_entries,
    kept_first_step,
    transformer_buffers,
    transformer_run,
    unconditional,
)
from fewstep.runtime.kernels.choices import AT_LEAST_ONE, CONFIDENCES, TIES
from fewstep.runtime.program import Copy, Launch, Op, Program, Run, View

DECISIONS = ("tokens", "sampled", "parameters")
_FIRST = "first_step"


@dataclass(frozen=True)
class MaskedKey:
    """What a program is made for; seeds, conditions and parameters are its inputs.

    ``policy`` is the graph of the policy network, or ``None`` for a fixed schedule. With ``reuse``
    every token is generated, and what is known of step 0 is not computed again. ``ordered``: the
    order of the positions is an input, and no confidence is computed. ``encodes``: texts are given
    by their ids, which a text encoder reads. ``unguided``: steps of a guided program whose guidance
    is 0, so that they need no unconditional half. ``local``: which steps compute some positions
    alone; not at ``reuse`` after step 0. ``decoder``: the graph that draws. ``of_image``: what is
    given is a picture, which is encoded; not at ``reuse``.
    """

    batch: int
    steps: int
    guided: bool
    policy: str | None
    reuse: bool = True
    ordered: bool = False
    encodes: bool = False
    unguided: tuple[int, ...] = ()
    local: LocalSteps | None = None
    decoder: str = DECODER
    of_image: bool = False

    @property
    def rows(self) -> int:
        """Rows that the transformer runs with at most."""
        return 2 * self.batch if self.guided else self.batch

    def guides(self, step: int) -> bool:
        """Whether a step needs unconditional logits."""
        return self.guided and step not in self.unguided

    def rows_at(self, step: int) -> int:
        """Rows of a step: both halves where it, or a local step after it, is guided."""
        group = self.local.starting(step) if self.local else None
        steps = range(step, group.end if group else step + 1)
        known = self.reuse and step == 0
        return self.rows if not known and any(map(self.guides, steps)) else self.batch


def masked_program(model: Model, key: MaskedKey) -> Program:
    """The program for a key."""
    buffers = _buffers(model, key)
    keeps = _keeps(model, key)
    initial: dict[str, npt.ArrayLike] = {"mask": 1, **positions(model.info)}
    if key.policy:
        initial["step_ids"] = np.arange(key.steps, dtype=np.int32)[:, None]
    else:
        initial |= _trial(model.info, key)
    return Program(
        buffers,
        tuple(_operations(model, key, features="features" in buffers)),
        decisions=DECISIONS,
        initial=initial,
        constants={UNCONDITIONAL: unconditional(model)} if key.reuse and key.guides(0) else {},
        kept={f"{_FIRST}_{key.batch}": kept_first_step(model, key.batch)} if keeps else {},
    )


def _keeps(model: Model, key: MaskedKey) -> bool:
    """Whether step 0 is kept."""
    return key.reuse and kept_entries(model, key.batch) > 0


def _trial(model: MaskedModel, key: MaskedKey) -> dict[str, npt.ArrayLike]:
    """Inputs with which logits decide tokens at every step: the likeliest codes, with guidance."""
    after = np.arange(1, key.steps + 1) / key.steps
    trial = np.zeros((key.steps, 1, 4), np.float32)
    if not key.ordered:  # mask ratio, no noise, temperature 0, guidance
        trial[:, 0, 0], trial[:, 0, 3] = 1 - after, key.guided
        return {"parameters": trial}
    trial[:, 0, 0], trial[:, 0, 2] = key.guided, 1  # guidance, every code, temperature 0
    ranks = np.arange(model.num_tokens, dtype=np.int32)
    if key.local:
        known = tried(key.local, key.batch, model.num_tokens, key.rows // key.batch)
    else:
        known = {"decided": np.array([0, *(after * model.num_tokens)], np.int32)[:, None]}
    return {"parameters": trial, "ranks": ranks, **known}


def _operations(model: Model, key: MaskedKey, *, features: bool) -> Iterator[Op]:
    info: MaskedModel = model.info
    tokens, sampled, error = View("tokens"), View("sampled"), View("error")
    if key.of_image:
        yield encoding(View("given"))
    yield Launch(
        "initial_tokens",
        {
            "given": View("given"),
            "mask": View("mask"),
            "codebook_size": info.codebook_size,
            "mask_token": info.mask_token,
            "tokens": tokens[0],
            "error": error,
        },
        writes=("tokens", "error"),
    )
    if key.encodes:
        yield from _texts(info, key)
    for step in range(key.steps):
        yield from _logits(model, key, step, features=features)
        if key.policy:
            yield from _policy(info, key, key.policy, step)
        conditional = View("logits")[: key.batch]
        second = conditional
        if key.guides(step):
            known = key.reuse and step == 0
            second = View(UNCONDITIONAL) if known else View("logits")[key.batch : key.rows]
        sampling: dict[str, View | int | float] = {
            "conditional": conditional,
            "unconditional": second,
            "parameters": View("parameters")[step],
            "seeds": View("seeds"),
            "step": step,
            "mask_token": info.mask_token,
            "error": error,
        }
        decide = _in_order if key.ordered else _by_confidence
        yield from decide(info, key, step, sampling)
    last = key.steps - 1
    yield Run(key.decoder, {"tokens": sampled[last], "image": View("image")}, last, DECODER)
    yield Launch(
        "to_pixels",
        {"image": View("image"), "pixels": View("pixels"), "error": error},
        writes=("pixels", "error"),
        step=last,
    )


def _logits(model: Model, key: MaskedKey, step: int, *, features: bool) -> Iterator[Op]:
    """Those of all positions, or new ones of a local step's in their place."""
    info, rows, local = model.info, key.rows_at(step), key.local
    if step == 0 and _keeps(model, key):
        yield from first_step(model, key.batch)
        return
    if local and (group := local.around(step)):
        yield from local_run(info, local, group, rows, step, features=features)
        return
    read = View("transformer_tokens")[:rows]
    yield Copy(read, View("tokens")[step][:rows], step, "transformer")
    yield transformer_run(info, rows, features=features, step=step)
    if local and (group := local.starting(step)):
        yield keep_others(info, local, group, rows)


def _texts(model: MaskedModel, key: MaskedKey) -> Iterator[Op]:
    """What the transformer reads of the texts."""
    assert model.encoder is not None
    condition, batch = View("condition"), key.batch
    yield Run(model.encoder.graph, {"ids": View("ids"), "text": condition[:batch]})
    if key.guided:
        yield Copy(condition[batch : 2 * batch], View("nothing"), stage="text_encoder")


def _by_confidence(
    model: MaskedModel, key: MaskedKey, step: int, sampling: dict[str, View | int | float]
) -> Iterator[Op]:
    """A code for every masked position; the least confident are masked again."""
    rules = model.rules
    shared = {"sampled": View("sampled")[step], "confidence": View("confidence")}
    tokens = {"tokens": View("tokens")[step][: key.batch]}
    form = {
        "confidence_of": CONFIDENCES.index(rules.confidence),
        "resample": int(rules.known == "resampled"),
    }
    yield Launch(
        "sample_tokens",
        {**sampling, **shared, **tokens, **form, "mask": View("mask")},
        writes=("sampled", "confidence", "error"),
        step=step,
        stage="sampling",
        # Of positions that are known the logits are not read; before step 0 none is.
        skips=_skipped(step, resampled=rules.known == "resampled"),
    )
    yield Launch(
        "remask",
        {
            **shared,
            "parameters": sampling["parameters"],
            "mask_token": model.mask_token,
            "mask": View("mask"),
            "at_least_one": AT_LEAST_ONE.index(_least(model)),
            "next_tokens": View("tokens")[step + 1],
            "ties": TIES.index(rules.ties),
        },
        writes=("next_tokens",),
        step=step,
        stage="sampling",
    )


def _skipped(step: int, *, resampled: bool) -> tuple[str, ...]:
    if resampled:
        return ()
    return ("mask", "conditional", "unconditional") if step else ("mask",)


def _least(model: MaskedModel) -> str:
    return f"last-{model.rules.last_token}" if model.at_least_one else "no"


def _in_order(
    model: MaskedModel, key: MaskedKey, step: int, sampling: dict[str, View | int | float]
) -> Iterator[Op]:
    """A code for the positions whose turn it is."""
    batch, sampled, tokens = key.batch, View("sampled")[step], View("tokens")
    yield Launch(
        "choose_tokens",
        {
            "tokens": tokens[step][:batch],
            "ranks": View("ranks"),
            "first": View("decided")[step],
            "last": View("decided")[step + 1],
            "given": View("chosen"),
        },
        writes=("given",),
        step=step,
        stage="sampling",
    )
    yield Launch(
        "sample_top_k_top_p",
        {**sampling, "given": View("chosen"), "tokens": sampled},
        writes=("tokens", "error"),
        step=step,
        stage="sampling",
        skips=("conditional", "unconditional"),  # of positions whose turn it is not
    )
    for half in range(0, key.rows, batch):
        yield Copy(tokens[step + 1][half : half + batch], sampled, step, "sampling")


def _policy(model: MaskedModel, key: MaskedKey, policy: str, step: int) -> Iterator[Op]:
    yield Copy(View("policy_step"), View("step_ids")[step], step, "policy")
    info, features = model.policies[policy], View("features")[: key.batch]
    action = View("action")
    bindings = {"features": features, "step": View("policy_step"), "action": action}
    yield Run(policy, bindings, step, "policy")
    if info.smoothing:
        yield _smoothed(info.smoothing, step)
        action = View("smoothed")
    parameters = View("parameters")[step]
    yield Launch(
        "policy_parameters",
        {
            "action": action,
            **info.offsets(step, key.steps),
            "parameters": parameters,
            "error": View("error"),
        },
        writes=("parameters", "error"),
        step=step,
        stage="policy",
    )


def _smoothed(smoothing: float, step: int) -> Op:
    """The actions of the steps so far, in the place of those up to the step before."""
    action, smoothed = View("action"), View("smoothed")
    if step == 0:
        return Copy(smoothed, action, step, "policy")
    return Launch(
        "smooth_actions",
        {"action": action, "before": smoothed, "smoothing": smoothing, "smoothed": smoothed},
        ("smoothed",),
        step,
        "policy",
    )


def _buffers(model: Model, key: MaskedKey) -> dict[str, BufferSpec]:
    info, batch, steps = model.info, key.batch, key.steps
    n, (height, width) = info.num_tokens, info.image_size
    decided: Role = "output" if key.policy else "input"
    image = model.graphs[key.decoder].outputs["image"].dtype
    return {
        "seeds": BufferSpec((batch,), "uint64", "input"),
        "given": BufferSpec((batch, n), "int32", "internal" if key.of_image else "input"),
        "mask": BufferSpec((batch, n), "uint8", "input"),
        "parameters": BufferSpec((steps, batch, 4), "float32", decided),
        "error": BufferSpec((1,), "int32", "status"),
        "tokens": BufferSpec((steps + 1, key.rows, n), "int32", "output"),
        "sampled": BufferSpec((steps, batch, n), "int32", "output", aligned_rows=True),
        "pixels": BufferSpec((batch, height, width, 3), "uint8", "output"),
        **_decision_buffers(model, key),
        "image": BufferSpec((batch, 3, height, width), image),
        **transformer_buffers(model, key.rows),
        **(local_buffers(model, key.local, key.rows) if key.local else {}),
        **(original_buffer(info, batch) if key.of_image else {}),
        **(_entries(info, key) if _keeps(model, key) else {}),
        **(_text_buffers(model, key) if key.encodes else {}),
        **(_policy_buffers(info, key) if key.policy else {}),
    }


def _decision_buffers(model: Model, key: MaskedKey) -> dict[str, BufferSpec]:
    """What says which tokens a step decides."""
    shape = (key.batch, model.info.num_tokens)
    if not key.ordered:
        return {"confidence": BufferSpec(shape, "float32")}
    return {
        "ranks": BufferSpec(shape, "int32", "input"),
        "decided": BufferSpec((key.steps + 1, key.batch), "int32", "input"),
        "chosen": BufferSpec(shape, "int32"),
    }


def _entries(model: MaskedModel, key: MaskedKey) -> dict[str, BufferSpec]:
    return {ENTRIES: BufferSpec((key.batch, model.num_tokens), "int32", "input")}


def _text_buffers(model: Model, key: MaskedKey) -> dict[str, BufferSpec]:
    """What the text encoder is bound to."""
    info, graph = model.info, model.graphs["text_encoder"]
    states = model.graphs["transformer"].inputs["text"].dtype
    shape = info.tensor_shapes()["transformer", "text"][1:]
    buffers = {
        "ids": BufferSpec((key.batch, info.encoder.tokens), graph.inputs["ids"].dtype, "input"),
        "condition": BufferSpec((key.rows, *shape), states),
    }
    if key.guided:
        buffers["nothing"] = BufferSpec((key.batch, *shape), states, "input")
    return buffers


def _policy_buffers(model: MaskedModel, key: MaskedKey) -> dict[str, BufferSpec]:
    assert key.policy is not None
    action = BufferSpec((key.batch, 4), "float32")
    return {
        "step_ids": BufferSpec((key.steps, key.batch), "int32", "input"),
        "policy_step": BufferSpec((key.batch,), "int32"),
        "action": action,
        **({"smoothed": action} if model.policies[key.policy].smoothing else {}),
    }
