"""One run of a traced model that keeps only the activations the way back will read."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx.node import Node, map_arg

from perpixel.checks import complain
from perpixel.fixations.trace.graph import Layers, Trace
from perpixel.fixations.trace.in_place import operation
from perpixel.fixations.trace.tracer import compute, out_of_place
from perpixel.memory_format import channels_last_is_faster

Array = np.ndarray[Any, Any]
_SIZES = 8  # of images, and sets of rules, for which a plan is kept
_WATCHED = 1 << 20  # scores up to which looking for NaN in them is put off
_MAKERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.BatchNorm2d, nn.GroupNorm)


class Reader(Protocol):
    """What a run asks about a node, once it is computed."""

    def follows(self, node: Node, run: "Run") -> Iterable[Node]:
        """The nodes the points of `node` may move to."""

    def reads(self, node: Node, run: "Run") -> Iterable[Node]:
        """The nodes whose values the move needs."""

    def inner(self, node: Node) -> Iterable[Node]:
        """The nodes that are passed over because `node` and they are one operation."""


@dataclass
class Plan:
    """What one run found out about the graph at one size of images: the next needs not ask again."""

    shapes: dict[Node, tuple[int, ...]] = field(default_factory=dict)
    tracked: set[Node] = field(default_factory=set)  # nodes whose tensor depends on the images
    reads: dict[Node, list[Node]] = field(default_factory=dict)  # what the move back from a node reads
    keeps: "Counter[Node]" = field(default_factory=Counter)  # how many moves back still read a node
    frees: dict[Node, list[Node]] = field(default_factory=dict)  # what nobody needs once a node is computed
    overwrites: set[Node] = field(default_factory=set)  # activations that may be computed in their input's memory
    tables: dict[Any, Any] = field(default_factory=dict)  # where the places of results look


class Run:
    """One forward run. A value is freed as soon as no later node and no move back needs it."""

    def __init__(self, trace: Trace, layers: Layers, images: Tensor, reader: Reader, kind: Any) -> None:
        self.trace, self.layers, self.reader, self.given = trace, layers, reader, images
        self.images = images
        if not trace.plain and channels_last_is_faster(images):
            self.images = images.contiguous(memory_format=torch.channels_last)
        self.model = layers[""]
        self.values: dict[Node, Any] = {}
        self._watched: list[tuple[Node, Array]] = []
        self._watching = 0
        self._key = (kind, tuple(images.shape)) if kind is not None else None
        known = trace.plans.get(self._key)
        self.plan = known or Plan()
        self._planned = known is not None
        self._keeps = Counter(self.plan.keeps)
        self._reads = dict(self.plan.reads)
        self._uses: Counter[Node] = Counter()
        self._followers: Counter[Node] = Counter()

    @property
    def shapes(self) -> dict[Node, tuple[int, ...]]:
        """The shape of every tensor."""
        return self.plan.shapes

    @property
    def tracked(self) -> set[Node]:
        """The nodes whose tensor depends on the images."""
        return self.plan.tracked

    def forward(self) -> Any:
        """The model's output, in the structure the model gives it."""
        if self._planned:
            for node in self.trace.nodes:
                self.values[node] = self._value(node)
                for free in self.plan.frees.get(node, ()):
                    self.values.pop(free, None)
        else:
            self._find_out()
        return map_arg(self.trace.result, lambda node: self.values.get(node))

    def start_from(self, node: Node) -> None:
        """Let go of the output, unless a move reads it, and of what only other outputs need; remember the plan."""
        whole = len(self.trace.nodes)
        self.trace.prune(node)
        if not self._planned and self._key is not None and len(self.trace.nodes) == whole:
            self.plan.reads, self.plan.keeps = dict(self._reads), Counter(self._keeps)
            self.trace.plans[self._key] = self.plan
            if len(self.trace.plans) > _SIZES:
                del self.trace.plans[next(iter(self.trace.plans))]
        self._uses.clear()
        self._free(node, None)

    def operands(self, node: Node) -> list[Node]:
        """The tensors `node` is computed from that depend on the images, in the order they are passed."""
        return [n for n in node.all_input_nodes if n in self.plan.tracked]

    def release(self, node: Node) -> None:
        """The move back from `node` is done, or will never be."""
        for read in self._reads.pop(node, ()):
            self._keeps[read] -= 1
            self._free(read, None)

    def blame_nan(self) -> None:
        """ValueError that names the first node with NaN."""
        self.values.clear()
        for node in self.trace.nodes:
            args, kwargs = map_arg((node.args, node.kwargs), lambda n: self.values[n])
            value = compute(node, args, kwargs, self.model, self.trace.constants, self.images)
            self.values[node] = value
            if isinstance(value, Tensor) and value.is_floating_point() and bool(value.isnan().any()):
                raise ValueError(nan_message(node.name))
        raise ValueError(nan_message(self.trace.nodes[-1].name))

    def watch(self, node: Node, scores: Array) -> None:
        """ValueError naming `node`, at `check` at the latest, if these scores of its values are not numbers."""
        self._watched.append((node, scores))
        self._watching += scores.size
        if self._watching > _WATCHED:
            self.check()

    def check(self) -> None:
        """ValueError if something watched was not a number."""
        watched, self._watched, self._watching = self._watched, [], 0
        if watched and np.isnan(np.concatenate([scores.ravel() for _, scores in watched])).any():
            for node, scores in watched:
                if np.isnan(scores).any():
                    raise ValueError(nan_message(node.name))

    def _value(self, node: Node) -> Any:
        args = node.args
        if node.op == "call_module" and len(args) == 1 and isinstance(args[0], Node) and not node.kwargs:
            layer = out_of_place(self.layers[str(node.target)], node in self.plan.overwrites)
            return layer.forward(self.values[args[0]])
        args, kwargs = map_arg((args, node.kwargs), lambda n: self.values[n])
        value = compute(node, args, kwargs, self.model, self.trace.constants, self.images)
        if self.images.is_contiguous() or operation(node) != "interpolate" or value.ndim != 4:
            return value
        return value.contiguous(
            memory_format=torch.channels_last
        )  # what grew from one pixel turns what it is joined to

    def _find_out(self) -> None:
        try:
            self._first_forward()
        except RuntimeError:
            if self.images is self.given:
                raise
            self.images, self.plan = self.given, Plan()
            for found in (self.values, self._keeps, self._reads, self._uses, self._followers):
                found.clear()
            self._first_forward()
            self.trace.plain = True  # its code makes a view across channels, or the like

    def _first_forward(self) -> None:
        results: list[Node] = []
        map_arg(self.trace.result, results.append)
        nodes, plan = self.trace.nodes, self.plan
        self._uses.update(set(results) & set(nodes))
        for node in nodes:
            inner = self.reader.inner(node)
            self._uses.update([*node.all_input_nodes, *(n for i in inner for n in i.all_input_nodes)])
            self._followers.update(node.all_input_nodes)
        for node in nodes:
            value = self.values[node] = self._value(node)
            items = value if isinstance(value, (tuple, list)) else (value,)
            if isinstance(value, Tensor):
                plan.shapes[node] = tuple(value.shape)
            inputs = node.all_input_nodes
            if any(isinstance(v, Tensor) for v in items) and (
                value is self.images or plan.tracked.intersection(inputs)
            ):
                plan.tracked.add(node)
                self._look_back(node)
            for n in (*inputs, *(n for inner in self.reader.inner(node) for n in inner.all_input_nodes)):
                self._uses[n] -= 1
                self._free(n, node)
            self._free(node, node)
            if _may_overwrite(node, self.layers) and inputs[0] in plan.frees.get(node, ()):
                plan.overwrites.add(node)

    def _look_back(self, node: Node) -> None:
        """Keep what the move back from `node` reads; forget what is kept for branches no point can take."""
        follows = set(self.reader.follows(node, self))
        self._reads[node] = [n for n in self.reader.reads(node, self) if n in self.plan.tracked]
        self._keeps.update(self._reads[node])
        for operand in self.operands(node):
            if operand not in follows:
                self._unfollow(operand, node)

    def _unfollow(self, node: Node, now: Node) -> None:
        self._followers[node] -= 1
        if self._followers[node] == 0:
            for read in self._reads.pop(node, ()):
                self._keeps[read] -= 1
                self._free(read, now)
            for operand in self.operands(node):
                self._unfollow(operand, now)

    def _free(self, node: Node, now: Node | None) -> None:
        if self._uses[node] == 0 and self._keeps[node] == 0 and node in self.plan.tracked and node in self.values:
            del self.values[node]
            if now is not None and not self._planned:
                self.plan.frees.setdefault(now, []).append(node)


def _may_overwrite(node: Node, layers: dict[str, nn.Module]) -> bool:
    """Whether a node is an activation right after a layer that made its input and nothing else."""
    if node.op != "call_module" or len(node.args) != 1 or node.kwargs:
        return False
    (source,) = node.args
    if not isinstance(source, Node) or source.op != "call_module" or len(source.users) != 1:
        return False
    return hasattr(layers[str(node.target)], "inplace") and isinstance(layers[str(source.target)], _MAKERS)


def nan_message(name: str) -> str:
    """The error for a tensor with NaN."""
    return complain(f"node {name!r}", "numbers as activations", "NaN", "Look for an overflow or a bad input upstream.")
