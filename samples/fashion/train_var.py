"""Train the VAR transformer of the Fashion-MNIST sample on the multi-scale tokenizer's token maps.

As VAR (Tian et al., NeurIPS 2024) does: the transformer is given f̂ after every scale, brought to
the size of the next, and the cross-entropy of all scales is taken at once; the class is dropped
with probability 0.1 for guidance. The weights kept are an exponential moving average.

    python samples/fashion/train_var.py        # 48 minutes, by the clock
"""

from __future__ import annotations

import copy
import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from data import load
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from train_transformer import EMA_DECAY, update_average
from train_var_tokenizer import CONFIG, schedule
from train_var_tokenizer import NAME as TOKENIZER
from training import WEIGHTS, Budget, Log, by_the_clock, config, save_weights

from fewstep.export.models.var import VAR
from fewstep.export.models.var_vae import VQVAE

NAME = "var_transformer"
RATE = 1.5e-3
WEIGHT_DECAY = 0.05
CLIP = 1.0
LOG_EVERY = 50
SAVE_EVERY = 500


class Data(NamedTuple):
    """What the transformer learns from: images as the tokenizer sees them."""

    classes: Tensor
    """``[n]``."""
    tokens: Tensor
    """Ids of all scales, ``[n, L]``."""
    words: Tensor
    """f̂ after every scale but the last, at the size of the next, ``[n, L − 1, Cvae]``."""

    def rows(self, chosen: Tensor) -> Data:
        return Data(self.classes[chosen], self.tokens[chosen].long(), self.words[chosen].float())


def tokenizer() -> VQVAE:
    """The trained tokenizer."""
    model = VQVAE(**config("tokenizer", CONFIG)).eval()
    state = load_file(WEIGHTS / f"{TOKENIZER}.safetensors")
    model.load_state_dict({key: value.float() for key, value in state.items()})
    return model


@torch.no_grad()
def prepared(images: npt.NDArray[np.uint8], classes: npt.NDArray[np.int64]) -> Data:
    """Encode ``[n, 32, 32]`` uint8 images once, in half precision where that loses nothing."""
    model, tokens, words = tokenizer(), list[Tensor](), list[Tensor]()
    for start in range(0, len(images), 250):
        image = torch.from_numpy(images[start : start + 250])[:, None].float() / 127.5 - 1
        with torch.autocast("cpu", torch.bfloat16):
            f = model.latents(image.expand(-1, 3, -1, -1))
        maps = model.quantize.token_maps(f.float())
        tokens.append(torch.cat([each.flatten(1) for each in maps], 1).short())
        words.append(words_of(model, maps).half())
    return Data(torch.from_numpy(classes), torch.cat(tokens), torch.cat(words))


def words_of(model: VQVAE, maps: list[Tensor]) -> Tensor:
    """Token maps ``[B, s, s]`` → what the transformer is given, ``[B, L − 1, Cvae]``."""
    f_hat, found = torch.zeros(()), list[Tensor]()
    for scale, side in enumerate(model.v_patch_nums[1:]):
        f_hat = f_hat + model.quantize.grown(maps[scale], scale)
        found.append(F.interpolate(f_hat, size=(side, side), mode="area").flatten(2))
    return torch.cat(found, 2).transpose(1, 2)


def initialise(model: VAR) -> None:
    """Truncated normals as the official code has them; all gains γ start at 1.

    The official γ start at 1e-5, which 3,000 steps are too few for.
    """
    std = math.sqrt(1 / model.embed_dim / 3)
    for name, value in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(value)
        elif value.ndim > 1 and "scale_mul" not in name:
            nn.init.trunc_normal_(value, std=std)
    with torch.no_grad():
        model.head.weight.mul_(0.02)
        for block in model.blocks:
            block.attn.proj.weight.div_(math.sqrt(2 * model.depth))  # type: ignore[union-attr,operator]
            block.ffn.fc2.weight.div_(math.sqrt(2 * model.depth))  # type: ignore[union-attr,operator]
            block.ada_gss[:, :, :2].add_(1)  # type: ignore[index]


def optimizer_of(model: VAR) -> torch.optim.Optimizer:
    """AdamW, with weight decay of the matrices alone."""
    layers = {id(each.weight) for each in model.modules() if isinstance(each, nn.Linear)}
    matrices = [value for value in model.parameters() if id(value) in layers]
    others = [value for value in model.parameters() if id(value) not in layers]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, RATE, (0.9, 0.95), weight_decay=WEIGHT_DECAY, fused=True)


def loss_of(model: VAR, data: Data, classes: Tensor) -> Tensor:
    """Mean cross-entropy of all tokens."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(classes, data.words)
    return F.cross_entropy(logits.float().flatten(0, 1), data.tokens.flatten())


def train(minutes: float, batch: int, seed: int) -> VAR:
    torch.manual_seed(seed)
    budget = Budget(minutes)
    split, held_out = load("train"), load("held_out")
    data = prepared(split.images, split.labels)
    few = prepared(held_out.images[::20], held_out.labels[::20]).rows(torch.arange(500))
    print(f"tokenized {len(data.tokens):,} images", flush=True)
    model = VAR(tokenizer(), **config("transformer", CONFIG))
    initialise(model)
    average, optimizer = copy.deepcopy(model).eval(), optimizer_of(model)
    drop = config("transformer", CONFIG)["cond_drop_rate"]
    log, recent, step = Log(NAME), list[float](), 0
    while (spent := budget.spent()) < 1:
        for group in optimizer.param_groups:
            group["lr"] = RATE * schedule(spent)
        rows = data.rows(torch.randint(len(data.tokens), (batch,)))
        classes = rows.classes.masked_fill(torch.rand(batch) < drop, model.num_classes)
        loss = loss_of(model, rows, classes)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        step += 1
        update_average(average, model, min(EMA_DECAY, step / (step + 10)))
        recent.append(loss.item())
        if step % LOG_EVERY == 0:
            with torch.no_grad():
                held = loss_of(average, few, few.classes).item()
            log.write(step, {"loss": float(np.mean(recent)), "held_out_loss": held})
            recent.clear()
        if step % SAVE_EVERY == 0:
            save_weights(average, NAME)
    return average


if __name__ == "__main__":
    save_weights(train(*by_the_clock(__doc__, minutes=48)), NAME)
