"""A network lent to captum: made fit for its hooks, and given back exactly as it was."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Whatever is put on `model` inside is taken off again, after an error too: hooks, layers, flags, attributes.

    Parameters and buffers are the same objects on the same memory, with the same gradients and `requires_grad`.
    """
    kept = [(module, dict(vars(module)), _registries(module)) for module in model.modules()]
    tensors = [(t, t.data, t.requires_grad, t.grad) for t in (*model.parameters(), *model.buffers())]
    try:
        yield
    finally:
        for module, attributes, registries in kept:
            _restore(module, attributes, registries)
        for tensor, data, requires_grad, grad in tensors:
            if tensor.data_ptr() != data.data_ptr():
                tensor.data = data
            if tensor.requires_grad != requires_grad:
                tensor.requires_grad_(requires_grad)
            if tensor.grad is not grad:
                tensor.grad = grad


def _registries(module: nn.Module) -> dict[str, dict[Any, Any]]:
    """What a module's own registries hold: its hooks, layers, parameters and buffers."""
    names = [name for name in vars(module) if "hooks" in name or name in ("_modules", "_parameters", "_buffers")]
    return {name: dict(value) for name in names if isinstance(value := vars(module)[name], dict)}


def _restore(module: nn.Module, attributes: dict[str, Any], registries: dict[str, dict[Any, Any]]) -> None:
    state = vars(module)
    for name in [name for name in state if name not in attributes]:
        del state[name]
    for name, value in attributes.items():
        if name not in state or name in registries:
            state[name] = value
    for name, entries in registries.items():
        state[name].clear()
        state[name].update(entries)
    state.update({name: attributes[name] for name in ("training", "inplace") if name in attributes})


def separate(model: nn.Module, reused: Mapping[nn.Module, int]) -> None:
    """Put a copy for every use in a forward pass in the place of each layer that is used several times.

    For layers without parameters, such as the one ReLU of a residual block: captum keeps one input per layer. To be
    called inside `untouched`.
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
