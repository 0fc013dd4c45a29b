"""One token at a time: the sequential decoding that MaskGIT is compared with.

The same engines and the same sampling kernel, but pass n decides position n alone, in raster
order, so N tokens take N transformer passes (MaskGIT, figure 1). For comparison only.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fewstep.runtime.devices import Array
from fewstep.runtime.generator import Generator
from fewstep.runtime.masked_plan import MaskedPlan, check_error
from fewstep.runtime.plan import PlanKey
from fewstep.runtime.request import condition_of, seeds_of

Ids = npt.NDArray[np.int32]


def decode_in_raster_order(
    generator: Generator,
    *,
    class_ids: Sequence[int] | None = None,
    text: Array | None = None,
    seed: int | Sequence[int] = 0,
    guidance: float | None = None,
) -> tuple[Ids, dict[str, float]]:
    """Generate one image per condition in N passes at constant guidance.

    Args:
        generator: the generator whose engines are used.
        class_ids: one class id per image, or
        text: text states ``[B, L, D]``.
        seed: as in ``Generator.generate``.
        guidance: guidance scale; ``None`` takes the end of the bundle's ramp.

    Returns:
        Tokens ``[B, N]`` and milliseconds per stage, as ``Result.timings_ms``.
    """
    start, model = time.perf_counter(), generator.bundle.manifest.model
    condition = condition_of(model, class_ids, text)
    scale = model.defaults.guidance[1] if guidance is None else guidance
    key = PlanKey(len(condition), steps=1, guided=scale > 0, policy=None, reuse_first=False)
    plan = generator.decoder.plan(key)
    # Mask ratio 0, no noise on confidences, sampling temperature 1.
    plan.prepare(condition, seeds_of(seed, len(condition)), np.array([[0, 0, 1, scale]], "f4"))
    generator.device.timings()
    tokens = _sample_all(generator, plan)
    total = (time.perf_counter() - start) * 1e3
    stages = generator.device.timings()
    return tokens, {**stages, "other": max(0.0, total - sum(stages.values())), "total": total}


def _sample_all(generator: Generator, plan: MaskedPlan) -> Ids:
    device, decoder, buffers = generator.device, generator.decoder, plan.workspace
    batch, (_, rows, count) = plan.key.batch, buffers["tokens"].shape
    tokens = np.full((rows, count), decoder.model.mask_token, np.int32)
    plan.start()
    for position in range(count):
        device.upload(buffers["tokens"][0], tokens)
        plan.transform(0)
        known = tokens[:batch].copy()
        known[:, position + 1 :] = 0  # only this position is left to sample
        device.upload(buffers["given"], known)
        with device.span("sampling"):
            plan.sample(0, buffers["given"])
        sampled = device.download(buffers["sampled"])[0, :, position]
        tokens[:, position] = np.resize(sampled, rows)
    plan.decode()
    device.synchronize()
    check_error(device.download(buffers["error"]))
    return tokens[:batch]
