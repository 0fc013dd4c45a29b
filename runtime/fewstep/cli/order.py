"""The images that ``fewstep generate`` is asked for: a condition and a seed for each.

Image k of an order depends on the words of the command and on k alone, so orders may be cut into
batches and shards, and continued, without a change to any image.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.cli.common import say_note
from fewstep.runtime.class_names import named, normal
from fewstep.runtime.errors import RequestError

if TYPE_CHECKING:
    from fewstep.runtime.condition import ClassCondition, Condition
    from fewstep.runtime.devices import Array

ALL, RANDOM, BALANCED = "all", "random", "balanced"


@dataclass(frozen=True)
class Order:
    """Images to be made.

    ``conditions``: a class id for each, or a row of ``text [rows, L, D]``. ``seeds``: one for each.
    ``labels``: what to call each. ``each``: images of every condition, where all have as many and
    stand together.
    """

    conditions: tuple[int, ...]
    seeds: tuple[int, ...]
    labels: tuple[str, ...]
    each: int = 1
    text: Array | None = None

    def __len__(self) -> int:
        return len(self.seeds)

    def take(self, wanted: Sequence[int]) -> dict[str, Any]:
        """Some images, as arguments of ``Generator.generate``."""
        conditions = [self.conditions[k] for k in wanted]
        seeds = [self.seeds[k] for k in wanted]
        if self.text is not None:
            return {"class_ids": None, "text": self.text[conditions], "seed": seeds}
        return {"class_ids": conditions, "text": None, "seed": seeds}

    def shard(self, wanted: str) -> Order:
        """Every n-th image: ``i/n``, of which i counts from 1.

        Raises:
            RequestError: something else.
        """
        found = re.fullmatch(r"([0-9]+)/([0-9]+)", wanted)
        number, shards = map(int, found.groups()) if found else (0, 0)
        if not 1 <= number <= shards:
            raise RequestError(f"--shard must be i/n, 1/4 … 4/4 for four, got {wanted}")
        cut = slice(number - 1, None, shards)
        if not self.seeds[cut]:
            raise RequestError(f"shard {wanted} of {len(self)} images has none: use fewer shards")
        parts = {name: getattr(self, name)[cut] for name in ("conditions", "seeds", "labels")}
        return replace(self, **parts, each=1)


def ordered(
    info: Condition,
    classes: Sequence[str] | None,
    text: Path | None,
    count: int,
    seed: int,
) -> Order:
    """The order of a command's words.

    Args:
        info: what the bundle is conditioned on.
        classes: ids and names, several in one with commas; or one word for how to choose them.
        text: a file of text states.
        count: images of each class or text; of all together for ``random`` and ``balanced``.
        seed: of the first image; others count up.

    Raises:
        RequestError: an unknown class, neither classes nor text, an unreadable file.
    """
    from fewstep.runtime.condition import ClassCondition, condition_of, read_text

    if text is not None:
        states = condition_of(info, None, read_text(text))
        rows = [row for row in range(len(states)) for _ in range(count)]
        labels = tuple(f"text {row}" for row in rows)
        return Order(tuple(rows), _seeds(seed, len(rows)), labels, count, states)
    if not classes:
        kind = "--class" if isinstance(info, ClassCondition) else "--text"
        raise RequestError(f"nothing to generate: give {kind}")
    if not isinstance(info, ClassCondition):
        raise RequestError("this bundle is text-conditional: give --text, not --class")
    ids, each = _class_ids(info, classes, count, seed)
    info.array(ids)
    names = {each: info.label(each) for each in set(ids)}
    return Order(tuple(ids), _seeds(seed, len(ids)), tuple(names[each] for each in ids), each)


def _class_ids(
    info: ClassCondition, classes: Sequence[str], count: int, seed: int
) -> tuple[list[int], int]:
    """A class id for each image, and how many stand together."""
    words = [word for word in classes if _chooses(info, word)]
    if words and len(classes) > 1:
        raise RequestError(f"--class {words[0]} chooses all classes: give no other")
    if not words:
        found = [each for text in classes for each in info.class_ids(text)]
        return [each for each in found for _ in range(count)], count
    known = info.ids
    if words[0] == ALL:
        return [each for each in known for _ in range(count)], count
    if words[0] == BALANCED:
        return [known[k % len(known)] for k in range(count)], 1
    return [known[_draw(seed, k) % len(known)] for k in range(count)], 1


def _chooses(info: ClassCondition, word: str) -> bool:
    """Whether a word says how to choose; a class that is called so goes first."""
    if word not in (ALL, RANDOM, BALANCED):
        return False
    if named(normal(word), info.class_names or ()):
        say_note(f"'{word}' is taken for the class of this name")
        return False
    return True


def _draw(seed: int, k: int) -> int:
    """A number that depends on both alone, the same in every version and on every machine."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{k}".encode(), digest_size=16).digest(), "big")


def _seeds(first: int, count: int) -> tuple[int, ...]:
    return tuple(range(first, first + count))
