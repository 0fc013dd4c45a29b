"""What every request has, in any family: a condition and a seed for each image, and settings."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fewstep.runtime.asked import check_names
from fewstep.runtime.condition import Text, condition_of, negative_of
from fewstep.runtime.devices import Array
from fewstep.runtime.errors import RequestError, brief
from fewstep.runtime.families import Model, family_of
from fewstep.runtime.settings import settings_of

_MAX_SEED = 2**64 - 1


def checked_request(
    model: Model,
    *,
    class_ids: Sequence[int] | None,
    text: Text | None,
    seed: int | Sequence[int],
    settings: Mapping[str, Any],
    negative: str | Array | None = None,
    edit: Mapping[str, Array] | None = None,
) -> Any:
    """A request of a model's family, checked without engines; arguments as of
    :meth:`fewstep.runtime.generator.Generator.request`.

    Raises:
        RequestError: an argument the bundle cannot serve.
        BundleError: the tokenizer's file is damaged.
        MissingDependencyError: tokenizers is not installed.
    """
    info = model.info.condition
    check_names(info, type(model.info.defaults), settings)
    condition = condition_of(info, class_ids, text, model.tokenizer)
    seeds = seeds_of(seed, len(condition))
    chosen = settings_of(model.info.defaults, settings)
    request = family_of(model.info.kind).request(model, condition, seeds, chosen, edit)
    if negative is None or (isinstance(negative, str) and not negative.strip()):
        return request
    return replace(request, negative=negative_of(info, negative, model.tokenizer))


def seeds_of(seed: int | Sequence[int], count: int) -> npt.NDArray[np.uint64]:
    """One seed per image: ``seed + i``, or those given.

    Raises:
        RequestError: not integers, a wrong number of seeds, or one outside 0 … 2⁶⁴ − 1.
    """
    single = not isinstance(seed, (Sequence, np.ndarray))
    given: list[object] = [seed] if single else list(seed)  # type: ignore[arg-type]
    if wrong_kind := [value for value in given if not isinstance(value, (int, np.integer))]:
        raise RequestError(f"seeds must be integers, got {brief(wrong_kind[0])}")
    seeds = [int(value) for value in given]  # type: ignore[call-overload]
    if single:
        seeds = [seeds[0] + i for i in range(count)]
    if len(seeds) != count:
        raise RequestError(f"expected {count} seeds, one per image, got {len(seeds)}")
    if wrong := [value for value in seeds if not 0 <= value <= _MAX_SEED]:
        raise RequestError(f"seeds must be 0 … 2^64 − 1, got {wrong[0]}")
    return np.array(seeds, np.uint64)


def derived_seed(seed: int, what: str, number: int) -> int:
    """A seed that depends on these alone: the first 53 bits of BLAKE2b of "seed:what:number".

    Digests have 8 bytes, big-endian. Any reader of JSON holds 53 bits exactly.
    """
    text = f"{seed}:{what}:{number}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 11


def batches(count: int, most: int) -> list[slice]:
    """``count`` rows in slices of at most ``most``."""
    return [slice(first, min(first + most, count)) for first in range(0, count, most)]


def decoder_of(chosen: Any) -> str | None:
    """The graph that a request or key chooses to draw, where its family lets it."""
    return getattr(chosen, "decoder", None)
