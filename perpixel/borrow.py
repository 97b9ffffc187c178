"""A model that is not ours, borrowed: run in evaluation mode, unnoticed, and given back as it was."""

import contextlib
import sys
from collections import OrderedDict
from collections.abc import Iterator

import torch
from torch import Tensor, nn

_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


@contextlib.contextmanager
def borrowed(model: nn.Module, device: torch.device | None = None) -> Iterator[bool]:
    """Inside, the model runs in evaluation mode, without gradients, and eagerly where it was compiled.

    Hooks that only record for a criterion (their `only_records` is true) are off; others stay, since some models work
    through theirs. Gives whether all of the model was in evaluation mode before. On exit and on error its train flags
    and hooks, and the random number generators (that of `device` too), are as they were.
    """
    layers = list(model.modules())
    training = [layer for layer in layers if layer.training]
    hooks = [(vars(layer), name, vars(layer)[name]) for layer in layers for name in _HOOKS if vars(layer)[name]]
    devices = [device] if device is not None and device.type == "cuda" else []
    with torch.no_grad(), _eager(), torch.random.fork_rng(devices):
        try:
            for layer in training:
                layer.__dict__["training"] = False
            for attributes, name, before in hooks:
                kept = ((key, hook) for key, hook in before.items() if not getattr(hook, "only_records", False))
                attributes[name] = OrderedDict(kept)
            yield not training
        finally:
            for attributes, name, before in hooks:
                attributes[name] = before
            for layer in training:
                layer.__dict__["training"] = True


def dtype_of(model: nn.Module, images: Tensor) -> torch.dtype:
    """The dtype of the model's parameters; without any, that of the images."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), images.dtype)


def unwrap(model: nn.Module) -> nn.Module:
    """The network inside torch.compile, DistributedDataParallel, FSDP, DataParallel, AveragedModel or Fabric."""
    for name in ("_orig_mod", "_original_module", "module"):
        inner = getattr(model, name, None)
        if isinstance(inner, nn.Module) and (name != "module" or list(model.children()) == [inner]):
            return unwrap(inner)
    return model


def _eager() -> contextlib.AbstractContextManager[object]:
    """Compiled layers run as they were written. Where the compiler is not even loaded there are none."""
    loaded = "torch._dynamo" in sys.modules
    return torch.compiler.set_stance("force_eager") if loaded else contextlib.nullcontext()
