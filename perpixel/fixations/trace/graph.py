"""A model as the graph of the operations that its own forward calls."""

import contextlib
import inspect
import operator
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import Node

from perpixel.checks import complain
from perpixel.fixations.trace.calls import Calls, Compute, replaced, tensors_in
from perpixel.fixations.trace.operations import name_of, without_overwriting

_SIZES = 8  # of images, for which a model's graph is kept
_TRACES: "weakref.WeakKeyDictionary[nn.Module, dict[Any, Trace]]" = weakref.WeakKeyDictionary()
_DATA = {torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor}  # what they are made of is not seen


Layers = Mapping[str, nn.Module]


@dataclass
class Call:
    """One operation as it was called, and what is done to call it without overwriting its input.

    layer: its class, and whether it overwrites. same: the result is the very tensor that came first. copies: it
    is overwritten, by an operation that has no other form, so that it is given a copy. items: the nodes of the tensors
    in a result that is a tuple.
    """

    node: Node
    op: str
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    layer: Any = None
    same: bool = False
    copies: bool = False
    items: dict[int, Node] = field(default_factory=dict)

    @cached_property
    def is_plain(self) -> bool:
        """Whether it is a layer with one operand, to be called as it is."""
        one = self.op == "call_module" and len(self.args) == 1 and isinstance(self.args[0], Node)
        return one and not (self.kwargs or self.copies or self.items)


@dataclass
class Trace:
    """The graph of a model for images of one size, with what runs of it found out.

    It keeps no reference to the model, so that a model that is dropped takes its traces along.
    constants: shape and dtype of the tensors that do not depend on the images; unseen: those of which no operation is
    known that made them. own: recorded with the images of its first run, not others.
    """

    graph: fx.Graph
    calls: list[Call]
    constants: dict[Node, tuple[torch.Size, torch.dtype]]
    unseen: dict[Node, Tensor]
    own: bool
    plans: dict[Any, Any] = field(default_factory=dict)  # by rules, see run.py
    rules: dict[Any, Any] = field(default_factory=dict)
    inner: dict[Node, list[Node]] = field(default_factory=dict)
    plain: bool = False  # whether its code needs tensors in the usual order of memory

    def __post_init__(self) -> None:
        self.nodes = list(self.graph.nodes)


class Recorder(Calls):
    """Records the graph of one forward pass."""

    def __init__(self, layers: Mapping[str, nn.Module], leaves: tuple[type[nn.Module], ...]) -> None:
        super().__init__(layers, leaves)
        self.graph = fx.Graph()
        self.calls: list[Call] = []
        self.constants: dict[Node, tuple[torch.Size, torch.dtype]] = {}
        self.unseen: dict[Node, Tensor] = {}
        self._constants: dict[int, Node] = {}
        self._kept: list[Tensor] = []  # so that no constant's id is given to another
        self._known: dict[int, weakref.ref[Tensor]] = {}  # constants whose operation was seen
        self._named: dict[int, str] = {}
        for name, of_model in (*layers[""].named_parameters(), *layers[""].named_buffers()):
            self._named[id(of_model)] = name
        self._order: dict[Node, int] = {}
        self._written: dict[int, tuple[int, str]] = {}  # memory that was overwritten: when, and by what

    def record(self, images: Tensor, own: bool) -> Trace:
        """The graph for images of this size; TypeError for a model whose operations cannot be followed."""
        self._assign(images, self.graph.placeholder(_first_argument(self.layers[""])))
        self.watch(images)
        return Trace(self.graph, self.calls, self.constants, self.unseen, own)

    def call(self, op: str, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], compute: Compute) -> Any:
        first = args[0] if args and isinstance(args[0], Tensor) else None
        if not self.depends(args, kwargs):
            value = compute(*args, **kwargs)
            if compute not in _DATA and all(self._is_known(tensor) for tensor in tensors_in((args, kwargs))):
                self._known.update((id(tensor), weakref.ref(tensor)) for tensor in tensors_in(value))
            return value
        if target is operator.setitem or isinstance(kwargs.get("out"), Tensor):
            self._refuse_writing(name_of(target))
        before = _version(first)
        given = replaced(args, self._argument), replaced(dict(kwargs), self._argument)
        value = compute(*args, **kwargs)
        if not any(True for _ in tensors_in(value)):
            return value
        node = self.graph.create_node(op, target, *given)
        call = Call(node, op, target, *given, kind_of(self.layers, op, target), value is first)
        if isinstance(value, Tensor):
            self._assign(value, node)
        else:
            self._assign_items(value, call)
        if first is not None and _version(first) != before:
            self._overwrites(call, first)
        self.calls.append(call)
        return value

    def _overwrites(self, call: Call, first: Tensor) -> None:
        """The operation has overwritten its first operand, which stands for its result from now on."""
        node = call.node
        node.target = without_overwriting(call.target)
        if "inplace" in call.kwargs:
            node.kwargs = {**call.kwargs, "inplace": False}
        layer = self.layers[call.target] if node.op == "call_module" else None
        call.copies = node.target == call.target and "inplace" not in call.kwargs and not hasattr(layer, "inplace")
        call.same = True
        self._assign(first, node)
        self._written[first.untyped_storage().data_ptr()] = self._order[node], name_of(call.target)

    def _assign(self, tensor: Tensor, node: Node) -> None:
        self._order[node] = len(self._order)
        self.assign(tensor, node)

    def _assign_items(self, values: Any, call: Call) -> None:
        self._order[call.node] = len(self._order)
        for place, value in enumerate(values if isinstance(values, (tuple, list)) else ()):
            if isinstance(value, Tensor):
                call.items[place] = self.graph.call_function(operator.getitem, (call.node, place))
                self._assign(value, call.items[place])

    def _argument(self, tensor: Tensor) -> Node:
        """The node of an operand."""
        node = self.node_of(tensor)
        if node is None:
            return self._constant(tensor)
        if self._written:
            when, by = self._written.get(tensor.untyped_storage().data_ptr(), (-1, ""))
            if when > self._order[node]:
                self._refuse_writing(by)
        return node

    def _constant(self, tensor: Tensor) -> Node:
        if id(tensor) not in self._constants:
            name = self._named.get(id(tensor), f"constant_{len(self._constants)}")
            node = self._constants[id(tensor)] = self.graph.get_attr(name)
            self.constants[node] = tensor.shape, tensor.dtype
            self._kept.append(tensor)
            if not self._is_known(tensor):
                self.unseen[node] = tensor
        return self._constants[id(tensor)]

    def _is_known(self, tensor: Tensor) -> bool:
        known = self._known.get(id(tensor))
        return id(tensor) in self._named or (known is not None and known() is tensor)

    def _refuse_writing(self, name: str) -> None:
        remedy = "Write into a new tensor (torch.cat, torch.where) in the model's forward."
        came = f"node {name!r}, which overwrites a part of one"
        self.refuse(TypeError(complain("model", "no tensor overwritten in part", came, remedy)))


def _first_argument(model: nn.Module) -> str:
    try:
        return next(iter(inspect.signature(model.forward).parameters), "images")
    except ValueError:  # code that is not Python's
        return "images"


def kind_of(layers: Layers, op: str, target: Any) -> Any:
    """What must not change about a layer for its node to stand for it."""
    return (type(layers[target]), vars(layers[target]).get("inplace")) if op == "call_module" else None


def _version(tensor: Tensor | None) -> int | None:
    """A number that changes when a tensor is overwritten; None where torch keeps none."""
    return None if tensor is None or tensor.is_inference() else tensor._version


def traced(
    model: nn.Module,
    call: object,
    layers: Layers,
    leaves: tuple[type[nn.Module], ...],
    images: Tensor,
    *,
    own: bool = False,
) -> Trace:
    """The graph of `model` for images of this size, kept until `own` asks for a new one, recorded with these images.

    At first it is recorded with other images: what differs in the first run then depends on them. call: how the model
    is called; functions of the same code, as a lambda in a loop makes them, share a graph.
    """
    kept = _TRACES.setdefault(model, {})
    key = getattr(call, "__code__", None), leaves, images.shape, images.dtype, images.device
    trace = kept.pop(key, None)
    if trace is None or own:
        trace = _recorded(layers, leaves, images, own)
    kept[key] = trace
    while len(kept) > _SIZES:
        del kept[next(iter(kept))]
    return trace


@torch.inference_mode(False)
@torch.no_grad()
def _recorded(layers: Layers, leaves: tuple[type[nn.Module], ...], images: Tensor, own: bool) -> Trace:
    if not own:
        ramp = torch.linspace(0, 0.5, images.shape[-1], device=images.device, dtype=images.dtype)
        with contextlib.suppress(Exception):  # a model may refuse such images: its error for the given ones counts
            return Recorder(layers, leaves).record(images.flip(-1) * 0.5 + ramp, own=False)
    return Recorder(layers, leaves).record(images.clone(), own=True)
