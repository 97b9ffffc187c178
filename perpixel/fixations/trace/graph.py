"""A model as a graph of operations, traced once and kept with it."""

from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.fx.node import Node

from perpixel.checks import complain
from perpixel.fixations.trace.in_place import without_in_place
from perpixel.fixations.trace.tracer import SizedTracer, Tracer

_TRACES: "WeakKeyDictionary[nn.Module, dict[Any, Trace]]" = WeakKeyDictionary()


class Trace:
    """A model's graph. It keeps no reference to the model, so that a model that is dropped takes its trace along."""

    def __init__(self, tracer: Tracer, model: nn.Module) -> None:
        graph = tracer.trace(model)
        without_in_place(graph, model)
        self.graph = graph
        self.constants = tracer.constants
        self.nodes = [node for node in graph.nodes if node.op != "output"]
        self.result: Any = next(node for node in reversed(graph.nodes) if node.op == "output").args[0]
        self.weights: dict[Any, Any] = {}  # weights laid out for the way back, see rules/convolution.py
        self.plans: dict[Any, Any] = {}  # by rules and image size, see run.py
        self.rules: dict[Any, Any] = {}
        self.inner: dict[Node, list[Node]] = {}
        self.plain = False  # whether its code needs tensors in the usual order of memory

    def prune(self, last: Node) -> None:
        """Forget what `last` does not depend on."""
        needed, stack = set(), [last]
        while stack:
            node = stack.pop()
            if node not in needed:
                needed.add(node)
                stack += node.all_input_nodes
        self.nodes = [node for node in self.nodes if node in needed or node.op == "placeholder"]


Layers = dict[str, nn.Module]


def traced(model: nn.Module, layers: Layers, images: Tensor, leaves: tuple[type[nn.Module], ...]) -> Trace:
    """The graph of `model`, which is in evaluation mode; kept until a layer is replaced. `leaves` stay one node each.

    Traced for every input size at once; where the model's Python code branches on sizes, for this size.
    TypeError that says what to do where neither works.
    """
    types = tuple((name, type(layer)) for name, layer in layers.items())
    every_size: Any = (types, leaves, images.device, images.dtype)
    this_size: Any = (*every_size, tuple(images.shape))
    cache = _TRACES.setdefault(model, {})
    found = cache.get(every_size) or cache.get(this_size)
    if found is not None:
        return found
    try:
        cache[every_size] = found = Trace(Tracer(leaves), model)
    except Exception:
        try:
            cache[this_size] = found = Trace(SizedTracer(leaves, images), model)
        except Exception as error:
            remedy = (
                "Its forward may branch on sizes but not on the values of tensors. Put the part that does into a "
                "module of its own with a rule, FixationRules(extra={ThatModule: rule}), or pass the part of the "
                "model that can be traced."
            )
            came = f"{type(error).__name__}: {error}"
            raise TypeError(complain("model", "a network torch.fx can trace", came, remedy)) from error
    return found


def last_node(graph_trace: Trace, output: Any, logits: Tensor) -> Node:
    """The node whose tensor is `logits` in `output`, the value of the graph's result."""
    pairs: list[tuple[Node, Any]] = []
    _pair(graph_trace.result, output, pairs)
    return next(node for node, value in pairs if value is logits)


def _pair(result: Any, output: Any, pairs: list[tuple[Node, Any]]) -> None:
    if isinstance(result, Node):
        pairs.append((result, output))
    elif isinstance(result, dict):
        for key, value in result.items():
            _pair(value, output[key], pairs)
    elif isinstance(result, (tuple, list)):
        for item, value in zip(result, output):
            _pair(item, value, pairs)
