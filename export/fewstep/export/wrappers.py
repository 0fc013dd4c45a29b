"""Finding a model's state dict inside what training scripts save around it.

A file may hold the state dict under ``model`` or ``state_dict``, its keys may begin with
``module.``, ``_orig_mod.`` or the name of the module that the model was part of, and averaged
weights (EMA) may lie beside those in training. Names decide none of this: a dictionary and a
prefix are taken because the keys that remain are the model's. Names only choose between several
that fit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from fewstep.export.checkpoint import Checkpoint, Content
from fewstep.export.filekind import shown
from fewstep.export.layout import some
from fewstep.export.stored import hyper_parameters
from fewstep.runtime.errors import CheckpointError

_INNER = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_EMA = re.compile(r"(?<![A-Za-z])ema(?![A-Za-z])", re.I)
_CAMEL_EMA = re.compile(r"[a-z]E[Mm][Aa](?![a-z])")
_BESIDE = re.compile(
    r"position_ids"
    r"|^(loss(es)?|criterion|disc(riminator)?|perceptual(_loss)?|lpips)\."
    r"|(^|\.)(model_)?ema\.(decay|num_updates)$"
    r"|(^|\.)(total_ops|total_params|n_averaged|num_batches_tracked)$"
)
_MOST_DEPTH = 6
_LEAST_SHARE = 0.05
"""Of the wanted keys: fewer are chance, such as one ``norm.weight``. A model of fewer blocks than
the published ones has few of their keys."""


@dataclass(frozen=True)
class Wanted:
    """What to look for.

    Args:
        keys: those of the model's state dict that are exported.
        aliases: keys under which another system publishes the same tensors, to the model's.
        alias_of: that system.
        unused: beginnings of keys that are not exported, those of a tokenizer's encoder where
            nothing is edited: absent, extra or different, they are dropped.
        beside: matches further keys that may be there and are dropped.
        preferred: ends of prefixes to take before others that fit too, the best first.
        avoided: matches prefixes of another model that has the same keys.
        bare_note: what to say of a state dict without anything around it.
    """

    keys: frozenset[str]
    aliases: Mapping[str, str] = field(default_factory=dict)
    alias_of: str = ""
    unused: tuple[str, ...] = ()
    beside: str = r"(?!)"
    preferred: tuple[str, ...] = ()
    avoided: str = r"(?!)"
    bare_note: str = ""


@dataclass(frozen=True)
class _Candidate:
    """A dictionary and a prefix under which keys of the model are.

    ``trail``: where the dictionary is; ``sources``: its keys by the model's.
    """

    trail: tuple[str, ...]
    prefix: str
    sources: Mapping[str, str]
    tensors: Mapping[str, Tensor]
    without_dots: bool = False

    @property
    def name(self) -> str:
        return shown(".".join((*self.trail, self.prefix)).rstrip(".")) or "the top"

    @property
    def inner_name(self) -> str:
        """Without wrappers."""
        return _inner(self.name)

    @property
    def averaged(self) -> bool:
        return any(is_ema(each) for each in (*self.trail, *self.prefix.split(".")))


def is_ema(name: str) -> bool:
    """Whether a name says that weights are an exponential moving average."""
    return bool(_EMA.search(name) or _CAMEL_EMA.search(name))


def find(path: Path, content: Content, wanted: Wanted) -> Checkpoint | None:
    """What a file holds for a model; ``None`` if it has hardly any of its keys.

    Raises:
        CheckpointError: several sets of weights fit, and nothing says which is meant.
    """
    candidates = _all_candidates(content, wanted)
    if not candidates:
        return None
    chosen, others = _choose(path, candidates, wanted)
    state = {name: chosen.tensors[key] for name, key in chosen.sources.items()}
    notes = [*content.notes, *_notes(chosen, others, wanted)]
    if wanted.bare_note and not chosen.trail and not chosen.prefix:
        notes.append(wanted.bare_note)
    if chosen.averaged and (raw := [each for each in others if not each.averaged]):
        # Averages are kept of what is trained, not of buffers and what is frozen.
        lacking = raw[0].sources.keys() - state.keys()
        state |= {name: raw[0].tensors[raw[0].sources[name]] for name in lacking}
        if lacking:
            notes.append(f"took {_count(lacking)} that it lacks from {raw[0].name}")
    if not chosen.averaged:
        state, said = _with_listed(content, chosen, state)
        notes += said
    extra, left_out = _rest(chosen, others, wanted)
    if left_out:
        notes.append(f"left out {_count(left_out)} beside them ({_groups(left_out)})")
    stored, disputed = hyper_parameters(content, chosen.trail)
    return Checkpoint(state | extra, stored, tuple(notes), disputed)


def _with_listed(
    content: Content, chosen: _Candidate, state: dict[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """The weights, or averages of them that a file keeps as a list, in the order of the parameters
    (torch_ema, diffusers); and what to say of that."""
    names = {key: name for name, key in chosen.sources.items()}
    ordered = [names[key] for key in chosen.tensors if key in names]
    for trail, listed in _lists(content.tree):
        if not any(is_ema(each) or each == "shadow_params" for each in trail):
            continue
        place = shown(".".join(trail))
        fits = len(listed) == len(ordered) and all(
            each.shape == state[name].shape for name, each in zip(ordered, listed, strict=True)
        )
        if fits:
            averages = dict(zip(ordered, listed, strict=True))
            return averages, [f"took {place}, the averaged weights (EMA), a list in their order"]
        return state, [f"{place} holds averaged weights without names, which do not fit: not used"]
    return state, []


def _lists(
    tree: Mapping[Any, Any], trail: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], list[Tensor]]]:
    """All lists of tensors."""
    for key, each in tree.items():
        inside = (*trail, str(key))
        if isinstance(each, (list, tuple)) and each and all(isinstance(x, Tensor) for x in each):
            yield inside, list(each)
        elif isinstance(each, dict) and len(trail) < _MOST_DEPTH:
            yield from _lists(each, inside)


def most_keys(content: Content, wanted: Wanted) -> int:
    """How many of the wanted keys the best set of weights of a file has."""
    return max((len(each.sources) for each in _all_candidates(content, wanted)), default=0)


def tensor_keys(content: Content) -> list[str]:
    """Keys of all tensors, each within its own dictionary."""
    return [key for _, tensors in _dictionaries(content.tree) for key in tensors]


def _dictionaries(
    tree: Mapping[Any, Any], trail: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """All dictionaries that hold tensors, outer ones first."""
    tensors = {
        key: each for key, each in tree.items() if isinstance(key, str) and isinstance(each, Tensor)
    }
    if tensors:
        yield trail, tensors
    if len(trail) < _MOST_DEPTH:
        for key, each in tree.items():
            if isinstance(each, dict):
                yield from _dictionaries(each, (*trail, str(key)))


def _all_candidates(content: Content, wanted: Wanted) -> list[_Candidate]:
    return [
        each
        for trail, tensors in _dictionaries(content.tree)
        for each in _candidates(trail, tensors, wanted)
        if len(each.sources) >= _LEAST_SHARE * len(wanted.keys)
    ]


def _candidates(
    trail: tuple[str, ...], tensors: Mapping[str, Tensor], wanted: Wanted
) -> list[_Candidate]:
    names = {key: key for key in wanted.keys} | {_inner(key): key for key in wanted.keys}
    names |= wanted.aliases
    found: dict[str, dict[str, str]] = {}
    for key in tensors:
        parts = key.split(".")
        for at in range(len(parts)):
            # A leading wrapper is part of the prefix, unless the model's own keys begin so.
            whole = ".".join(parts[at:])
            rest = whole if whole in wanted.keys or parts[at] in _INNER else _inner(whole)
            if rest in names:
                prefix = "".join(f"{part}." for part in parts[:at])
                found.setdefault(prefix, {}).setdefault(names[rest], key)
    flat = _without_dots(tensors, wanted.keys)
    return [
        _Candidate(trail, prefix, sources, tensors, without_dots=each is flat)
        for each in (found, flat)
        for prefix, sources in each.items()
    ]


def _inner(key: str) -> str:
    """A key without the wrappers of modules inside the model."""
    return ".".join(part for part in key.split(".") if part not in _INNER) or key


def _without_dots(tensors: Mapping[str, Tensor], keys: frozenset[str]) -> dict[str, dict[str, str]]:
    """Averages as LDM's and taming's ``LitEma`` keeps them: the keys without their dots."""
    names = {key.replace(".", ""): key for key in keys}
    found: dict[str, dict[str, str]] = {}
    for key in tensors:
        outer, _, last = key.rpartition(".")
        if not is_ema(outer):
            continue
        at = next((at for at in range(len(last)) if last[at:] in names), None)
        if at is not None:
            prefix = f"{outer}.{last[:at]}"
            found.setdefault(prefix, {}).setdefault(names[last[at:]], key)
    return found


def _choose(
    path: Path, candidates: Sequence[_Candidate], wanted: Wanted
) -> tuple[_Candidate, list[_Candidate]]:
    """The candidate to take, and the others that are as good but for their name."""
    most = max(len(each.sources) for each in candidates)
    good = [each for each in candidates if 2 * len(each.sources) > most]
    proper = [each for each in good if not re.search(wanted.avoided, each.inner_name)] or good
    raw = [each for each in proper if not each.averaged and len(each.sources) == most]
    pool = [each for each in proper if each.averaged] or raw or proper
    for name in wanted.preferred:
        if some_named := [each for each in pool if each.inner_name.endswith(name)]:
            pool = some_named
            break
    pool = sorted(pool, key=lambda each: -len(each.sources))
    first = pool[0]
    if different := [each for each in pool[1:] if not _equal(first, each)]:
        names = [each.name for each in (first, *different)]
        raise CheckpointError(
            f"{path} holds {len(names)} different sets of weights that fit ({some(names)}), and "
            "nothing says which is meant; save the one to export alone, with torch.save"
        )
    return first, sorted(
        (each for each in proper if each is not first), key=lambda each: -len(each.sources)
    )


def _equal(a: _Candidate, b: _Candidate) -> bool:
    """Whether two candidates hold the same numbers."""
    return a.sources.keys() == b.sources.keys() and all(
        _same(a.tensors[a.sources[name]], b.tensors[b.sources[name]]) for name in a.sources
    )


def _same(a: Tensor, b: Tensor) -> bool:
    if a is b:
        return True
    try:
        return a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())
    except (RuntimeError, NotImplementedError, TypeError):  # sparse, quantized, without values
        return False


def _notes(chosen: _Candidate, others: Sequence[_Candidate], wanted: Wanted) -> Iterator[str]:
    if others and chosen.averaged:
        count = len(others) + 1
        yield f"took {chosen.name}, the averaged weights (EMA), of {count} sets of weights"
    elif others:
        yield f"took {chosen.name} of {len(others) + 1} sets of weights"
    elif chosen.trail:
        yield f"took what is under {shown('.'.join(chosen.trail))}"
    if chosen.prefix:
        yield f"removed the prefix {shown(chosen.prefix)}"
    inside = {
        part
        for name, key in chosen.sources.items()
        for part in set(key[len(chosen.prefix) :].split(".")) - set(name.split("."))
        if part in _INNER
    }
    if inside:
        yield f"removed {', '.join(sorted(inside))} from within keys"
    if any(wanted.aliases.get(key[len(chosen.prefix) :]) for key in chosen.sources.values()):
        yield f"renamed its keys, which are those of {wanted.alias_of}"


def _rest(
    chosen: _Candidate, others: Sequence[_Candidate], wanted: Wanted
) -> tuple[dict[str, Tensor], list[str]]:
    """Of the chosen dictionary: tensors that the model should have but has not; those left out."""
    sets = [each for each in others if each.trail == chosen.trail]
    taken = {key for each in (chosen, *sets) for key in each.sources.values()}
    extra: dict[str, Tensor] = {}
    left_out = []
    for key, tensor in chosen.tensors.items():
        name = _inner(key.removeprefix(chosen.prefix))
        within = key.startswith(chosen.prefix)
        if key in taken or (within and name.startswith(wanted.unused)):
            continue
        # Numbers of the training script, and what an average without dots is of.
        loose = "." not in key and tensor.numel() == 1 or chosen.without_dots
        if not within or loose or _BESIDE.search(name) or re.search(wanted.beside, name):
            left_out.append(key)
        else:
            extra[name] = tensor
    return extra, left_out


def _count(keys: Sized) -> str:
    return f"{len(keys)} tensor{'' if len(keys) == 1 else 's'}"


def _groups(keys: Sequence[str]) -> str:
    """Keys by their first part: ``loss.*, model.*``."""
    found = dict.fromkeys(
        f"{shown(key.split('.')[0])}.*" if "." in key else shown(key) for key in keys
    )
    return some(list(found))
