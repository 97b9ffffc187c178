"""Look at a model once more in the middle of a training step, unnoticed."""

import contextlib
from collections import OrderedDict
from collections.abc import Iterator

import torch
from torch import Tensor, nn

_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


@contextlib.contextmanager
def unnoticed(model: nn.Module, images: Tensor) -> Iterator[bool]:
    """Inside, the model runs in evaluation mode, without gradients and hooks, and eagerly where it was compiled.

    Gives whether all of it was in evaluation mode before. On exit and on error its train flags and hooks, and the
    random number generators, are as they were.
    """
    layers = list(model.modules())
    training = [layer for layer in layers if layer.training]
    hooks = [(layer.__dict__, name, layer.__dict__[name]) for layer in layers for name in _HOOKS]
    devices = [images.device] if images.device.type == "cuda" else []
    with torch.no_grad(), torch.compiler.set_stance("force_eager"), torch.random.fork_rng(devices):
        try:
            for layer in training:
                layer.__dict__["training"] = False
            for attributes, name, _ in hooks:
                attributes[name] = OrderedDict()
            yield not training
        finally:
            for attributes, name, before in hooks:
                attributes[name] = before
            for layer in training:
                layer.__dict__["training"] = True
