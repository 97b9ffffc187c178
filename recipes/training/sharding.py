"""Fully sharded training (FSDP2): each process holds a part of every weight; checkpoints hold the whole."""

import torch
from lightning_fabric.strategies import ModelParallelStrategy
from lightning_fabric.strategies.strategy import Strategy
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard

WHOLE = StateDictOptions(full_state_dict=True)  # state dicts as a single process has them; every process must ask


def _shard(module: nn.Module, mesh: DeviceMesh) -> nn.Module:
    fully_shard(module, mesh=init_device_mesh(mesh.device_type, (torch.distributed.get_world_size(),)))
    return module


def choose_strategy(name: str) -> str | Strategy:
    """Fabric's strategy of that name; "fsdp" shards over all devices."""
    return ModelParallelStrategy(_shard) if name == "fsdp" else name
