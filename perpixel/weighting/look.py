"""Look at a model once more in the middle of a training step, unnoticed."""

import contextlib
import sys
from collections import OrderedDict
from collections.abc import Iterator
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from perpixel.outputs import dense_logits

_SIZES: "WeakKeyDictionary[nn.Module, dict[torch.Size, tuple[int, int]]]" = WeakKeyDictionary()
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


@contextlib.contextmanager
def unnoticed(model: nn.Module, images: Tensor) -> Iterator[bool]:
    """Inside, the model runs in evaluation mode, without gradients, and eagerly where it was compiled.

    Hooks that only record for a criterion (their `only_records` is true) are off; others stay, since some models work
    through theirs. Gives whether all of the model was in evaluation mode before. On exit and on error its train flags
    and hooks, and the random number generators, are as they were.
    """
    layers = list(model.modules())
    training = [layer for layer in layers if layer.training]
    hooks = [(vars(layer), name, vars(layer)[name]) for layer in layers for name in _HOOKS if vars(layer)[name]]
    devices = [images.device] if images.device.type == "cuda" else []
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


def _eager() -> contextlib.AbstractContextManager[object]:
    """Compiled layers run as they were written. Where the compiler is not even loaded there are none."""
    loaded = "torch._dynamo" in sys.modules
    return torch.compiler.set_stance("force_eager") if loaded else contextlib.nullcontext()


def dtype_of(model: nn.Module, images: Tensor) -> torch.dtype:
    """The dtype of the model's parameters; without any, that of the images."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), images.dtype)


def output_size(model: nn.Module, images: Tensor) -> tuple[int, int]:
    """Height and width of the model's output for images of this size; found with one image, once for each size."""
    known = _SIZES.setdefault(model, {})
    if images.shape[1:] not in known:
        logits = dense_logits(model(images[:1]))
        known[images.shape[1:]] = (logits.shape[2], logits.shape[3])
    return known[images.shape[1:]]
