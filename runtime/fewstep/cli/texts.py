"""Texts on the command line: prompts, a file of prompts, or states that were made elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewstep.runtime.errors import RequestError

if TYPE_CHECKING:
    from fewstep.runtime.condition import Condition
    from fewstep.runtime.devices import Array

_STATES = ".npy"

TextOption = Annotated[
    list[str] | None,
    typer.Option(help="What to draw, for bundles with a text encoder; repeat for more."),
]
TextFileOption = Annotated[
    Path | None,
    typer.Option(
        help="Prompts, one a line; or .npy of text states [B, L, D], which need no text encoder."
    ),
]
NegativeOption = Annotated[
    str | None,
    typer.Option(
        help="What guidance leads away from in all images, in the place of the empty text."
    ),
]


@dataclass(frozen=True)
class Texts:
    """What the options say: ``prompts`` of ``--text``, ``file``, ``negative``."""

    prompts: Sequence[str] | None
    file: Path | None
    negative: str | None = None

    @property
    def words(self) -> list[object]:
        """The options as they were given."""
        given: list[tuple[str, object]] = [("--text", each) for each in self.prompts or ()]
        given += [("--text-file", self.file), ("--negative", self.negative)]
        return [word for name, value in given if value is not None for word in (name, value)]

    def of(self, info: Condition) -> tuple[str, ...] | Array | None:
        """The texts: prompts or states; ``None`` for none.

        Raises:
            RequestError: the bundle takes no such texts, both options, or a file that cannot be
                read.
        """
        from fewstep.runtime.condition import ClassCondition, condition_of
        from fewstep.runtime.given_texts import read_text
        from fewstep.runtime.prompts import read_prompts

        if isinstance(info, ClassCondition):
            if self.words:
                raise RequestError(
                    f"this bundle is class-conditional: give --class, not {self.words[0]}"
                )
            return None
        if self.prompts and self.file is not None:
            raise RequestError("give --text or --text-file, not both")
        if not self.prompts and self.file is None:
            return None
        if self.file is not None and self.file.suffix.lower() == _STATES:
            return condition_of(info, None, read_text(self.file))
        if info.encoder is None:
            raise RequestError(
                "this bundle has no text encoder: give text states "
                f"[B, {info.length}, {info.width}] in a .npy file with --text-file"
            )
        return tuple(self.prompts or ()) if self.file is None else tuple(read_prompts(self.file))


def calibration_text(bundle: Path, file: Path | None) -> Array | None:
    """What ``--text-file`` gives a calibration: states, or the ids of prompts; ``None`` for none.

    Raises:
        RequestError: the bundle takes no texts, or the file cannot be read.
    """
    from fewstep.runtime.bundle import Bundle
    from fewstep.runtime.condition import ClassCondition, condition_of
    from fewstep.runtime.families import model_of

    if file is None:
        return None
    model = model_of(Bundle.read(bundle))
    if isinstance(model.info.condition, ClassCondition):
        raise RequestError("this bundle is class-conditional: leave --text-file out")
    texts = Texts(None, file).of(model.info.condition)
    return condition_of(model.info.condition, None, texts, model.tokenizer)
