"""Text encoders as graphs of a bundle: a folder of transformers to token ids → text states."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from fewstep.export import checkpoint, presets
from fewstep.export.checkpoint import read_json
from fewstep.export.clip_tokenizer import read_tokenizer
from fewstep.export.conditions import UNCONDITIONAL_FILE
from fewstep.export.filekind import shown
from fewstep.export.models.bert_text import BertText
from fewstep.export.models.clip_text import WRONG_END, CLIPTextModelWithProjection, TextStates
from fewstep.export.parts.amused import constructor_arguments
from fewstep.export.source import Graph
from fewstep.export.tokenizer_file import TokenizerFile
from fewstep.runtime.condition import TextCondition, TextEncoder
from fewstep.runtime.devices import Array
from fewstep.runtime.errors import CheckpointError

GRAPH = "text_encoder"
BERT = "BertModel"
_WITH_PROJECTION, _WITHOUT = ("CLIPTextModelWithProjection", "CLIPModel"), "CLIPTextModel"


@dataclass(frozen=True)
class Encoder:
    """A text encoder and its tokenizer, which fit each other.

    Args:
        module: token ids ``[B, tokens]`` → text states ``[B, L, W]``.
        info: what the manifest says of it.
        length: L.
        tokenizer: its tokenizer.
        checkpoints: files that were read, by what they are.
        notes: what to say to the user.
    """

    module: TextStates | BertText
    info: TextEncoder
    length: int
    tokenizer: TokenizerFile
    checkpoints: dict[str, Path]
    notes: tuple[str, ...]

    def padded(self, ids: tuple[int, ...]) -> torch.Tensor:
        """Token ids of a text as ``[1, tokens]`` int32."""
        rest = self.info.tokens - len(ids)
        return torch.tensor([[*ids, *[self.info.pad_id] * rest]], dtype=torch.int32)

    @torch.no_grad()
    def nothing(self) -> Array:
        """States of the empty text ``[L, W]``, float32."""
        found: Array = self.module(self.padded(self.tokenizer.nothing))[0].numpy()
        return found

    def condition(self) -> TextCondition:
        """What the manifest says, with the states of the empty text in a file."""
        return TextCondition(
            length=self.length,
            width=self.module.width,
            unconditional_file=UNCONDITIONAL_FILE,
            encoder=self.info,
        )

    def graph(self) -> Graph:
        """The graph, with the empty text and one of random tokens as example."""
        generator = torch.Generator().manual_seed(0)
        start, end = self.tokenizer.nothing
        known, words = self.tokenizer.largest_id + 1, self.info.tokens - 2
        drawn = torch.randint(known, (words,), generator=generator)
        texts = [self.tokenizer.nothing, (start, *drawn.tolist(), end)]
        ids = torch.cat([self.padded(text) for text in texts])
        return Graph(self.module, {"ids": ids}, ("text",))

    def files(self, unconditional: Array | None = None) -> dict[str, bytes]:
        """Contents of its files in the bundle.

        Args:
            unconditional: states of the empty text ``[L, W]`` in the place of its own.
        """
        states = self.nothing() if unconditional is None else unconditional
        return {
            self.info.tokenizer_file: self.tokenizer.json.encode(),
            UNCONDITIONAL_FILE: unconditional_file(states),
        }


def unconditional_file(states: Array) -> bytes:
    """The file with the states of the empty text ``[L, W]``."""
    content = io.BytesIO()
    np.savez(content, text=states)
    return content.getvalue()


def places(folder: Path) -> tuple[Path, Path]:
    """Where a text encoder and its tokenizer are: both in one folder, as transformers saves them,
    or in ``text_encoder`` and ``tokenizer`` beside each other, as diffusers does.

    Args:
        folder: with both; of a pipeline; or a pipeline's ``text_encoder`` (``text_encoder_2``).

    Raises:
        CheckpointError: a pipeline of several text encoders.
    """
    own, beside = folder / "config.json", folder.parent / folder.name.replace(GRAPH, "tokenizer")
    inner = sorted(path.parent for path in folder.glob(f"{GRAPH}*/config.json"))
    if not own.is_file() and inner:
        if len(inner) > 1:
            raise CheckpointError(
                f"{folder} has several text encoders; pass one of them: "
                f"{', '.join(map(str, inner))}"
            )
        return places(inner[0])
    tokenizers = ("tokenizer.json", "vocab.json")
    alone = not any((folder / name).is_file() for name in tokenizers)
    return folder, beside if alone and folder.name.startswith(GRAPH) and beside.is_dir() else folder


def read_encoder(
    folder: Path,
    tokenizer: Path,
    reads: Literal["penultimate", "last"],
    *,
    pooled: bool,
    pad_id: int | None = None,
) -> Encoder:
    """Read a CLIP text encoder, in the layout of transformers.

    Args:
        folder: with ``config.json`` and weights of ``CLIPTextModelWithProjection``, of a whole
            ``CLIPModel``, or without ``pooled`` of ``CLIPTextModel``.
        tokenizer: folder of its tokenizer.
        reads: ``penultimate`` for the states before the last layer, ``last`` for those after the
            last norm.
        pooled: whether the projected vector is in front of the states.
        pad_id: what the authors pad texts with; what the tokenizer says if ``None``.

    Raises:
        CheckpointError: files are missing or damaged, of another kind of network, or the tokenizer
            is not the encoder's.
        MissingDependencyError: ``tokenizers`` is not installed.
    """
    said = _settings(folder, pooled=pooled)
    arguments = constructor_arguments(CLIPTextModelWithProjection, said)
    if not pooled:
        arguments["projection_dim"] = None
    positions = arguments.get("max_position_embeddings", 77)
    words = read_tokenizer(tokenizer, positions if type(positions) is int else 77)
    model, found = presets.read(CLIPTextModelWithProjection, folder, arguments)
    pad = words.pad_id if pad_id is None else pad_id
    _check_fit(folder, tokenizer, model, words, pad, pooled=pooled)
    return Encoder(
        TextStates(model, reads, pooled=pooled).eval(),
        TextEncoder(tokens=words.length, pad_id=pad, examples=words.examples),
        words.length + pooled,
        words,
        checkpoints_of(folder, words),
        tuple(f"text encoder: {note}" for note in found.notes),
    )


def checkpoints_of(folder: Path, words: TokenizerFile) -> dict[str, Path]:
    """Files that a text encoder and its tokenizer were read from, by what they are."""
    beside = {path.stem: path for path in (folder / "config.json", *words.files)}
    named = {f"{GRAPH}/{name}": path for name, path in beside.items()}
    return {**checkpoint.named_files({GRAPH: folder}), **named}


def _settings(folder: Path, *, pooled: bool) -> dict[str, Any]:
    """The ``config.json`` of a CLIP text encoder.

    Raises:
        CheckpointError: there is none, or it is of another class.
    """
    classes = _WITH_PROJECTION if pooled else (*_WITH_PROJECTION, _WITHOUT)
    found = architectures(folder)
    if not set(found) & set(classes):
        known = classes if pooled else (*classes, BERT)
        raise CheckpointError(
            f"{folder}/config.json: expected architectures {' or '.join(known)}, got "
            f"{shown(', '.join(found) or 'none')}"
        )
    return read_json(folder / "config.json")


def architectures(folder: Path) -> tuple[str, ...]:
    """The classes of transformers that the ``config.json`` of a folder names.

    Raises:
        CheckpointError: there is no such file.
    """
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder} is no folder; expected that of a text encoder, with config.json, weights "
            "and tokenizer"
        )
    found = read_json(folder / "config.json").get("architectures")
    return tuple(map(str, found)) if isinstance(found, list) else ()


def _check_fit(
    folder: Path,
    tokenizer: Path,
    model: CLIPTextModelWithProjection,
    words: TokenizerFile,
    pad_id: int,
    *,
    pooled: bool,
) -> None:
    largest = max(words.largest_id, pad_id)
    if largest >= model.vocab_size:
        raise CheckpointError(
            f"the tokenizer {tokenizer} does not fit the text encoder {folder}: its ids go up to "
            f"{largest}, and the encoder knows 0 … {model.vocab_size - 1}"
        )
    if pooled and model.eos_token_id not in (WRONG_END, words.end_id):
        raise CheckpointError(
            f"the tokenizer {tokenizer} does not fit the text encoder {folder}: its texts end with "
            f"{words.end_id}, and the encoder reads them at eos_token_id {model.eos_token_id}"
        )
