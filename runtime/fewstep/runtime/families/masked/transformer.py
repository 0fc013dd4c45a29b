"""The transformer's pass: what it is bound to, and what of step 0 is known before.

At step 0 every token is masked, so that nothing but the condition can make a difference. The
unconditional logits are a constant. The conditional logits and the features depend on the class
alone, and are kept for the classes that were asked for last.
"""

from __future__ import annotations

from fewstep.runtime.condition import ClassCondition
from fewstep.runtime.devices import BufferSpec
from fewstep.runtime.families import Model
from fewstep.runtime.families.masked.local import cache_buffers, full_bindings, positions
from fewstep.runtime.families.masked.model import MaskedModel
from fewstep.runtime.program import Kept, Launch, Program, Run, View

UNCONDITIONAL = "unconditional_logits"
"""The constant with the unconditional logits of step 0, ``[1, N, V]``."""

ENTRIES = "first_entries"
"""The input that says which kept row every token of an image reads, ``[B, N]``."""

_KEPT = {"logits": "first_logits", "features": "first_features"}
_KEPT_BATCH = 8
_KEPT_BYTES = 1 << 25  # 32 MiB: 18 classes of AdaNAT-L at 256 pixels, logits and features


def transformer_run(model: MaskedModel, rows: int, *, features: bool, step: int = 0) -> Run:
    """A pass at a batch of ``rows``."""
    bindings = {
        "tokens": View("transformer_tokens")[:rows],
        model.condition_input: View("condition")[:rows],
        "logits": View("logits")[:rows],
        **full_bindings(model, rows),
    }
    if features:
        bindings["features"] = View("features")[:rows]
    return Run("transformer", bindings, step)


def transformer_buffers(model: Model, rows: int) -> dict[str, BufferSpec]:
    """What the transformer is bound to."""
    info, graph = model.info, model.graphs["transformer"]
    n, condition = info.num_tokens, graph.inputs[info.condition_input]
    fixed = info.tensor_shapes()["transformer", info.condition_input][1:]
    buffers = {
        "condition": BufferSpec((rows, *fixed), condition.dtype, "input"),
        "transformer_tokens": BufferSpec((rows, n), "int32"),
        "logits": BufferSpec((rows, n, info.logits_width), graph.outputs["logits"].dtype),
        **cache_buffers(info, rows),
    }
    if features := graph.outputs.get("features"):
        buffers["features"] = BufferSpec((rows, n, info.feature_width), features.dtype)
    return buffers


def unconditional(model: Model) -> Program:
    """Unconditional logits of the image without any token."""
    program = _without_tokens(model, 1, {"logits": UNCONDITIONAL})
    return Program(
        program.buffers,
        program.ops,
        initial={**program.initial, "condition": model.arrays["unconditional"]},
    )


def kept_entries(model: Model, batch: int) -> int:
    """Of how many classes step 0 is kept; 0 where it is not: for texts, for batches so large that
    some class would nearly always be new, and where a batch of them would take too much memory."""
    info, buffers = model.info, transformer_buffers(model, 1)
    if not isinstance(info.condition, ClassCondition) or batch > _KEPT_BATCH:
        return 0
    kept = [buffers[name] for name in _KEPT if name in buffers]
    if any(spec.dtype != "float32" for spec in kept):
        return 0
    classes = info.condition.num_classes
    entries = min(_KEPT_BYTES // sum(spec.bytes for spec in kept), max(classes, batch))
    return entries if entries >= batch else 0


def kept_first_step(model: Model, batch: int) -> Kept:
    """Conditional logits and features of the image without any token, of a class.

    They are of one batch size: engines may give other last bits in another one, and an image must
    not depend on what was asked for before.
    """
    present = transformer_buffers(model, 1).keys()
    names = {name: kept for name, kept in _KEPT.items() if name in present}
    program = _without_tokens(model, batch, names)
    entries = kept_entries(model, batch)
    return Kept(program, "condition", tuple(names.values()), ENTRIES, entries)


def first_step(model: Model, batch: int) -> list[Launch]:
    """What puts the kept rows where a pass would write."""
    info, found = model.info, []
    buffers, entries = transformer_buffers(model, batch), kept_entries(model, batch)
    for name, kept in _KEPT.items():
        if name in buffers:
            width = buffers[name].shape[-1]
            each = info.num_tokens * width
            arguments: dict[str, View | int | float] = {
                "source": View(kept).reshaped(1, entries * each),
                "index": View(ENTRIES),
                "width": width,
                "target": View(name).reshaped(1, batch * each),
            }
            # Of the source only the rows of these images are read.
            launch = Launch(
                "gather_rows", arguments, ("target",), stage="transformer", skips=("source",)
            )
            found.append(launch)
    return found


def _without_tokens(model: Model, rows: int, names: dict[str, str]) -> Program:
    """A pass of images without any token; outputs by other names, so that they can be shared."""
    info, buffers = model.info, transformer_buffers(model, rows)
    run = transformer_run(info, rows, features="features" in buffers)
    bindings = dict(run.bindings)
    for name, other in names.items():
        buffers[other] = buffers.pop(name)
        bindings[name] = View(other)[:rows]
    buffers["transformer_tokens"] = BufferSpec((rows, info.num_tokens), "int32", "input")
    initial = {"transformer_tokens": info.mask_token, **positions(info)}
    return Program(buffers, (Run(run.graph, bindings),), initial=initial)
