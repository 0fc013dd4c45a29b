"""Local steps: some positions computed beside others, whose keys and values are cached (ReCAP).

A full step computes all positions, and keys and values of every block stay in a cache. A local step
after it computes its group alone: the positions that the full step and its local steps decide. They
attend to each other, to the context, and to the cached keys and values of all other positions.

    full step before local ones:
      transformer(tokens of all positions, nothing) → logits, cache
      gather_rows(cache, others) → past
    local step:
      gather_rows(tokens[t], group) → transformer_tokens
      transformer(transformer_tokens, positions of the group, past) → group_logits
      scatter_rows(group_logits, group) → logits

So the logits of all positions lie in one place, and those of the group are new.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fewstep.runtime.devices import ALIGNMENT, BufferSpec
from fewstep.runtime.families import Model
from fewstep.runtime.families.masked.model import MaskedModel
from fewstep.runtime.program import Launch, Op, Run, View, packed

Ids = npt.NDArray[np.int32]

_UNIT = ALIGNMENT // 4  # numbers between two places where a tensor may begin


@dataclass(frozen=True)
class Group:
    """A full step with the local steps after it, and the positions that they decide.

    ``start`` and ``end``: the full step, and the last local one + 1. ``first`` and ``last``: ranks
    of the positions, the last + 1.
    """

    start: int
    end: int
    first: int
    last: int

    @property
    def size(self) -> int:
        """Positions that a local step computes."""
        return self.last - self.first


@dataclass(frozen=True)
class LocalSteps:
    """Which steps are local; all others compute every position.

    ``decided [T + 1]``: how many positions are before every step and after the last. ``groups``: in
    their order, at least one.
    """

    decided: tuple[int, ...]
    groups: tuple[Group, ...]

    def starting(self, step: int) -> Group | None:
        """The group whose full step this is."""
        return next((each for each in self.groups if each.start == step), None)

    def around(self, step: int) -> Group | None:
        """The group whose local step this is."""
        return next((each for each in self.groups if each.start < step < each.end), None)


def local_steps(
    decided: tuple[int, ...], count: int, after_full: int, full_first: int
) -> LocalSteps | None:
    """Which steps are local, or ``None`` where none is.

    Steps that decide nothing, and those whose group is all positions, compute everything.

    Args:
        decided: as of :class:`LocalSteps`.
        count: positions of an image.
        after_full: local steps after every full one.
        full_first: steps at the start that compute everything, and that none follows.
    """
    steps, found = len(decided) - 1, list[Group]()
    for start in range(full_first, steps, after_full + 1):
        end = min(start + after_full + 1, steps)
        group = Group(start, end, decided[start], decided[end])
        if end - start > 1 and 0 < group.size < count:
            found.append(group)
    return LocalSteps(decided, tuple(found)) if found else None


def places(local: LocalSteps, ranks: Ids, halves: int) -> dict[str, npt.ArrayLike]:
    """Where the positions of every group are, and all others, a row a group.

    Args:
        local: the groups.
        ranks: of the positions, ``[B, N]``; −1 for those that are never decided.
        halves: of the transformer's batch.

    Returns:
        ``group_positions``: ``[R, n]`` of a group; ``group_index`` and ``other_index``: the same
        and those of all others, counted through the positions of all R rows.
    """
    count = ranks.shape[1]
    sequence = np.argsort(np.where(ranks < 0, count, ranks), axis=1, kind="stable")
    sequence = np.tile(sequence.astype(np.int32), (halves, 1))
    starts = np.arange(len(sequence), dtype=np.int32)[:, None] * np.int32(count)
    own = [sequence[:, group.first : group.last] for group in local.groups]
    others = [np.delete(sequence, np.s_[group.first : group.last], 1) for group in local.groups]
    return {
        "group_positions": packed(own),
        "group_index": packed([each + starts for each in own]),
        "other_index": packed([each + starts for each in others]),
    }


def tried(local: LocalSteps, batch: int, count: int, halves: int) -> dict[str, npt.ArrayLike]:
    """Inputs of a plan that is tried before anything is asked of it; ranks are those of ``N``."""
    ranks = np.tile(np.arange(count, dtype=np.int32), (batch, 1))
    decided = np.array(local.decided, np.int32)[:, None]
    return {"decided": decided, **places(local, ranks, halves)}


def positions(info: MaskedModel) -> dict[str, npt.ArrayLike]:
    """The input that says where all tokens are."""
    return {"positions": np.arange(info.num_tokens, dtype=np.int32)} if info.cached_blocks else {}


def full_bindings(info: MaskedModel, rows: int) -> dict[str, View]:
    """What a transformer with a cache is bound to beside the others, for all positions."""
    if not info.cached_blocks:
        return {}
    count, width = info.num_tokens, info.feature_width
    bindings = {"positions": View("positions")[:rows]}
    for index, name in enumerate(info.cache_names):
        bindings[f"past_{name}"] = View("nothing", 0).reshaped(rows, 0, width)
        bindings[f"new_{name}"] = View("cache", index).reshaped(rows, count, width)
    return bindings


def keep_others(info: MaskedModel, local: LocalSteps, group: Group, rows: int) -> Launch:
    """Keys and values of all positions but those of a group, for its local steps."""
    others = rows * (info.num_tokens - group.size)
    index = View("other_index", local.groups.index(group)).reshaped(others, 1)
    return _moved(
        "gather_rows", View("cache"), index, info.feature_width, View("past"), group.start
    )


def local_run(
    info: MaskedModel, local: LocalSteps, group: Group, rows: int, step: int, *, features: bool
) -> Iterator[Op]:
    """Logits of a group, in the place of those before."""
    count, width, codes = info.num_tokens, info.feature_width, info.logits_width
    size, place = group.size, local.groups.index(group)
    index = View("group_index", place).reshaped(rows * size, 1)
    every = View("tokens", step).reshaped(1, rows * count)
    own = View("transformer_tokens").reshaped(1, rows * size)
    yield _moved("gather_rows", every, index, 1, own, step)
    bindings = {
        "tokens": View("transformer_tokens").reshaped(rows, size),
        "positions": View("group_positions", place).reshaped(rows, size),
        info.condition_input: View("condition")[:rows],
        "logits": View("group_logits").reshaped(rows, size, codes),
    }
    if features:
        bindings["features"] = View("features").reshaped(rows, size, width)
    for number, name in enumerate(info.cache_names):
        past = View("past", number).reshaped(rows, count - size, width)
        # What is cached was gathered before, so that its place is free.
        new = View("cache", number).reshaped(rows, size, width)
        bindings |= {f"past_{name}": past, f"new_{name}": new}
    yield Run("transformer", bindings, step)
    new = View("group_logits").reshaped(1, rows * size * codes)
    logits = View("logits").reshaped(1, rows * count * codes)
    yield _moved("scatter_rows", new, index, codes, logits, step)


def _moved(kernel: str, source: View, index: View, width: int, target: View, step: int) -> Launch:
    whole = "source" if kernel == "gather_rows" else "target"  # only some of its rows are moved
    arguments: dict[str, View | int | float] = {
        "source": source,
        "index": index,
        "width": width,
        "target": target,
    }
    return Launch(kernel, arguments, ("target",), step, "transformer", skips=(whole,))


def cache_buffers(info: MaskedModel, rows: int) -> dict[str, BufferSpec]:
    """Beside the others of a transformer with a cache."""
    if not info.cached_blocks:
        return {}
    return {
        "positions": BufferSpec((rows, info.num_tokens), "int32", "input"),
        "nothing": BufferSpec((1, _UNIT), "float32"),
        "cache": _cache(info, rows * info.num_tokens),
    }


def local_buffers(model: Model, local: LocalSteps, rows: int) -> dict[str, BufferSpec]:
    """Beside those, of local steps."""
    info, sizes = model.info, [group.size for group in local.groups]
    logits = model.graphs["transformer"].outputs["logits"].dtype
    most, least = max(sizes), min(sizes)
    found = {
        "past": _cache(info, rows * (info.num_tokens - least)),
        "group_logits": BufferSpec((rows * most * info.logits_width,), logits),
    }
    tables = {"group_positions": most, "group_index": most, "other_index": info.num_tokens - least}
    for name, size in tables.items():
        found[name] = BufferSpec((len(sizes), _whole(rows * size)), "int32", "input")
    return found


def _cache(info: MaskedModel, positions: int) -> BufferSpec:
    """Keys and values of every block at so many positions, a row each."""
    return BufferSpec((len(info.cache_names), _whole(positions * info.feature_width)), "float32")


def _whole(numbers: int) -> int:
    """So many that the next row may begin a tensor."""
    return -(-numbers // _UNIT) * _UNIT
