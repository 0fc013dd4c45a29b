"""The sample's bundle, exported from the committed weights when needed.

Beside the graphs of the masked model it has ``text_encoder``, ids ``[B, 20]`` int32 → states
``[B, 20, 384]`` float32, and ``tokenizer.json``, which turns texts into ids.

    python samples/emoji/emoji_bundle.py          # prints data/bundle
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from emoji_data import DATA
from emoji_text import LENGTH, WordPieces, encoder, encoder_folder, states_of
from emoji_tokenizer import FOLDER

from fewstep.export.config import ExportConfig
from fewstep.export.flow import export
from fewstep.export.source import Exportable, Graph, register
from fewstep.export.sources.adanat import SOURCE, UViTSource
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.files import sha256

BUNDLE = DATA / "bundle"
ENCODER, TOKENIZER = "text_encoder", "tokenizer.json"


@dataclass(frozen=True)
class WithTexts(UViTSource):
    """AdaNAT's form, and what turns texts into their states."""

    def load(self, given: Mapping[str, Any], config: ExportConfig) -> Exportable:
        """Read the models; the encoder's files come from ``data/``."""
        found, file = super().load(given, config), encoder_folder() / TOKENIZER
        pieces = WordPieces.read(file)
        ids = torch.tensor([pieces.ids("red apple"), pieces.ids("")], dtype=torch.int32)
        graph = Graph(encoder(), {"ids": ids}, ("text",))
        return replace(
            found,
            graphs={**found.graphs, ENCODER: graph},
            files={**found.files, TOKENIZER: file.read_bytes()},
        )


def emoji_bundle(out: Path = BUNDLE) -> Bundle:
    """The bundle of the present weights and configuration at ``out``."""
    given = _given()
    if out.exists() and _is_current(Bundle.read(out), given):
        return Bundle.read(out)
    register(WithTexts(**vars(SOURCE)))
    try:
        command = "python samples/emoji/emoji_bundle.py"
        return export("adanat", given, out, overwrite=True, command=command)
    finally:
        register(SOURCE)


def _given() -> dict[str, Any]:
    """What to export, the states of the empty text among it."""
    nothing = DATA / "nothing.npy"
    if not nothing.exists():
        np.save(nothing, states_of([""])[0].astype(np.float32))
    weights = FOLDER / "weights"
    return {
        "transformer": weights / "transformer.safetensors",
        "tokenizer": weights / "tokenizer.safetensors",
        "untrained_policy": True,
        "unconditional_text": nothing,
        "config": FOLDER / "config.json",
    }


def _is_current(bundle: Bundle, given: dict[str, Any]) -> bool:
    """Whether the bundle was made from the present weights and configuration."""
    made_from = {name: info.sha256 for name, info in bundle.manifest.provenance.checkpoints.items()}
    files = {name: path for name, path in given.items() if isinstance(path, Path)}
    return made_from == {name: sha256(path) for name, path in files.items()}


if __name__ == "__main__":
    print(f"{emoji_bundle().path} ({LENGTH} ids a text)")
