"""Run a function in two gloo processes. Spawned: autograd's threads do not survive a fork."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch import multiprocessing as mp


def _run(rank: int, function: Callable[[int], Any], folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        torch.save(function(rank), folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def in_two_processes(function: Callable[[int], Any], folder: Path) -> list[Any]:
    """What `function(rank)`, of a module's top level, gives in either; `folder` holds their results."""
    mp.spawn(_run, args=(function, folder), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]
