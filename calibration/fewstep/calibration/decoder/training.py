"""A student of the full decoder: how large it is, where it starts, and how it learns.

With d = student − full, where both are beyond the same end of 0 … 1 it is 0, the loss is

    mean |d| + mean |d of 2×2 means| + mean |d of 4×4 means| + mean |∂d/∂x| + mean |∂d/∂y|

by AdamW, the learning rate rising over the first twentieth of the updates and falling by a cosine
to 0. Everything drawn comes from one seed.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.build.graphs import load_graph
from fewstep.calibration.added_graph import half
from fewstep.calibration.decoder.examples import Examples
from fewstep.export.models.small_decoder import DecoderShape, SmallDecoder, widest
from fewstep.runtime.bundle import Bundle
from fewstep.runtime.decoders import DECODER
from fewstep.runtime.devices import Array
from fewstep.runtime.errors import CalibrationError
from fewstep.runtime.progress import Progress, no_progress
from fewstep.runtime.verify.metrics import psnr_db

_WARM_UP = 0.05
_SCALES = 3
_TABLE_WIDTH = 32  # where the full decoder has no table


def student(bundle: Bundle, examples: Examples, flops: int, seed: int) -> SmallDecoder:
    """An untrained decoder with the largest width that so many operations allow.

    It starts with the full decoder's table of codes, where there is one, and takes its inputs as
    they are spread in the examples.

    Raises:
        CalibrationError: none is that small.
    """
    model, read = bundle.manifest.model, examples.inputs
    ids, table = read.dtype.kind == "i", None
    codes: int | None = getattr(model, "codebook_size", None) if ids else None
    if codes is not None:
        table = codebook(load_graph(bundle, DECODER), codes)
        channels = _TABLE_WIDTH if table is None else table.shape[1]
    else:
        channels = read.shape[2] if read.ndim == 3 else read.shape[1]

    def shape(width: int) -> DecoderShape:
        return DecoderShape(
            codes=codes,
            channels=channels,
            grid=examples.grid,
            factor=model.image_size[0] // examples.grid[0],
            width=width,
        )

    found = widest(shape, flops)
    if found is None:
        raise CalibrationError(
            f"the decoder of {bundle.path} is too small to be made smaller: no student has at most "
            f"{flops:,} operations; lower --smaller"
        )
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        network = SmallDecoder(found)
    if network.table is not None and table is not None:
        with torch.no_grad():
            network.table.weight.copy_(torch.from_numpy(table))
    _standardise(network, examples)
    return network


def codebook(model: onnx.ModelProto, codes: int) -> Array | None:
    """The table ``[codes, C]`` float32 that a decoder's graph looks its tokens up in, if any."""
    tables = {each.name: each for each in model.graph.initializer}
    for node in model.graph.node:
        found = tables.get(node.input[0]) if node.op_type == "Gather" else None
        if found is not None and len(found.dims) == 2 and found.dims[0] == codes:
            return numpy_helper.to_array(found).astype(np.float32)
    return None


def _standardise(network: SmallDecoder, examples: Examples) -> None:
    """Let the first convolution see channels of mean 0 and deviation 1."""
    with torch.no_grad():
        seen = network.map(torch.from_numpy(examples.inputs[:256])).transpose(0, 1).flatten(1)
        mean, deviation = seen.mean(1), seen.std(1).clamp_min(1e-4)
        network.first.weight /= deviation[None, :, None, None]
        assert network.first.bias is not None
        network.first.bias -= network.first.weight[:, :, 0, 0] @ mean


def train(
    network: SmallDecoder,
    examples: Examples,
    *,
    updates: int,
    batch: int,
    learning_rate: float,
    seed: int,
    device: torch.device,
    progress: Progress = no_progress,
) -> None:
    """Train on examples, in place; weights end as half precision holds them.

    Raises:
        CalibrationError: the loss is no number any more.
    """
    random = torch.Generator().manual_seed(seed)
    network.to(device).train()
    optimizer = torch.optim.AdamW(network.parameters(), learning_rate, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: _rate(done, updates))
    for update in range(updates):
        rows = torch.randint(len(examples), (batch,), generator=random).numpy()
        drawn = network.unclamped(torch.from_numpy(examples.inputs[rows]).to(device))
        wanted = torch.from_numpy(examples.images[rows]).to(device).float()
        loss = loss_of(drawn, wanted)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if update % 50 == 0 or update + 1 == updates:
            if not math.isfinite(loss.item()):
                raise CalibrationError(
                    f"the training broke after {update} updates; lower --learning-rate"
                )
            progress("training the decoder", (update + 1) / updates)
    half(network.cpu().eval())


def _rate(done: int, updates: int) -> float:
    """The learning rate's factor."""
    part = (done + 1) / updates
    return min(1.0, part / _WARM_UP) * 0.5 * (1 + math.cos(math.pi * min(1.0, part)))


def loss_of(drawn: Tensor, wanted: Tensor) -> Tensor:
    """The loss of images ``[B, 3, H, W]``, the student's before they are clamped."""
    same = ((wanted <= 0) & (drawn < 0)) | ((wanted >= 1) & (drawn > 1))
    d = torch.where(same, torch.zeros_like(drawn), drawn - wanted)
    loss = d.diff(dim=2).abs().mean() + d.diff(dim=3).abs().mean()
    for scale in range(_SCALES):
        side = 2**scale
        if min(d.shape[2:]) >= side:
            loss = loss + F.avg_pool2d(d, side).abs().mean()
    return loss


@torch.no_grad()
def psnr_of(network: SmallDecoder, examples: Examples, batch: int = 32) -> float:
    """Mean PSNR of its images from those of the full decoder, in dB."""
    found = list[float]()
    for first in range(0, len(examples), batch):
        rows = slice(first, first + batch)
        drawn = network(torch.from_numpy(examples.inputs[rows])).numpy()
        found += psnr_db([*drawn], [*examples.images[rows].astype(np.float32)])
    return float(np.mean(found))
