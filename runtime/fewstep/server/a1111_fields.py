"""Fields of AUTOMATIC1111's requests, and what it says of images.

Honoured: ``prompt`` (a class or a text), ``negative_prompt`` (of texts), ``seed`` (−1 draws one),
``steps``, ``cfg_scale``, ``batch_size`` × ``n_iter`` images, ``sampler_name`` or ``scheduler`` if
it is a schedule of the model, ``send_images``, and of ``override_settings`` the
``sd_model_checkpoint``. For ``img2img`` also ``init_images`` (one), ``mask`` (white is painted
anew), ``inpainting_mask_invert``, ``denoising_strength`` where there is no mask, ``resize_mode``.
All others are ignored, since clients send many; so are ``width`` and ``height``: a model's images
have one size.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from PIL import ImageOps

from fewstep.runtime.errors import brief
from fewstep.runtime.examples import complete_settings
from fewstep.runtime.families import family_of
from fewstep.server.edits import Planned, planned, require_editable, share
from fewstep.server.errors import FieldError
from fewstep.server.job import Job, Made
from fewstep.server.openai_fields import whole
from fewstep.server.order import MAX_IMAGES, Order
from fewstep.server.pictures import picture_of_base64
from fewstep.server.worker import Worker

_FITS = {0: "stretch", 1: "crop", 2: "pad", 3: "stretch"}  # by resize_mode
_STRENGTH = 0.75  # that the web UI has where none is given
_SAMPLER = "default"


def order_of(
    worker: Worker, given: Mapping[str, Any], edit: Mapping[str, Any] | None = None
) -> Order:
    """What a request asks for; ``edit``: of an ``img2img``.

    Raises:
        FieldError: a field that is honoured does not fit.
    """
    seed = given.get("seed")
    drawn = seed is None or seed == -1
    return Order(
        prompt=_text(given, "prompt"),
        count=_count(given),
        seed=None if drawn else whole(given, "seed", 0, 2**64 - 1),
        negative=_negative(worker, given),
        settings=_settings(worker, given),
        edit=edit,
    )


def edit_of(worker: Worker, given: Mapping[str, Any]) -> Planned:
    """The edit of an ``img2img``.

    Raises:
        FieldError: the model cannot edit, or a picture or number does not fit.
        RequestError: the mask is of another size, or covers nothing.
    """
    require_editable(worker)
    pictures = given.get("init_images")
    if not isinstance(pictures, list) or len(pictures) != 1:
        raise FieldError("init_images", "init_images must be a list of one picture in base64")
    fit = _FITS.get(whole(given, "resize_mode", 0, 3) or 0)
    found: dict[str, Any] = {"image": picture_of_base64(pictures[0], "init_images"), "fit": fit}
    if given.get("mask"):
        mask = picture_of_base64(given["mask"], "mask").convert("RGB")  # what is transparent is not
        found["mask"] = ImageOps.invert(mask) if given.get("inpainting_mask_invert") else mask
    else:
        strength = given.get("denoising_strength")
        found["strength"] = share("denoising_strength", _STRENGTH if strength is None else strength)
    return planned(worker, found, _count(given))


def samplers_of(worker: Worker) -> list[str]:
    """The schedules of a model, which are the samplers of the web UI."""
    model = worker.model
    return [*family_of(model.info.kind).choices(model).get("schedule", (_SAMPLER,))]


def _count(given: Mapping[str, Any]) -> int:
    size, rounds = (whole(given, name, 1, MAX_IMAGES) or 1 for name in ("batch_size", "n_iter"))
    return size * rounds


def _settings(worker: Worker, given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings, but for those that the schedule decides by itself."""
    kind, found = family_of(worker.model.info.kind).Settings, dict[str, Any]()
    for name in ("sampler_name", "sampler_index", "scheduler"):
        if given.get(name) in samplers_of(worker) and "schedule" in kind.model_fields:
            found["schedule"] = given[name]
    left = complete_settings(worker.model, found)
    for theirs, name in (("steps", "num_inference_steps"), ("cfg_scale", "guidance_scale")):
        value, alias = given.get(theirs), kind.diffusers.get(name)
        if value is None or alias is None or alias.name not in left:
            continue
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not abs(value) < math.inf:
            raise FieldError(theirs, f"{theirs} must be a number, got {brief(value)}")
        found[name] = value
    return found


def _negative(worker: Worker, given: Mapping[str, Any]) -> str | None:
    """The negative prompt, where there are such: clients send an empty one, or their usual words,
    whatever the model."""
    condition = worker.model.info.condition
    has = getattr(condition, "encoder", None) is not None and condition.has_unconditional
    return _text(given, "negative_prompt") or None if has else None


def _text(given: Mapping[str, Any], name: str) -> str:
    value = given.get(name)
    if not isinstance(value, (str, type(None))):
        raise FieldError(name, f"{name} must be a text")
    return value or ""


# What is said of images


def infotext(worker: Worker, order: Order, job: Job, seed: int) -> str:
    """What the web UI writes into a picture."""
    height, width = worker.model.info.image_size
    facts = {
        "Steps": job.steps,
        "Sampler": job.settings.get("schedule", _SAMPLER),
        "Seed": seed,
        "Size": f"{width}x{height}",
        "Model": worker.name,
    }
    negative = f"\nNegative prompt: {order.negative}" if order.negative else ""
    return f"{order.prompt}{negative}\n{', '.join(f'{k}: {v}' for k, v in facts.items())}"


def info_of(worker: Worker, order: Order, job: Job, made: Made, texts: list[str]) -> str:
    """The ``info`` of an answer, which is JSON in a string."""
    height, width = worker.model.info.image_size
    seeds, negative = list(made.seeds), order.negative or ""
    return json.dumps(
        {
            "prompt": order.prompt,
            "all_prompts": [order.prompt] * len(seeds),
            "negative_prompt": negative,
            "all_negative_prompts": [negative] * len(seeds),
            "seed": seeds[0],
            "all_seeds": seeds,
            "width": width,
            "height": height,
            "sampler_name": job.settings.get("schedule", _SAMPLER),
            "steps": job.steps,
            "batch_size": len(seeds),
            "sd_model_name": worker.name,
            "infotexts": texts,
            "index_of_first_image": 0,
            "extra_generation_params": dict(job.settings),
        }
    )
