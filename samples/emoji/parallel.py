"""Trainings on several processes of one thread each, whose weights are averaged now and then.

That is local SGD (Stich, ICLR 2019). On a machine shared with other programs, threads of one
process wait for one another at every operation, and processes that average gradients at every step.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.multiprocessing.spawn import spawn


def run(train: Callable[..., None], processes: int, *arguments: Any) -> None:
    """Call ``train(*arguments)`` in so many processes, which may use the functions below."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    arguments_of_all = (processes, address, train, arguments)
    spawn(_process, arguments_of_all, processes)  # type: ignore[no-untyped-call]


def _process(
    rank: int, processes: int, address: str, train: Callable[..., None], arguments: Iterable[Any]
) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", address, world_size=processes, rank=rank)
    train(*arguments)
    distributed.destroy_process_group()


def rank() -> int:
    """The number of this process; the first one, 0, writes files."""
    return distributed.get_rank()


def average(model: nn.Module) -> None:
    """Give every process the mean of all processes' weights."""
    weights = [each.data for each in model.parameters()]
    flat = torch.cat([each.flatten() for each in weights])
    distributed.all_reduce(flat)
    parts = torch.split(flat / distributed.get_world_size(), [each.numel() for each in weights])
    for weight, part in zip(weights, parts, strict=True):
        weight.copy_(part.view_as(weight))


def from_first(value: float) -> float:
    """The first process's value."""
    shared = torch.tensor(value, dtype=torch.float64)
    distributed.broadcast(shared, 0)
    return float(shared)


def add(tensor: Tensor) -> None:
    """Give every process the sum of all processes' tensors."""
    distributed.all_reduce(tensor)


def anywhere(flags: Tensor) -> Tensor:
    """Which flags ``[n]`` (bool) are set in some process."""
    counts = flags.int()
    distributed.all_reduce(counts)
    return counts > 0


def take_first(tensor: Tensor) -> None:
    """Overwrite a tensor with the first process's."""
    distributed.broadcast(tensor, 0)
