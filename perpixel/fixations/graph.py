"""A model as a graph of operations, and one run of it that keeps only the activations the way back will read."""

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.fx.node import Node, map_arg

from perpixel.checks import complain
from perpixel.fixations.in_place import without_in_place
from perpixel.fixations.tracer import SizedTracer, Tracer, compute

_TRACES: "WeakKeyDictionary[nn.Module, dict[Any, Trace]]" = WeakKeyDictionary()
_WRAPPERS = ("OptimizedModule", "DistributedDataParallel", "DataParallel", "FullyShardedDataParallel", "_FabricModule")


class Trace:
    """A model's graph. It keeps no reference to the model, so that a model that is dropped takes its trace along."""

    def __init__(self, tracer: Tracer, model: nn.Module) -> None:
        graph = tracer.trace(model)
        without_in_place(graph, model)
        self.graph = graph
        self.constants = tracer.constants
        self.nodes = [node for node in graph.nodes if node.op != "output"]
        self.result: Any = next(node for node in reversed(graph.nodes) if node.op == "output").args[0]
        self.weights: dict[Any, Any] = {}  # weights laid out for the way back, see weighted.py

    def prune(self, last: Node) -> None:
        """Forget what `last` does not depend on."""
        needed, stack = set(), [last]
        while stack:
            node = stack.pop()
            if node not in needed:
                needed.add(node)
                stack += node.all_input_nodes
        self.nodes = [node for node in self.nodes if node in needed or node.op == "placeholder"]


def trace(model: nn.Module, images: Tensor, leaves: tuple[type[nn.Module], ...]) -> Trace:
    """The graph of `model`, which is in evaluation mode; kept until a layer is replaced. `leaves` stay one node each.

    Traced for every input size at once; where the model's Python code branches on sizes, for this size.
    TypeError that says what to do where neither works.
    """
    layers = tuple((name, type(layer)) for name, layer in model.named_modules())
    every_size: Any = (layers, leaves, images.device, images.dtype)
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


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside torch.compile, DistributedDataParallel, DataParallel, FSDP or Fabric."""
    while type(model).__name__ in _WRAPPERS or type(model).__name__.startswith("FSDP"):
        inner = [child for name, child in model.named_children() if name in ("_orig_mod", "_original_module", "module")]
        if len(inner) != 1:
            break
        model = inner[0]
    return model


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every layer in evaluation mode inside the block; each put back as it was on exit and on error."""
    training = [layer for layer in model.modules() if layer.training]
    try:
        for layer in training:
            layer.__dict__["training"] = False
        yield
    finally:
        for layer in training:
            layer.__dict__["training"] = True


class Reader(Protocol):
    """What a run asks about a node, once it is computed."""

    def follows(self, node: Node, run: "Run") -> Iterable[Node]:
        """The nodes the points of `node` may move to."""

    def reads(self, node: Node, run: "Run") -> Iterable[Node]:
        """The nodes whose values the move needs."""

    def inner(self, node: Node) -> Iterable[Node]:
        """The nodes that are passed over because `node` and they are one operation."""


class Run:
    """One forward run. A value is freed as soon as no later node and no move back needs it."""

    def __init__(self, trace: Trace, model: nn.Module, images: Tensor, reader: Reader) -> None:
        self.trace, self.model, self.images, self.reader = trace, model, images, reader
        self.values: dict[Node, Any] = {}
        self.shapes: dict[Node, tuple[int, ...]] = {}
        self.tracked: set[Node] = set()  # nodes whose tensor depends on the images
        self._uses: Counter[Node] = Counter()
        self._keeps: Counter[Node] = Counter()
        self._reads: dict[Node, list[Node]] = {}
        self._followers: Counter[Node] = Counter()

    def forward(self) -> Any:
        """The model's output, in the structure the model gives it."""
        results: list[Node] = []
        map_arg(self.trace.result, results.append)
        nodes = self.trace.nodes
        alive = set(nodes)
        self._uses.update(result for result in results if result in alive)
        for node in nodes:
            self._uses.update(node.all_input_nodes)
            self._followers.update(node.all_input_nodes)
        for node in nodes:
            self._uses.update(leaf for inner in self.reader.inner(node) for leaf in inner.all_input_nodes)
        for node in nodes:
            self._compute(node)
        return map_arg(self.trace.result, lambda node: self.values.get(node))

    def blame_nan(self) -> None:
        """ValueError that names the first node with NaN."""
        values: dict[Node, Any] = {}
        for node in self.trace.nodes:
            args, kwargs = map_arg((node.args, node.kwargs), lambda n: values[n])
            values[node] = value = compute(node, args, kwargs, self.model, self.trace.constants, self.images)
            if isinstance(value, Tensor) and value.is_floating_point() and bool(value.isnan().any()):
                raise ValueError(nan_message(node.name))
        raise ValueError(nan_message(self.trace.nodes[-1].name))

    def operands(self, node: Node) -> list[Node]:
        """The tensors `node` is computed from that depend on the images, in the order they are passed."""
        return [n for n in node.all_input_nodes if n in self.tracked]

    def release(self, node: Node) -> None:
        """The move back from `node` is done, or will never be."""
        for read in self._reads.pop(node, []):
            self._keeps[read] -= 1
            self._free(read)

    def start_from(self, node: Node) -> None:
        """Let go of the output itself, unless a move reads it."""
        self._uses[node] -= 1
        self._free(node)

    def _compute(self, node: Node) -> None:
        args, kwargs = map_arg((node.args, node.kwargs), lambda n: self.values[n])
        value = compute(node, args, kwargs, self.model, self.trace.constants, self.images)
        self.values[node] = value
        holds = isinstance(value, Tensor) or (
            isinstance(value, (tuple, list)) and any(torch.is_tensor(v) for v in value)
        )
        if isinstance(value, Tensor):
            self.shapes[node] = tuple(value.shape)
        if holds and (value is self.images or any(n in self.tracked for n in node.all_input_nodes)):
            self.tracked.add(node)
            self._plan(node)
        used = [*node.all_input_nodes, *(n for inner in self.reader.inner(node) for n in inner.all_input_nodes)]
        for n in used:
            self._uses[n] -= 1
            self._free(n)
        self._free(node)

    def _plan(self, node: Node) -> None:
        """Keep what the move back from `node` reads; forget plans on branches no point can take."""
        operands = self.operands(node)
        follows = set(self.reader.follows(node, self))
        reads = [n for n in self.reader.reads(node, self) if n in self.tracked]
        self._reads[node] = reads
        self._keeps.update(reads)
        for operand in operands:
            if operand not in follows:
                self._unfollow(operand)

    def _unfollow(self, node: Node) -> None:
        self._followers[node] -= 1
        if self._followers[node] == 0:
            self.release(node)
            for operand in self.operands(node):
                self._unfollow(operand)

    def _free(self, node: Node) -> None:
        if self._uses[node] == 0 and self._keeps[node] == 0 and node in self.tracked:
            self.values.pop(node, None)


def nan_message(name: str) -> str:
    """The error for a tensor with NaN."""
    return complain(f"node {name!r}", "numbers as activations", "NaN", "Look for an overflow or a bad input upstream.")


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
