"""The sample's bundle, exported from the committed weights when needed.

Beside the graphs of the masked model it has ``text_encoder``, ids ``[B, 20]`` int32 → states
``[B, 20, 384]`` float32, and ``tokenizer.json``, which turns texts into ids.

    python samples/emoji/emoji_bundle.py          # prints data/bundle
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from emoji_data import DATA
from emoji_text import LENGTH, encoder_folder
from emoji_tokenizer import FOLDER

from fewstep.export.flow import export
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.files import sha256

BUNDLE = DATA / "bundle"


def emoji_bundle(out: Path = BUNDLE) -> Bundle:
    """The bundle of the present weights and configuration at ``out``."""
    given = _given()
    if out.exists() and _is_current(Bundle.read(out), given):
        return Bundle.read(out)
    command = "python samples/emoji/emoji_bundle.py"
    return export("adanat", given, out, overwrite=True, command=command)


def _given() -> dict[str, Any]:
    """What to export."""
    weights = FOLDER / "weights"
    return {
        "transformer": weights / "transformer.safetensors",
        "tokenizer": weights / "tokenizer.safetensors",
        "untrained_policy": True,
        "text_encoder": encoder_folder(),
        "encoder": True,
        "config": FOLDER / "config.json",
    }


def _is_current(bundle: Bundle, given: dict[str, Any]) -> bool:
    """Whether the bundle was made from the present weights and configuration."""
    made_from = {name: info.sha256 for name, info in bundle.manifest.provenance.checkpoints.items()}
    names = ("transformer", "tokenizer", "config")
    return bundle.manifest.model.editable and all(
        made_from.get(name) == sha256(given[name]) for name in names
    )


if __name__ == "__main__":
    print(f"{emoji_bundle().path} ({LENGTH} ids a text)")
