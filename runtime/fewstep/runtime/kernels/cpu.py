"""The decode kernels by name, compiled for the CPU."""

from __future__ import annotations

from collections.abc import Callable

from fewstep.runtime.kernels.initial_tokens import initial_tokens
from fewstep.runtime.kernels.policy_parameters import policy_parameters
from fewstep.runtime.kernels.remask import remask
from fewstep.runtime.kernels.sample_tokens import sample_tokens
from fewstep.runtime.kernels.to_pixels import to_pixels

KERNELS: dict[str, Callable[..., None]] = {
    "initial_tokens": initial_tokens,
    "policy_parameters": policy_parameters,
    "remask": remask,
    "sample_tokens": sample_tokens,
    "to_pixels": to_pixels,
}
