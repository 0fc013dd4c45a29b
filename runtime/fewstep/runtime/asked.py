"""What a call of a generator asks for: classes or texts, and arguments by their names.

Users of diffusers know other names; what is called otherwise here is said.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from fewstep.runtime.condition import Condition, Described, TextCondition
from fewstep.runtime.errors import RequestError
from fewstep.runtime.given_texts import prompts_of
from fewstep.runtime.settings import Settings

_MOST_IMAGES = 100_000
_FIRST = "the first argument of a call"
SECOND = "the second argument of edit"


def asked(
    info: Condition, wanted: Described | None, count: int, *, place: str = _FIRST
) -> tuple[dict[str, Any], list[str]]:
    """Classes or texts, as arguments of ``Generator.generate``.

    Args:
        info: of the bundle.
        wanted: a class id or name, or several; a prompt, or several; or text states
            ``[B, L, D]``.
        count: images of each.
        place: where ``wanted`` is given.

    Returns:
        The arguments, for ``count`` images of each class or text in turn; and a label for each
        image.

    Raises:
        RequestError: nothing, the other kind of condition, an unknown class, a count below 1, more
            than 100,000 images.
    """
    if not isinstance(count, (int, np.integer)) or count < 1:
        raise RequestError(f"count must be an integer of at least 1, got {count!r}")
    if wanted is None:
        what = "a prompt" if isinstance(info, TextCondition) else "a class"
        raise RequestError(f"nothing to generate: give {what}, or several, as {place}")
    if isinstance(info, TextCondition):
        prompts = prompts_of(wanted)
        if prompts is None:
            states = info.array(wanted)
            _check_images(len(states) * int(count))
            labels = [f"text {row}" for row in range(len(states)) for _ in range(count)]
            return {"text": states.repeat(count, 0)}, labels
        _check_images(len(prompts) * int(count))
        every = [each for each in prompts for _ in range(count)]
        return {"text": every}, every
    if hasattr(wanted, "__array__") and np.asarray(wanted).dtype.kind == "f":
        raise RequestError("this bundle is class-conditional: give classes, not text states")
    several: Any = np.atleast_1d(wanted) if isinstance(wanted, np.ndarray) else wanted
    if isinstance(wanted, (str, bytes)) or not isinstance(several, (Sequence, np.ndarray)):
        several = [wanted]
    found = info.array([info.class_id(each) if isinstance(each, str) else each for each in several])
    _check_images(len(found) * int(count))
    ids = found.repeat(count).tolist()
    return {"class_ids": ids}, [info.label(each) for each in ids]


def check_names(
    info: Condition,
    settings: type[Settings],
    given: Collection[str],
    *,
    call: bool = False,
    edit: bool = False,
) -> None:
    """Refuse arguments that have another name here.

    Args:
        info: of the bundle.
        settings: of its family.
        given: names of the arguments that are none of ``Generator.generate`` or of a call.
        call: whether it is a call, whose first argument says what to generate.
        edit: whether it is one of ``Generator.edit``.

    Raises:
        RequestError: arguments of diffusers' pipelines, or of ``generate`` in a call.
    """
    condition = "text" if isinstance(info, TextCondition) else "class_ids"
    place = SECOND if edit else _FIRST
    if call and (other := [each for each in ("text", "class_ids") if each in given]):
        raise RequestError(f"{other[0]} is for generate: here it is {place}, without a name")
    first = place if call else condition
    known = {
        "prompt": first,
        "class_labels": first,
        "prompt_embeds": f"{first}, as states [B, L, D]",
        "negative_prompt": "negative",
        "negative_prompt_embeds": "negative, as states [L, D]",
        "num_images_per_prompt": "count" if call else "a list with as many of each",
        "generator": "seed",
        "mask_image": "mask" if edit else "mask, of Generator.edit",
        **settings.diffusers,
    }
    if theirs := [f"{each} is {known[each]}" for each in given if each in known]:
        raise RequestError(f"got arguments of diffusers; here {'; '.join(theirs)}")


def _check_images(count: int) -> None:
    """Refuse more than one result can be expected to hold."""
    if count > _MOST_IMAGES:
        raise RequestError(
            f"{count:,} images are too many for one call, at most {_MOST_IMAGES:,}: call it for "
            "some at a time, with seed= for the first of them"
        )
