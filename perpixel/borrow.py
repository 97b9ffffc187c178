"""A model that is not ours, borrowed: run in evaluation mode, unnoticed, and given back as it was."""

import contextlib
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from perpixel.checks import complain

Caller = Callable[[nn.Module, Tensor], Any]  # (model, images) -> the model's output
_WRAPPERS = {  # class -> attribute with the network; by name, so that none of these is imported
    "torch._dynamo.eval_frame.OptimizedModule": "_orig_mod",
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
    "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel": "module",
    "torch.optim.swa_utils.AveragedModel": "module",
    "lightning_fabric.wrappers._FabricModule": "_original_module",
    "lightning.fabric.wrappers._FabricModule": "_original_module",
    "deepspeed.runtime.engine.DeepSpeedEngine": "module",
}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


@contextlib.contextmanager
def borrowed(
    model: nn.Module,
    device: torch.device | None = None,
    *,
    gradients: bool = False,
    restore_all: bool = False,
    processed: bool = False,
) -> Iterator[bool]:
    """Inside, the model runs in evaluation mode, without gradients, and eagerly where it was compiled.

    Hooks that only record for a criterion (their `only_records` is true) are off; others stay, since some models work
    through theirs. Gives whether all of the model was in evaluation mode before. On exit and on error its train flags
    and hooks, and the random number generators (that of `device` too), are as they were.

    gradients: the passes are part of the caller's own computation: its gradient mode and random numbers go on, and
        where gradients are recorded no activation overwrites its input.
    restore_all: whatever is put on the model inside is taken off again: hooks, layers, attributes; its parameters and
        buffers are the same objects on the same memory, with the same gradients and `requires_grad`.
    processed: whether the output is post-processed. If not, the attribute that a model names in `post_processing`, as
        `perpixel.models.DeepLab` does, is None inside.
    """
    with contextlib.ExitStack() as stack:
        if restore_all:
            stack.enter_context(_restored(model))
        if not gradients:
            stack.enter_context(torch.no_grad())
            stack.enter_context(random_numbers(device))
        if "torch._dynamo" in sys.modules:  # compiled layers run as they were written
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        changes = _changes(model, torch.is_grad_enabled(), processed)
        try:
            for layer, name, _, now in changes:
                _set(layer, name, now)
            yield not any(name == "training" for _, name, _, _ in changes)
        finally:
            for layer, name, before, _ in changes:
                _set(layer, name, before)


@contextlib.contextmanager
def random_numbers(device: torch.device | None = None, seed: int | None = None) -> Iterator[None]:
    """torch's generators, of the CPU and of `device`, are put back on exit; with a `seed` they start from it.

    With a seed numpy's global generator, from which captum draws as well, is seeded and put back too.
    """
    devices = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        if seed is None:
            yield
            return
        drawn = np.random.get_state()  # noqa: NPY002
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        try:
            yield
        finally:
            np.random.set_state(drawn)  # noqa: NPY002


@contextlib.contextmanager
def hooked(
    layers: Mapping[str, nn.Module],
    *,
    before: Callable[[str, nn.Module, tuple[Any, ...]], None] | None = None,
    after: Callable[[str, nn.Module, Any], None] | None = None,
) -> Iterator[None]:
    """Inside, `before(name, layer, inputs)` and `after(name, layer, output)` are called at each run of the layers.

    `after` also where the layer fails, with None. On exit and on error no hook stays.
    """
    with contextlib.ExitStack() as stack:
        for name, layer in layers.items():
            if before is not None:
                pre = lambda layer, inputs, name=name: before(name, layer, inputs)  # noqa: E731
                stack.callback(layer.register_forward_pre_hook(pre).remove)
            if after is not None:
                post = lambda layer, _, output, name=name: after(name, layer, output)  # noqa: E731
                stack.callback(layer.register_forward_hook(post, always_call=True).remove)
        yield


@contextlib.contextmanager
def intercepted(layers: Mapping[str, nn.Module], call: Callable[..., Any]) -> Iterator[None]:
    """Inside, `call(name, layer, *args, **kwargs)` stands for the forward of the layers; hooks run around it as ever.

    For layers whose forward is that of their class.
    """
    try:
        for name, layer in layers.items():
            vars(layer)["forward"] = partial(call, name, layer)
        yield
    finally:
        for layer in layers.values():
            vars(layer).pop("forward", None)


def named_layers(model: nn.Module) -> dict[str, nn.Module]:
    """`dict(model.named_modules())`, which takes three times as long."""
    layers: dict[str, nn.Module] = {}
    seen: set[nn.Module] = set()
    waiting: list[tuple[str, nn.Module]] = [("", model)]
    while waiting:
        name, layer = waiting.pop()
        if layer not in seen:
            seen.add(layer)
            layers[name] = layer
            children = layer._modules.items()
            waiting += [(f"{name}.{key}" if name else key, of) for key, of in reversed(children) if of is not None]
    return layers


def called(model: nn.Module, call: Caller | None) -> nn.Module:
    """A module whose output for `images` is `call(model, images)`; the model itself where `call` is None.

    For models that want more than the images, or another keyword: `lambda m, x: m(pixel_values=x)`. Everything else is
    the model's own, not copied: layers and their names, parameters, hooks, train flags; what is set on one is set on
    the other. A deep copy calls the copied model; of DistributedDataParallel and the like, what is inside is called.
    TypeError for a `call` that cannot be called.
    """
    if call is None:
        return model
    if not callable(call):
        remedy = "Pass call=lambda model, images: model(pixel_values=images), say."
        raise TypeError(complain("call", "a function (model, images) -> output, or None", call, remedy))
    return _Called(unwrap(model), call)


class _Called(nn.Module):
    """`called`: another way to run a model, on the very `__dict__` of the model, so that nothing can differ."""

    __slots__ = ("_call", "_model")

    def __init__(self, model: nn.Module, call: Caller) -> None:
        model = model._model if isinstance(model, _Called) else model
        for name, value in {"__dict__": vars(model), "_model": model, "_call": call}.items():
            object.__setattr__(self, name, value)

    def forward(self, images: Tensor) -> Any:
        return self._call(self._model, images)

    __call__ = forward  # the model's hooks run where `call` calls it

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self._model, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._model, name)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Called, (self._model, self._call)


def dtype_of(model: nn.Module, images: Tensor) -> torch.dtype:
    """The dtype of the model's parameters; without any, that of the images."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), images.dtype)


def unwrap(model: nn.Module) -> nn.Module:
    """The network inside torch.compile, DistributedDataParallel, FSDP, DataParallel, AveragedModel, Fabric, DeepSpeed.

    Any other module is a network of its own, even if all it holds is one called `module`.
    """
    names = (f"{kind.__module__}.{kind.__qualname__}" for kind in type(model).__mro__)
    attribute = next((_WRAPPERS[name] for name in names if name in _WRAPPERS), None)
    return model if attribute is None else unwrap(getattr(model, attribute))


def _changes(model: nn.Module, gradients: bool, processed: bool) -> list[tuple[nn.Module, str, Any, Any]]:
    """What to change: the layer, the name of its attribute, the value before and inside."""
    changes: list[tuple[nn.Module, str, Any, Any]] = []
    found = {model: None}
    layers = [model]
    for layer in layers:  # model.modules() takes three times as long
        state = vars(layer)
        for child in layer._modules.values():
            if child is not None and child not in found:
                found[child] = None
                layers.append(child)
        if layer.training:
            changes.append((layer, "training", True, False))
        if gradients and state.get("inplace") is True:
            changes.append((layer, "inplace", True, False))
        declared = None if processed else state.get("post_processing")
        if isinstance(declared, str) and state.get(declared) is not None:
            changes.append((layer, declared, state[declared], None))
        for name in _HOOKS:
            hooks = state[name]
            if hooks and any(_is_off(hook) for hook in hooks.values()):
                kept = OrderedDict((key, hook) for key, hook in hooks.items() if not _is_off(hook))
                changes.append((layer, name, hooks, kept))
    return changes


def _set(layer: nn.Module, name: str, value: object) -> None:
    """Without what nn.Module does about parameters; scripted layers have no attributes of their own."""
    (object.__setattr__ if name in vars(layer) else setattr)(layer, name, value)


def _is_off(hook: object) -> bool:
    return getattr(hook, "only_records", False)


@contextlib.contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    """Every attribute, layer, hook, parameter and buffer of the model is put back."""
    kept = [(layer, dict(vars(layer)), _registries(layer)) for layer in model.modules()]
    tensors = [(t, t.data, t.requires_grad, t.grad) for t in (*model.parameters(), *model.buffers())]
    try:
        yield
    finally:
        for layer, attributes, registries in kept:
            state = vars(layer)
            for name in state.keys() - attributes.keys():
                del state[name]
            flags = {"training", "inplace", *registries}
            state.update({name: value for name, value in attributes.items() if name not in state or name in flags})
            for name, entries in registries.items():
                state[name].clear()
                state[name].update(entries)
        for tensor, data, requires_grad, grad in tensors:
            if tensor.data_ptr() != data.data_ptr():
                tensor.data = data
            if tensor.requires_grad != requires_grad:
                tensor.requires_grad_(requires_grad)
            if tensor.grad is not grad:
                tensor.grad = grad


def _registries(layer: nn.Module) -> dict[str, dict[Any, Any]]:
    """What a layer's own registries hold: its hooks, layers, parameters and buffers."""
    names = [name for name in vars(layer) if "hooks" in name or name in ("_modules", "_parameters", "_buffers")]
    return {name: dict(value) for name in names if isinstance(value := vars(layer)[name], dict)}
