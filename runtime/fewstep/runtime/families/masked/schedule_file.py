"""Values for every step from a file (YAML or JSON) or a mapping, given as the schedule.

Our own form: a list has one number for every step; a number, ``START:END`` or a curve's name is as
on the command line, and what is absent comes from elsewhere:

    mask_ratio: [0.9, 0.6, 0.3, 0]    # fraction still masked after each step, or a curve's name
    sampling_temperature: 1
    masking_temperature: [3, 2, 1, 0]
    guidance: 0:3

Strategies searched by AutoNAT, as published (``configs/AutoNAT_L-T8_strategy.yaml`` of
LeapLabTHU/ImprovedNAT), are read as their sampler uses them (``libs/nat_misc.py`` and ``train.py``
there), whose conventions are ours: logits = cond + cfg·(cond − uncond); a token is drawn from
softmax(logits / samp_temp); confidence = log_softmax(logits)[token] + temp · Gumbel; ratio is the
fraction masked afterwards. ``manual_ratios`` and ``manual_temp`` leave out the last step, at which
both are 0. A list of one number was written as the number. That sampler decides at least one token
a step; whether a bundle does is its model's ``at_least_one``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fewstep.runtime.errors import RequestError, choose
from fewstep.runtime.settings import PerStep

SUFFIXES = (".yaml", ".yml", ".json")
_FIELDS = ("steps", "mask_ratio", "sampling_temperature", "masking_temperature", "guidance")
_AUTONAT = {
    "manual_ratios": "schedule",
    "manual_temp": "masking_temperature",
    "manual_samp_temp": "sampling_temperature",
    "manual_cfg": "guidance",
}
_ENDS_AT_ZERO = ("manual_ratios", "manual_temp")
_MOST_BYTES = 1_000_000


def expanded(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Settings as given, with those of a schedule that is a file or a mapping in its place.

    Raises:
        RequestError: an unreadable file, fields or numbers that do not fit, a setting given twice.
    """
    source, file = given.get("schedule"), named_file(given)
    if isinstance(source, Mapping):
        name, fields = "the schedule", source
    elif file is not None:
        name, fields = file, _read(Path(file))
    else:
        return given
    found = _autonat(name, fields) if fields.keys() & _AUTONAT.keys() else _own(name, fields)
    others = {key: value for key, value in given.items() if key != "schedule"}
    steps = found.get("steps")
    if steps is not None and str(others.pop("steps", steps)) != str(steps):
        raise RequestError(f"{name} is for {steps} steps, got steps {given['steps']}")
    if twice := sorted(found.keys() & others.keys()):
        raise RequestError(
            f"{name} gives {', '.join(twice)} already: leave it out, or change it there"
        )
    return {**others, **found}


def named_file(given: Mapping[str, Any]) -> str | None:
    """The file that the schedule is, if it is one."""
    source = given.get("schedule")
    is_file = isinstance(source, (str, Path)) and Path(source).suffix.lower() in SUFFIXES
    return str(source) if is_file else None


def _read(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise RequestError(f"{path} is no schedule: it is larger than {_MOST_BYTES:,} bytes")
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix.lower() == ".json" else _yaml(text)
    except OSError as error:
        raise RequestError(f"cannot read the schedule {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(f"{path} is no {path.suffix[1:].upper()} file: {error}") from error
    if not isinstance(content, dict) or not content:
        raise RequestError(f"{path}: expected fields such as {', '.join(_FIELDS[1:])}")
    return {str(key): value for key, value in content.items()}


def _yaml(text: str) -> Any:
    import yaml  # takes a while, and few schedules are files

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


def _own(name: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    for field in fields:
        if field not in _FIELDS:
            raise RequestError(f"{name}: {choose('field', str(field), _FIELDS)}")
    given = {key: value for key, value in fields.items() if value is not None}
    steps = given.get("steps", 1)
    if isinstance(steps, bool) or not (isinstance(steps, (int, np.integer)) or _is_count(steps)):
        raise RequestError(f"{name}: steps must be an integer, got {steps!r}")
    found = {key: _list(name, key, value) for key, value in given.items()}
    ratios = found.get("mask_ratio", "")
    if not isinstance(ratios, (str, PerStep)):
        raise RequestError(
            f"{name}: mask_ratio must be a list with a number for every step, or a curve's name, "
            f"got {ratios!r}"
        )
    found = _with_steps(name, found)
    return {"schedule" if key == "mask_ratio" else key: value for key, value in found.items()}


def _is_count(value: Any) -> bool:
    return isinstance(value, str) and value.strip().isdecimal()


def _autonat(name: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    wrong = [f"unknown field '{field}'" for field in fields if field not in _AUTONAT]
    wrong += [f"no {field}" for field in _AUTONAT if field not in fields]
    if wrong:
        raise RequestError(
            f"{name}: a strategy of AutoNAT has {', '.join(_AUTONAT)}; this has {', '.join(wrong)}"
        )
    lists = {
        key: list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        for key, value in fields.items()
    }
    steps = len(lists["manual_cfg"])
    if steps == 1:  # nothing comes before the last step
        lists |= {key: [] for key in _ENDS_AT_ZERO}
    found = {}
    for key, values in lists.items():
        complete = [*values[: steps - 1], 0.0] if key in _ENDS_AT_ZERO else values
        if len(complete) != steps:
            least = steps - 1 if key in _ENDS_AT_ZERO else steps
            raise RequestError(
                f"{name}: {steps} steps (as in manual_cfg) need {least} values of {key}, got "
                f"{len(values)}"
            )
        found[_AUTONAT[key]] = _list(name, key, complete)
    return _with_steps(name, found)


def _list(name: str, field: str, value: Any) -> Any:
    """A list as one value a step, even of two; anything else as it is."""
    given = value.tolist() if isinstance(value, np.ndarray) else value
    if isinstance(given, str) or not isinstance(given, Sequence):
        return given
    try:
        return PerStep.of(given)
    except ValueError as error:
        raise RequestError(f"{name}: {field} {error}") from error


def _with_steps(name: str, found: dict[str, Any]) -> dict[str, Any]:
    """The number of steps that all lists agree on, beside them."""
    lengths = {key: len(value) for key, value in found.items() if isinstance(value, PerStep)}
    said = {str(found["steps"])} if "steps" in found else set[str]()
    if len(said | {str(length) for length in lengths.values()}) > 1:
        counts = {"steps": found["steps"]} if "steps" in found else {}
        shown = ", ".join(f"{key} {count}" for key, count in (counts | lengths).items())
        raise RequestError(f"{name}: lists need one value for every step, got {shown}")
    return {"steps": next(iter(lengths.values())), **found} if lengths else found
