"""Several processes tuning together: ``torchrun --nproc-per-node 4 -m fewstep calibrate policy``.

Rollouts are split between the processes and gradients averaged by
``torch.nn.parallel.DistributedDataParallel``; rewards are normalised over all. Alone, everything
here does nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Join the processes that ``torchrun`` started, if it did."""
    if not distributed.is_torchelastic_launched() or distributed.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    distributed.init_process_group()  # gloo for tensors on the host, nccl for those on GPUs
    try:
        yield
        distributed.barrier()  # or one would leave while another still hears from it
    finally:
        distributed.destroy_process_group()


def rank() -> int:
    """Which of the processes this is; 0 writes files."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world() -> int:
    """How many processes there are."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def shared(module: nn.Module) -> nn.Module:
    """The module with its gradients averaged over the processes."""
    return DistributedDataParallel(module, broadcast_buffers=False) if world() > 1 else module


def gathered(values: Tensor) -> Tensor:
    """Values ``[B, …]`` of all processes one after the other; every process has equally many."""
    if world() == 1:
        return values
    parts = [torch.empty_like(values) for _ in range(world())]
    distributed.all_gather(parts, values.contiguous())
    return torch.cat(parts)


def gathered_objects(value: Any) -> list[Any]:
    """The values of all processes, in the order of their ranks."""
    parts: list[Any] = [value] * world()
    if world() > 1:
        distributed.all_gather_object(parts, value)
    return parts


def wait() -> None:
    """Wait until every process is here."""
    if world() > 1:
        distributed.barrier()
