"""torch.fx tracers that call no hooks and store nothing on the model."""

import logging
import operator
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.fx.node import Node, map_aggregate

_LOG = logging.getLogger("torch._subclasses.fake_tensor")


class Tracer(fx.Tracer):
    """Traces for every input size at once."""

    proxy_buffer_attributes = True

    def __init__(self, leaves: tuple[type[nn.Module], ...]) -> None:
        super().__init__()
        self.leaves = leaves
        self.constants: dict[str, Tensor] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, self.leaves) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = self.path_of_module(m)
        if self.is_leaf_module(m, name):
            return self.create_proxy("call_module", name, args, kwargs)
        return m.forward(*args, **kwargs)

    def create_arg(self, a: Any) -> Any:
        known = isinstance(a, nn.Parameter) or any(a is buffer for buffer in self.root.buffers())
        if not isinstance(a, Tensor) or known:
            return super().create_arg(a)
        name = f"_tensor_constant{len(self.constants)}"
        self.constants[name] = a
        return self.create_node("get_attr", name, (), {})


class SizedTracer(Tracer):
    """Traces for one input size: Python code that asks for sizes gets numbers, so that it may branch on them."""

    def __init__(self, leaves: tuple[type[nn.Module], ...], images: Tensor) -> None:
        super().__init__(leaves)
        from torch._subclasses.fake_tensor import FakeTensorMode

        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.images = self.mode.from_tensor(images)
        self.evaluating = False

    def proxy(self, node: Node) -> "Sized":
        return Sized(node, self)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self.evaluating else super().getattr(attr, attr_val, parameter_proxy_cache)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return forward(*args, **kwargs) if self.evaluating else super().call_module(m, forward, args, kwargs)

    def iter(self, obj: Any) -> Iterator[Any]:
        value = obj.value if isinstance(obj, Sized) else None
        return iter([obj[i] for i in range(len(value))]) if isinstance(value, (tuple, list)) else super().iter(obj)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any) -> Any:
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **more)
        given = map_aggregate((args, kwargs), lambda a: a.value if isinstance(a, Sized) else a)
        value = self._value(proxy.node, *given)
        found = value if isinstance(value, (tuple, list)) else [value]
        if kind == "placeholder" or any(isinstance(item, Tensor) for item in found):
            cast(Sized, proxy).value = value
            return proxy
        self.graph.erase_node(proxy.node)
        return value

    def _value(self, node: Node, args: Any, kwargs: Any) -> Any:
        self.evaluating = True
        _LOG.disabled = True  # what fails is raised, no need to print it too
        try:
            with self.mode, torch.no_grad():
                return compute(node, args, kwargs, self.root, self.constants, self.images)
        finally:
            self.evaluating = _LOG.disabled = False


class Sized(fx.Proxy):
    """A proxy that knows size, dtype and device of what it stands for."""

    value: Any = None

    def __getattr__(self, k: str) -> Any:
        found = getattr(self.value, k)
        return super().__getattr__(k) if callable(found) or isinstance(found, Tensor) else found

    def __len__(self) -> int:
        return len(self.value)


def compute(node: Node, args: Any, kwargs: Any, model: nn.Module, constants: dict[str, Tensor], images: Tensor) -> Any:
    """What `node` gives for `args` and `kwargs`; the hooks of the model's layers are not called."""
    target: Any = node.target
    if node.op == "placeholder":
        return images if node.prev.op != "placeholder" else node.args[0]
    if node.op == "get_attr":
        return constants[target] if target in constants else operator.attrgetter(target)(model)
    if node.op == "call_module":
        return out_of_place(model.get_submodule(target)).forward(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], target)(*args[1:], **kwargs)
    return target(*args, **kwargs)


def out_of_place(layer: nn.Module, overwrite: bool = False) -> nn.Module:
    """The layer, or a stand-in with the same parameters that overwrites its input only if it may."""
    if layer.__dict__.get("inplace", overwrite) == overwrite:
        return layer
    twin = object.__new__(type(layer))
    twin.__dict__.update(layer.__dict__, inplace=overwrite)
    return twin
