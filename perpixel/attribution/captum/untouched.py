"""Layers that run several times, made fit for captum, which keeps one input per layer."""

import copy
from collections.abc import Mapping
from typing import Any

from torch import nn


def separate(model: nn.Module, reused: Mapping[nn.Module, int]) -> None:
    """Put a copy for every use in a forward pass in the place of each layer that is used several times.

    For layers without parameters, such as the one ReLU of a residual block: captum keeps one input per layer. To be
    called on a model that is `borrowed` with `restore_all`.
    """
    stand_ins = {id(layer): _OneEach(layer, times) for layer, times in reused.items()}
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if id(child) in stand_ins:
                module._modules[name] = stand_ins[id(child)]


class _OneEach(nn.Module):
    """Passes the k-th call of a forward pass on to its k-th copy of a layer."""

    def __init__(self, layer: nn.Module, times: int) -> None:
        super().__init__()
        self.copies = nn.ModuleList(copy.deepcopy(layer) for _ in range(times))
        self.calls = 0
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self.copies[(self.calls - 1) % len(self.copies)](*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:  # what the network reads off the layer itself
            return getattr(self._modules["copies"][0], name)  # type: ignore[index]
