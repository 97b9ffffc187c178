"""The operations of a forward pass, seen as the model's own code calls them."""

import operator
import types
import weakref
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from inspect import Signature
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.fx.node import Node
from torch.fx.operator_schemas import get_signature_for_torch_op
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from perpixel.borrow import intercepted

_PLAIN = {  # methods that give no tensor
    *("size", "dim", "numel", "stride", "is_contiguous", "item", "tolist", "data_ptr", "element_size", "get_device"),
    *(
        "__bool__",
        "__int__",
        "__float__",
        "__len__",
        "__format__",
        "__repr__",
        "__hash__",
        "is_floating_point",
        "nelement",
    ),
}
_REFLECTED: dict[str, Callable[..., Any]] = {
    "__rsub__": operator.sub,
    "__rdiv__": operator.truediv,
    "__rpow__": operator.pow,
    "__rfloordiv__": operator.floordiv,
    "__rmod__": operator.mod,
    "__rmatmul__": operator.matmul,
}
_OPERATORS: dict[str, Callable[..., Any]] = {"__getitem__": operator.getitem, "__setitem__": operator.setitem}
_MADE_OF_LAYERS = (nn.Sequential, nn.MultiheadAttention)
_METHODS = (types.MethodDescriptorType, types.WrapperDescriptorType)

Compute = Callable[..., Any]


class Calls:
    """One forward pass in which a subclass sees, in `call`, every layer and every function of a tensor.

    Layers of torch.nn, and of the classes `leaves`, are seen as a whole, but for those of transformers and attention:
    they as the operations that they are made of, whatever torch would run in their place. Code that torch's function
    mode does not reach (TorchScript, numpy, compiled extensions) is not seen.
    """

    def __init__(self, layers: Mapping[str, nn.Module], leaves: tuple[type[nn.Module], ...]) -> None:
        self.layers = layers
        self._leaves = {name: layer for name, layer in layers.items() if name and is_leaf(layer, leaves)}
        self._inside = False
        self._refused: Exception | None = None
        self._nodes: dict[int, tuple[weakref.ref[Tensor], Node]] = {}

    def call(self, op: str, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], compute: Compute) -> Any:
        """What the operation gives; `compute(*args, **kwargs)` is what it would give unseen."""
        raise NotImplementedError

    def watch(self, images: Tensor) -> Any:
        """The model's output for the images; what was refused meanwhile is raised, even where the model caught it."""
        try:
            with intercepted(self._leaves, self._layer), _Functions(self):
                output = self.layers[""](images)
        except Exception:
            if self._refused is None:
                raise
        if self._refused is not None:
            raise self._refused
        return output

    def refuse(self, error: Exception) -> NoReturn:
        """Stop the pass with this error."""
        self._refused = error
        raise error

    def node_of(self, tensor: Tensor) -> Node | None:
        """The node that gave a tensor; None for what does not depend on the images."""
        found = self._nodes.get(id(tensor))
        return found[1] if found is not None and found[0]() is tensor else None

    def assign(self, tensor: Tensor, node: Node) -> None:
        """From now on a tensor is the result of `node`."""
        self._nodes[id(tensor)] = weakref.ref(tensor), node

    def depends(self, *values: Any) -> bool:
        """Whether a tensor in these arguments was computed from the images."""
        return any(self.node_of(tensor) is not None for tensor in tensors_in(values))

    def _layer(self, name: str, layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
        forward = type(layer).forward
        if self._inside:
            return forward(layer, *args, **kwargs)
        self._inside = True
        try:
            with torch._C.DisableTorchFunction():
                return self.call("call_module", name, args, kwargs, partial(forward, layer))
        finally:
            self._inside = False


class _Functions(TorchFunctionMode):
    def __init__(self, calls: Calls) -> None:
        super().__init__()
        self.calls = calls

    def __torch_function__(
        self, func: Any, kinds: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if func is F.multi_head_attention_forward:
            with self:
                return _written_out(func)(*args, **kwargs)
        if name in _PLAIN:
            return func(*args, **kwargs)
        if name == "__get__":  # an attribute: a tensor only in .T, .data and the like
            value = func(*args)
            if not isinstance(value, Tensor):
                return value
            return self.calls.call("call_function", getattr, (args[0], func.__self__.__name__), {}, getattr)
        if name in _REFLECTED:
            target = _REFLECTED[name]
            return self.calls.call("call_function", target, (args[1], args[0]), kwargs, target)
        if name in _OPERATORS:
            return self.calls.call("call_function", _OPERATORS[name], args, kwargs, func)
        args, kwargs = _by_place(getattr(torch, name, func) if type(func) in _METHODS else func, args, kwargs)
        if type(func) in _METHODS or getattr(Tensor, name, None) is func:
            return self.calls.call("call_method", name, args, kwargs, func)
        return self.calls.call("call_function", func, args, kwargs, func)


def is_leaf(layer: nn.Module, leaves: tuple[type[nn.Module], ...]) -> bool:
    """Whether a layer is one operation: of torch.nn, but no container, or of the classes `leaves`."""
    if "forward" in vars(layer) or isinstance(layer, torch.jit.ScriptModule):
        return False
    return isinstance(layer, leaves) or _is_of_torch(type(layer))  # type: ignore[arg-type]


@cache
def _is_of_torch(kind: type[nn.Module]) -> bool:
    of_torch = kind.__module__.startswith(("torch.nn.modules.", "torch.nn.utils.", "torch.ao.nn."))
    return of_torch and kind.__module__ != nn.Transformer.__module__ and not issubclass(kind, _MADE_OF_LAYERS)


def _by_place(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:
    """Arguments of a function of torch, tensors given by name at their place: rules tell operands by their order."""
    if not any(True for _ in tensors_in(kwargs)):
        return args, kwargs
    for signature in _signatures(func):
        try:
            given = signature.bind(*args, **kwargs)
        except TypeError:
            continue  # an overload with other arguments
        last = max((n for n, value in enumerate(given.args) if any(True for _ in tensors_in(value))), default=-1)
        last = max(last, len(args) - 1)
        names = list(given.arguments)[: last + 1]
        return given.args[: last + 1], {name: value for name, value in kwargs.items() if name not in names}
    return args, kwargs


@cache
def _signatures(func: Any) -> list[Signature]:
    return list(get_signature_for_torch_op(func) or ())


@cache
def _written_out(function: Any) -> Callable[..., Any]:
    """A function of torch.nn.functional that does not hand itself to torch's function mode as a whole."""
    scope = {**function.__globals__, "has_torch_function": lambda tensors: False}
    copy = types.FunctionType(function.__code__, scope, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in a value, in tuples, lists and mappings too."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, Mapping):
        yield from tensors_in(tuple(value.values()))


def replaced(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """A value with `change(tensor)` for every tensor in it."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (tuple, list)):
        return type(value)(replaced(item, change) for item in value) if type(value) in (tuple, list) else value
    if isinstance(value, dict):
        return {key: replaced(item, change) for key, item in value.items()}
    return value
