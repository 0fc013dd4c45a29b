"""Prompts → ids, by the bundle's ``tokenizer.json``; ids → states, which are kept."""

from __future__ import annotations

import functools
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fewstep.runtime.condition import TextCondition, TextEncoder
from fewstep.runtime.devices import Array
from fewstep.runtime.errors import BundleError, FewstepWarning, RequestError, missing

if TYPE_CHECKING:
    from fewstep.runtime.bundle import Bundle
    from fewstep.runtime.families import Model

MOST_KEPT = 256
"""Prompts whose states are kept."""

_SHOWN = 60  # characters of a prompt in messages
_MOST_PROMPTS = 100_000  # of a file


class Tokenizer:
    """The bundle's ``tokenizer.json``, read when the first prompt comes.

    Args:
        bundle: it is in.
        encoder: what the manifest says of the graph that reads the ids.
    """

    def __init__(self, bundle: Bundle, encoder: TextEncoder) -> None:
        self._bundle, self._encoder = bundle, encoder
        self._read: Any = None

    def ids(self, prompts: Sequence[str]) -> npt.NDArray[np.int32]:
        """Ids ``[B, tokens]`` int32, padded. A prompt of more is cut where the authors cut it, with
        a warning that says what is not read.

        Raises:
            RequestError: no prompt, an empty one, or one that is no Unicode text.
            BundleError: the file is damaged.
            MissingDependencyError: tokenizers is not installed.
        """
        if not prompts:
            raise RequestError("text must have a prompt at least, got none")
        for prompt in prompts:
            _check(prompt)
        tokenizer, found = self._tokenizer(), []
        for prompt, encoding in zip(prompts, tokenizer.encode_batch(list(prompts)), strict=True):
            found.append(encoding.ids)
            if encoding.overflowing:
                first = encoding.overflowing[0]
                own = first.special_tokens_mask.index(0)  # the first token of the text itself
                self._warn(prompt, prompt[first.offsets[own][0] :])
        return np.array(found, np.int32)

    def _tokenizer(self) -> Any:
        if self._read is None:
            path = self._bundle.verified(self._encoder.tokenizer_file)
            self._read = read_tokenizer(path)
            pad = {"length": self._encoder.tokens, "pad_id": self._encoder.pad_id}
            self._read.enable_truncation(self._encoder.tokens)
            self._read.enable_padding(**pad)
        return self._read

    def _warn(self, prompt: str, rest: str) -> None:
        warnings.warn(
            f"'{shown(prompt)}' has more than {self._encoder.tokens} tokens: what follows is not "
            f"read: '{shown(rest.strip())}'",
            FewstepWarning,
            5,
        )


def read_tokenizer(path: Path) -> Any:
    """A ``tokenizers.Tokenizer`` of a ``tokenizer.json``.

    Raises:
        BundleError: it cannot be read.
        MissingDependencyError: tokenizers is not installed.
    """
    try:
        from tokenizers import Tokenizer as FastTokenizer
    except ImportError as error:
        raise missing("tokenizers", "text") from error
    try:
        return FastTokenizer.from_file(str(path))
    except Exception as error:  # the library raises this very class
        raise BundleError(
            f"{path} is no tokenizer of the tokenizers library: {shown(str(error))}; export the "
            "bundle again"
        ) from error


class TextStates:
    """States of texts by their ids, the latest :data:`MOST_KEPT`."""

    def __init__(self) -> None:
        self._kept: OrderedDict[bytes, Array] = OrderedDict()

    def encoded(self, request: Any, model: Model, encode: Callable[[str, Array], Array]) -> Any:
        """A request with states in the place of its ids of texts, if it has any.

        Args:
            request: of the model.
            model: the bundle's model.
            encode: takes the name of a graph and ids ``[B, tokens]``, gives ``[B, L, D]``.
        """
        info, found = model.info.condition, {}
        if not isinstance(info, TextCondition) or info.encoder is None:
            return request
        for name in ("condition", "negative"):
            ids = getattr(request, name)
            if ids is not None and ids.dtype.kind == "i":
                run = functools.partial(encode, info.encoder.graph)
                states = self.of(np.atleast_2d(ids), run)
                found[name] = states if ids.ndim == 2 else states[0]
        return replace(request, **found)

    def of(self, ids: Array, encode: Callable[[Array], Array]) -> Array:
        """States ``[B, L, D]`` float32 of ids ``[B, tokens]`` int32; ``encode`` makes those that
        are not kept, each once."""
        keys = [row.tobytes() for row in ids]
        known = {key: self._kept[key] for key in keys if key in self._kept}
        absent = {key: row for key, row in zip(keys, ids, strict=True) if key not in known}
        if absent:
            made = encode(np.stack(list(absent.values())))
            known |= dict(zip(absent, made, strict=True))
        for key in keys:
            self._kept[key] = known[key]
            self._kept.move_to_end(key)
        while len(self._kept) > MOST_KEPT:
            self._kept.popitem(last=False)
        return np.stack([known[key] for key in keys])


def read_prompts(path: Path) -> list[str]:
    """The prompts of a UTF-8 text file, one a line; empty lines are left out.

    Raises:
        RequestError: it cannot be read, is no text, or has no prompt or too many.
    """
    try:
        content = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise RequestError(f"{path} is no file of prompts, one a line: {reason}") from error
    prompts = [line.strip() for line in content.splitlines() if line.strip()]
    if not prompts:
        raise RequestError(f"{path} has no prompt: write one a line")
    if len(prompts) > _MOST_PROMPTS:
        raise RequestError(f"{path} has {len(prompts):,} prompts, at most {_MOST_PROMPTS:,}")
    return prompts


def shown(prompt: str) -> str:
    """A prompt in one short line, for labels and messages."""
    line = " ".join(prompt.split())
    return line if len(line) <= _SHOWN else f"{line[: _SHOWN - 1]}…"


def _check(prompt: object) -> None:
    if not isinstance(prompt, str):
        raise RequestError(f"prompts must be text, got {prompt!r}")
    if not prompt.strip():
        raise RequestError("the text is empty: say what to draw")
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise RequestError(f"'{shown(ascii(prompt))}' is no Unicode text") from None
