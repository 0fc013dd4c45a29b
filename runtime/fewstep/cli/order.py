"""The images that ``fewstep generate`` is asked for: a condition and a seed for each.

Image k of an order depends on the words of the command and on k alone, so orders may be cut into
batches and shards, and continued, without a change to any image.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fewstep.cli.common import say_note
from fewstep.runtime.class_names import named, normal
from fewstep.runtime.errors import RequestError
from fewstep.runtime.prompts import shown

if TYPE_CHECKING:
    from fewstep.runtime.condition import ClassCondition, Condition
    from fewstep.runtime.devices import Array

ALL, RANDOM, BALANCED = "all", "random", "balanced"
_MOST = 5_000_000  # images of a run: what is listed of them takes half a gigabyte


@dataclass(frozen=True)
class Order:
    """Images to be made.

    ``conditions``: a class id for each, or a row of ``text``: prompts, or states ``[rows, L, D]``.
    ``negative``: what guidance leads away from. ``seeds``: one for each. ``labels``: what to call
    each. ``each``: images of every condition, where all have as many and
    stand together.
    """

    conditions: tuple[int, ...]
    seeds: tuple[int, ...]
    labels: tuple[str, ...]
    each: int = 1
    text: tuple[str, ...] | Array | None = None
    negative: str | None = None

    @property
    def prompts(self) -> tuple[str, ...] | None:
        """What to draw, for each condition; ``None`` unless the texts are prompts."""
        return self.text if isinstance(self.text, tuple) else None

    def __len__(self) -> int:
        return len(self.seeds)

    def take(self, wanted: Sequence[int]) -> dict[str, Any]:
        """Some images, as arguments of ``Generator.generate``."""
        conditions = [self.conditions[k] for k in wanted]
        seeds = [self.seeds[k] for k in wanted]
        if self.text is None:
            return {"class_ids": conditions, "text": None, "seed": seeds}
        if isinstance(self.text, tuple):
            text: Any = [self.text[row] for row in conditions]
        else:
            text = self.text[conditions]
        return {"class_ids": None, "text": text, "negative": self.negative, "seed": seeds}

    def shard(self, wanted: str) -> Order:
        """Every n-th image: ``i/n``, of which i counts from 1.

        Raises:
            RequestError: something else.
        """
        rows = _shard(len(self), wanted)
        cut = slice(rows.start, rows.stop, rows.step)
        parts = {name: getattr(self, name)[cut] for name in ("conditions", "seeds", "labels")}
        return replace(self, **parts, each=1)


def check_images(count: int) -> None:
    """Refuse more images than one run can list.

    Raises:
        RequestError: too many.
    """
    if count > _MOST:
        raise RequestError(
            f"{count:,} images are too many for one run, at most {_MOST:,}: share them among "
            "several runs, with --shard I/N for each"
        )


def ordered(
    info: Condition,
    classes: Sequence[str] | None,
    texts: tuple[str, ...] | Array | None,
    count: int,
    seed: int,
    *,
    negative: str | None = None,
    shard: str | None = None,
    check: Callable[[int], None] = check_images,
) -> Order:
    """The order of a command's words.

    Args:
        info: what the bundle is conditioned on.
        classes: ids and names, several in one with commas; or one word for how to choose them.
        texts: of :meth:`fewstep.cli.texts.Texts.of`.
        count: images of each class or text; of all together for ``random`` and ``balanced``.
        seed: of the first image; others count up.
        negative: what guidance leads away from, for texts.
        shard: the part to take, as :meth:`Order.shard`.
        check: is told how many images there are before any is listed, and may refuse them.

    Raises:
        RequestError: an unknown class, neither classes nor texts or both, no such shard; and what
            ``check`` raises.
    """
    from fewstep.runtime.condition import ClassCondition

    if texts is not None:
        if classes:
            raise RequestError("this bundle is text-conditional: give --text, not --class")
        found = order_of_texts(texts, count, seed, shard=shard, check=check)
        return replace(found, negative=negative)
    if not classes:
        kind = "--class" if isinstance(info, ClassCondition) else "--text"
        raise RequestError(f"nothing to generate: give {kind}")
    if not isinstance(info, ClassCondition):
        raise RequestError("this bundle is text-conditional: give --text, not --class")
    known, choice = _classes(info, classes)
    total = count if choice in (BALANCED, RANDOM) else count * len(known)
    wanted = _wanted(total, shard, check)
    if choice == BALANCED:
        ids = tuple(known[k % len(known)] for k in wanted)
    elif choice == RANDOM:
        ids = tuple(known[_draw(seed, k) % len(known)] for k in wanted)
    else:
        ids = tuple(known[k // count] for k in wanted)
    labels = {each: info.label(each) for each in set(ids)}
    together = count if shard is None and choice not in (BALANCED, RANDOM) else 1
    return Order(ids, _seeds(seed, wanted), tuple(labels[each] for each in ids), together)


def order_of_texts(
    texts: tuple[str, ...] | Array,
    count: int,
    seed: int,
    *,
    shard: str | None = None,
    check: Callable[[int], None] = check_images,
) -> Order:
    """``count`` images of each of ``texts``; arguments as of :func:`ordered`."""
    wanted = _wanted(count * len(texts), shard, check)
    rows = tuple(k // count for k in wanted)
    together = count if shard is None else 1
    return Order(rows, _seeds(seed, wanted), labels_of(texts, rows), together, texts)


def changed(
    order: Order,
    info: Condition,
    classes: Sequence[str] | None = None,
    texts: tuple[str, ...] | Array | None = None,
    count: int | None = None,
    seed: int | None = None,
    *,
    negative: str | None = None,
    shard: str | None = None,
    check: Callable[[int], None] = check_images,
) -> Order:
    """An order with some of its words replaced: those that are given, as of :func:`ordered`.

    Of classes and texts ``order`` has, their number, ``count`` of each and the first seed stay
    unless they are given. A seed that is given is that of the first image; others count up.

    Raises:
        RequestError: as :func:`ordered`.
    """
    negative = order.negative if negative is None else negative
    if not classes and texts is None and count is None and seed is None:
        whole = replace(order, negative=negative)
        return whole if shard is None else whole.shard(shard)
    count, seed = count or order.each, order.seeds[0] if seed is None else seed
    if classes or texts is not None:
        same = {"negative": negative, "shard": shard}
        return ordered(info, classes, texts, count, seed, **same, check=check)
    first = range(0, len(order), order.each)
    wanted = _wanted(len(first) * count, shard, check)
    rows = [first[k // count] for k in wanted]
    return replace(
        order,
        conditions=tuple(order.conditions[row] for row in rows),
        labels=tuple(order.labels[row] for row in rows),
        seeds=_seeds(seed, wanted),
        each=count if shard is None else 1,
        negative=negative,
    )


def labels_of(texts: tuple[str, ...] | Array, rows: Sequence[int]) -> tuple[str, ...]:
    """What to call images of some rows of texts."""
    if isinstance(texts, tuple):
        return tuple(shown(texts[row]) for row in rows)
    return tuple(f"text {row}" for row in rows)


def digits_of(info: Condition, order: Order) -> int:
    """Digits of the largest condition, so that names of files sort."""
    from fewstep.runtime.condition import ClassCondition

    most = info.num_classes - 1 if isinstance(info, ClassCondition) else max(order.conditions)
    return len(str(most))


def _classes(info: ClassCondition, classes: Sequence[str]) -> tuple[list[int], str]:
    """The ids to choose from, in order, and the word for how, if there is one."""
    words = [word for word in classes if _chooses(info, word)]
    if words and len(classes) > 1:
        raise RequestError(f"--class {words[0]} chooses all classes: give no other")
    if words:
        return info.ids, words[0]
    found = [each for text in classes for each in info.class_ids(text)]
    info.array(found)
    return found, ""


def _wanted(total: int, shard: str | None, check: Callable[[int], None]) -> range:
    """The numbers of the images to be made, once it is known that they are not too many."""
    rows = range(total) if shard is None else _shard(total, shard)
    check((rows.stop - rows.start + rows.step - 1) // rows.step)  # len() has a limit of its own
    return rows


def _shard(total: int, wanted: str) -> range:
    """Every n-th of ``total`` numbers, as :meth:`Order.shard`."""
    found = re.fullmatch(r"([0-9]{1,18})/([0-9]{1,18})", wanted)
    number, shards = map(int, found.groups()) if found else (0, 0)
    if not 1 <= number <= shards:
        raise RequestError(f"--shard must be i/n, 1/4 … 4/4 for four, got {wanted}")
    if number > total:
        raise RequestError(f"shard {wanted} of {total} images has none: use fewer shards")
    return range(number - 1, total, shards)


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


def _seeds(first: int, wanted: range) -> tuple[int, ...]:
    return tuple(first + k for k in wanted)
