"""Fully sharded training (FSDP2): each process holds a part of every weight; checkpoints hold the whole."""

from typing import Any

import torch
from lightning_fabric.strategies import ModelParallelStrategy
from lightning_fabric.strategies.strategy import Strategy
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard

_WHOLE = StateDictOptions(full_state_dict=True)


def _shard(module: nn.Module, mesh: DeviceMesh) -> nn.Module:
    fully_shard(module, mesh=init_device_mesh(mesh.device_type, (torch.distributed.get_world_size(),)))
    return module


def choose_strategy(name: str) -> str | Strategy:
    """Fabric's strategy of that name; "fsdp" shards over all devices."""
    return ModelParallelStrategy(_shard) if name == "fsdp" else name


def is_sharded(strategy: Strategy) -> bool:
    """Whether the weights of modules set up with `strategy` are in parts."""
    return isinstance(strategy, ModelParallelStrategy)


def whole_weights(module: nn.Module) -> dict[str, Any]:
    """The state dict a single process would have; every process must ask."""
    return get_model_state_dict(module, options=_WHOLE)


def whole_optimizer(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's state by parameter name; every process must ask."""
    return dict(get_optimizer_state_dict(module, optimizer, options=_WHOLE))


def set_whole(module: nn.Module, optimizer: torch.optim.Optimizer, weights: Any, state: Any) -> None:
    """Put back what `whole_weights` and `whole_optimizer` gave."""
    set_model_state_dict(module, weights, options=_WHOLE)
    set_optimizer_state_dict(module, optimizer, state, options=_WHOLE)
