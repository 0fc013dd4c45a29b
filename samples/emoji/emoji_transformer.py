"""Train the masked transformer of the emoji sample on the tokenizer's tokens and texts' states.

Masks and loss are those of ``samples/fashion/train_transformer.py``. A text is the long or the
short name of an emoji, equally often, and dropped with probability 0.1 for guidance; images with a
skin tone are drawn a third as often as others; the weights kept are an exponential moving average.

    python samples/emoji/emoji_transformer.py    # 33 minutes on 2 cores
"""

from __future__ import annotations

import argparse
import copy
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import parallel
import torch
from emoji_data import Emojis, load
from emoji_text import Known
from emoji_tokenizer import FOLDER, PROCESSES, chances, encoded, rate
from safetensors.torch import load_file
from torch import Tensor

sys.path.append(str(Path(__file__).parents[1] / "fashion"))
from train_transformer import loss_of, mask_tokens, update_average  # noqa: E402
from training import Budget, Log, config, save_weights  # noqa: E402

from fewstep.export.models import UViT, VQModel  # noqa: E402

BATCH = 32
RATE = 1.2e-3
TEXT_DROPOUT = 0.1
EMA_DECAY = 0.995
AVERAGE_EVERY, LOG_EVERY = 10, 50
HELD_OUT = 128


def tokenizer() -> VQModel:
    """The trained tokenizer."""
    model = VQModel(**config("tokenizer", folder=FOLDER)).eval()
    state = load_file(FOLDER / "weights" / "tokenizer.safetensors")
    model.load_state_dict({key: value.float() for key, value in state.items()})
    return model


@torch.no_grad()
def tokenize(model: VQModel, images: npt.NDArray[np.uint8]) -> Tensor:
    """Encode ``[n, 64, 64, 3]`` uint8 images to token ids ``[n, 64]``."""
    return torch.cat([model.quantize(z).flatten(1) for z in encoded(model, images, 64)])


@torch.no_grad()
def decode(model: VQModel, tokens: Tensor) -> npt.NDArray[np.uint8]:
    """Token ids ``[n, 64]`` → images ``[n, 64, 64, 3]``."""
    parts = []
    for ids in torch.split(tokens, 64):
        code = model.quantize.embedding(ids.reshape(-1, 8, 8)).permute(0, 3, 1, 2)
        image = model.decoder(code).clamp(0, 1) * 255
        parts.append(image.round().to(torch.uint8).permute(0, 2, 3, 1))
    images: npt.NDArray[np.uint8] = torch.cat(parts).numpy()
    return images


def tokenize_together(images: npt.NDArray[np.uint8]) -> Tensor:
    """:func:`tokenize` in all processes, each a part of the images."""
    tokens, mine = (
        torch.zeros(len(images), 64, dtype=torch.int64),
        slice(parallel.rank(), None, PROCESSES),
    )
    tokens[mine] = tokenize(tokenizer(), images[mine])
    parallel.add(tokens)
    return tokens


class Examples:
    """Tokens with states of their texts, drawn at random."""

    def __init__(self, emojis: Emojis, known: Known) -> None:
        self._tokens = tokenize_together(emojis.images)
        self._rows, self._states = known.rows(emojis.texts), known.states
        self._nothing = int(known.rows(np.array([""]))[0])
        self._chances = chances(emojis)

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Tokens ``[count, 64]`` and states ``[count, L, 384]``, some of them of no text."""
        chosen = rng.choice(len(self._chances), count, p=self._chances)
        rows = self._rows[chosen, rng.integers(2, size=count)]
        rows[rng.random(count) < TEXT_DROPOUT] = self._nothing
        return self._tokens[chosen], self.states(rows)

    def all(self) -> tuple[Tensor, Tensor]:
        """All of them, with their long names."""
        return self._tokens, self.states(self._rows[:, 0])

    def states(self, rows: npt.NDArray[np.int64]) -> Tensor:
        """States as the transformer reads them, float32."""
        return torch.from_numpy(self._states[rows].astype(np.float32))


@torch.no_grad()
def held_out_loss(model: UViT, examples: Examples) -> float:
    """Loss on held-out pairs under fixed masks."""
    tokens, states = examples.all()
    masked = mask_tokens(tokens, model.codebook_size, torch.Generator().manual_seed(1))
    return loss_of(model, tokens, masked, states).item()


def examples_of(known: Known) -> tuple[Examples, Examples]:
    """Those to train on, and some held-out pairs."""
    held_out = load("new_pair")
    every = len(held_out.images) // HELD_OUT
    some = held_out.where(np.arange(0, len(held_out.images), every))
    return Examples(load("train"), known), Examples(some, known)


def transformer() -> UViT:
    """The trained transformer."""
    model = UViT(**config("transformer", folder=FOLDER))
    state = load_file(FOLDER / "weights" / "transformer.safetensors")
    model.load_state_dict({key: value.float() for key, value in state.items()})
    return model


def train(minutes: float, batch: int, seed: int) -> None:
    torch.manual_seed(seed)
    model = UViT(**config("transformer", folder=FOLDER))
    kept = copy.deepcopy(model).eval()
    rng = np.random.default_rng((seed, parallel.rank()))
    generator = torch.Generator().manual_seed(seed + parallel.rank())
    torch.manual_seed(seed + parallel.rank())
    examples, held_out = examples_of(Known())
    optimizer = torch.optim.AdamW(model.parameters(), RATE, (0.9, 0.98), weight_decay=0.03)
    log = Log("transformer", FOLDER)
    budget, recent = Budget(minutes), list[float]()
    first, spent, step = parallel.rank() == 0, 0.0, 0
    while spent < 1:
        for group in optimizer.param_groups:
            group["lr"] = RATE * rate(spent, step)
        tokens, states = examples.draw(batch // PROCESSES, rng)
        masked = mask_tokens(tokens, model.codebook_size, generator)
        loss = loss_of(model, tokens, masked, states)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recent.append(loss.item())
        step += 1
        if step % AVERAGE_EVERY == 0:
            parallel.average(model)
            spent = parallel.from_first(budget.spent())
        if first:
            update_average(kept, model, min(EMA_DECAY, step / (step + 10)))
        if first and step % LOG_EVERY == 0:
            held = held_out_loss(kept, held_out)
            log.write(step, {"loss": float(np.mean(recent)), "held_out_loss": held})
            save_weights(kept, "transformer", FOLDER)
            recent.clear()
    if first:
        save_weights(kept, "transformer", FOLDER)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=33)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    Known()
    parallel.run(train, PROCESSES, given.minutes, given.batch, given.seed)
