"""Class names: from what a person writes to a class id, and from an id to a label.

A name may list synonyms, as ImageNet's do: "tench, Tinca tinca". Each finds the class, and so does
the whole. Names are compared in Unicode's composed form (NFC), with single spaces: first as they
are written, then in any case. One that several classes have is refused, and their numbers told.
"""

from __future__ import annotations

import difflib
import functools
import re
import unicodedata
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence

from fewstep.runtime.errors import FewstepWarning, RequestError

_LONGEST_SHOWN = 60
_MOST_LISTED = 20
_NUMBER = re.compile(r"[+-]?[0-9]+")


def class_id_of(text: str, names: Sequence[str], num_classes: int) -> int:
    """The id of a class by its number or its name; arguments as of :func:`matches`.

    Raises:
        RequestError: no such name, or one of several classes. Numbers are not checked here.
    """
    found, wanted = matches(text, names, num_classes), normal(text)
    if not found:
        raise RequestError(_unknown(text, names))
    if len(found) > 1:
        raise RequestError(_several(wanted, found, names))
    return found[0]


def matches(text: str, names: Sequence[str], num_classes: int) -> tuple[int, ...]:
    """The classes that a number or a name finds.

    A number is an id, though a class may be called by the same number, which is warned of. Only a
    number that is no id of the model (a year, say), or is not written as numbers are ("007"), is
    first looked up as a name.

    Args:
        text: what is asked for.
        names: of all classes by id; empty if they have none.
        num_classes: ids are below.
    """
    wanted = normal(text)
    number = int(wanted) if _NUMBER.fullmatch(wanted) and len(wanted) < 20 else None
    found = named(wanted, tuple(names))
    if number is None:
        return found
    if str(number) != wanted or not 0 <= number < num_classes:
        return found or (number,)
    if found and number not in found:
        warnings.warn(
            f"{number} is the class of that number, {label_of(number, names)}; the one called "
            f"'{number}' is number {found[0]}",
            FewstepWarning,
            stacklevel=2,
        )
    return (number,)


def class_ids_of(text: str, names: Sequence[str], num_classes: int) -> list[int]:
    """The ids of classes with commas between them, where a name may have commas of its own.

    Raises:
        RequestError: as :func:`class_id_of`.
    """
    parts = [part.strip() for part in text.split(",")]
    most = 1 + max((name.count(",") for name in names), default=0)
    ids: list[int] = []
    while parts:
        for count in range(min(most, len(parts)), 1, -1):
            whole = ", ".join(parts[:count])
            if named(normal(whole), tuple(names)):
                break
        else:
            count, whole = 1, parts[0]
        if whole or len(parts) == 1 and not ids:  # a comma at the end says nothing
            ids.append(class_id_of(whole, names, num_classes))
        del parts[:count]
    return ids


def label_of(class_id: int, names: Sequence[str]) -> str:
    """What stands for a class in pictures: the first of its synonyms, the whole name where other
    classes have that too, and its id where even this is another's; ``class 7`` without a name."""
    if not 0 <= class_id < len(names) or not (whole := normal(names[class_id])):
        return f"class {class_id}"
    labels = _labels(tuple(names))
    first = synonyms(whole)[0]
    if len(labels[first]) == 1:
        return first
    return whole if len(labels[whole]) == 1 else f"{whole} ({class_id})"


def normal(name: str) -> str:
    """A name in composed form, without control characters, with single spaces."""
    composed = unicodedata.normalize("NFC", name)
    visible = "".join(" " if _is_hidden(each) else each for each in composed)
    return re.sub(r"\s*,\s*", ", ", " ".join(visible.split())).strip()


def _is_hidden(character: str) -> bool:
    """Whether it is a control character; joiners of scripts and emoji change what is read."""
    return unicodedata.category(character)[0] == "C" and character not in "\u200c\u200d"


def synonyms(name: str) -> list[str]:
    """The parts of a normal name, at least one."""
    return [part for each in name.split(",") if (part := each.strip())] or [name]


def named(wanted: str, names: tuple[str, ...]) -> tuple[int, ...]:
    """The classes that a normal name finds: those with just this name, else in any case."""
    exact, folded = _spellings(names)
    return exact.get(wanted) or folded.get(wanted.casefold()) or ()


@functools.lru_cache(maxsize=8)  # bundles that are open; a lookup must not go through 1,000 names
def _spellings(
    names: tuple[str, ...],
) -> tuple[Mapping[str, tuple[int, ...]], Mapping[str, tuple[int, ...]]]:
    exact: defaultdict[str, dict[int, None]] = defaultdict(dict)
    for index, name in enumerate(map(normal, names)):
        for each in (name, *synonyms(name)):
            if each:
                exact[each][index] = None
    folded: defaultdict[str, dict[int, None]] = defaultdict(dict)
    for each, ids in exact.items():
        folded[each.casefold()].update(ids)
    return _frozen(exact), _frozen(folded)


def _frozen(found: Mapping[str, Mapping[int, None]]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(sorted(ids)) for name, ids in found.items()}


@functools.lru_cache(maxsize=8)
def _labels(names: tuple[str, ...]) -> Mapping[str, set[int]]:
    """The classes by what their label may be."""
    found: defaultdict[str, set[int]] = defaultdict(set)
    for index, name in enumerate(map(normal, names)):
        for each in (name, synonyms(name)[0]):
            found[each].add(index)
    return found


def _several(wanted: str, ids: Sequence[int], names: Sequence[str]) -> str:
    """That a name is of several classes, and which."""
    shown = [
        f"{index}" if normal(names[index]) == wanted else f"{index} ({_short(names[index])})"
        for index in ids[:_MOST_LISTED]
    ]
    rest = f" and {len(ids) - _MOST_LISTED} more" if len(ids) > _MOST_LISTED else ""
    listed = shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
    return f"{_short(wanted)} is class {listed}{rest}: give the number"


def _unknown(text: str, names: Sequence[str]) -> str:
    """That no class is called so; what cannot be seen of the text is shown as Python has it."""
    wanted = normal(text)
    given = repr(text[:_LONGEST_SHOWN]) if any(map(_is_hidden, text)) else _quoted(wanted)
    if not any(map(normal, names)):
        return f"class {given} is not a number, and this bundle names no classes"
    spelled = {each.casefold(): each for name in names for each in synonyms(normal(name))}
    near = difflib.get_close_matches(wanted.casefold(), spelled, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(_quoted(spelled[each]) for each in near)}?" if near else ""
    if len(names) <= _MOST_LISTED:
        expected = f"one of: {', '.join(sorted(_short(normal(each)) for each in names))}"
    else:
        expected = f"a number below {len(names)} or a name that the bundle has"
    return f"unknown class {given}; expected {expected}.{hint}"


def _quoted(name: str) -> str:
    return f"'{_short(name)}'"


def _short(name: str) -> str:
    name = normal(name)
    return name if len(name) <= _LONGEST_SHOWN else f"{name[:_LONGEST_SHOWN]}…"
