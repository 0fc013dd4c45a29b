"""What a plan of the masked loop needs, known before anything is allocated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fewstep.runtime.devices import BufferSpec
from fewstep.runtime.engines import Engine
from fewstep.runtime.manifest import GraphInfo, MaskedModel


@dataclass(frozen=True)
class PlanKey:
    """What a plan is made for; seeds, conditions and parameters are its inputs.

    ``policy`` is the graph of the policy network, or ``None`` for a fixed schedule.
    """

    batch: int
    steps: int
    guided: bool
    policy: str | None
    reuse_first: bool = True


def plan_buffers(
    model: MaskedModel, graphs: Mapping[str, GraphInfo | Engine], key: PlanKey
) -> dict[str, BufferSpec]:
    """Every buffer of a plan, known before anything is allocated.

    Activations inside the engines are the backend's own and not among them.

    Args:
        model: the bundle's model description.
        graphs: the bundle's graphs, or the engines made of them: they know the dtypes.
        key: batch, steps, guidance and schedule.
    """
    batch, steps, n = key.batch, key.steps, model.num_tokens
    passes, (height, width) = 2 * batch if key.guided else batch, model.image_size
    transformer, decoder = graphs["transformer"], graphs["decoder"]
    logits, image = transformer.outputs["logits"].dtype, decoder.outputs["image"].dtype
    condition = transformer.inputs[model.condition_input].dtype
    shape = model.tensor_shapes()["transformer", model.condition_input]
    buffers = {
        "condition": BufferSpec((passes, *shape), condition, "input"),
        "seeds": BufferSpec((batch,), "uint64", "input"),
        "given": BufferSpec((batch, n), "int32", "input"),
        "mask": BufferSpec((batch, n), "uint8", "input"),
        "parameters": BufferSpec((steps, batch, 4), "float32", "output" if key.policy else "input"),
        "error": BufferSpec((1,), "int32", "status"),
        "tokens": BufferSpec((steps + 1, passes, n), "int32", "output"),
        "sampled": BufferSpec((steps, batch, n), "int32", "output", aligned_rows=True),
        "pixels": BufferSpec((batch, height, width, 3), "uint8", "output"),
        "transformer_tokens": BufferSpec((passes, n), "int32"),
        "confidence": BufferSpec((batch, n), "float32"),
        "logits": BufferSpec((passes, n, model.codebook_size), logits),
        "image": BufferSpec((batch, 3, height, width), image),
    }
    if features := transformer.outputs.get("features"):
        buffers["features"] = BufferSpec((passes, n, model.feature_width), features.dtype)
    if key.policy:
        buffers["step_ids"] = BufferSpec((steps, batch), "int32", "input")
        buffers["policy_step"] = BufferSpec((batch,), "int32")
        buffers["action"] = BufferSpec((batch, 4), "float32")
    return buffers


def first_pass_buffers(
    model: MaskedModel, graphs: Mapping[str, GraphInfo | Engine]
) -> dict[str, BufferSpec]:
    """The unconditional logits of the all-masked image, kept for all plans with guidance."""
    n, dtype = model.num_tokens, graphs["transformer"].outputs["logits"].dtype
    return {"logits": BufferSpec((1, n, model.codebook_size), dtype)}
