"""One run of a model, beside its graph, that keeps only the activations the way back will read."""

import weakref
from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.node import Node, map_arg

from perpixel.checks import complain
from perpixel.fixations.trace.calls import Calls, Compute, replaced, tensors_in
from perpixel.fixations.trace.graph import Call, Trace, kind_of
from perpixel.fixations.trace.operations import compute, operation, out_of_place
from perpixel.fixations.trace.plan import Plan, Reader, may_overwrite
from perpixel.fixations.trace.scores import Scores, nan_message
from perpixel.memory_format import channels_last_is_faster

_RULES = 8  # sets of rules for which a plan is kept


class Differs(Exception):
    """The model calls other operations than its graph has."""


class Run(Calls):
    """One forward pass of the model, held against its graph at every operation.

    A value is let go as soon as no later operation and no move back needs it.
    """

    def __init__(
        self,
        trace: Trace,
        layers: Mapping[str, nn.Module],
        leaves: tuple[type[nn.Module], ...],
        images: Tensor,
        reader: Reader,
        kind: Any,
    ) -> None:
        super().__init__(layers, leaves)
        self.trace, self.reader, self.given, self.kind = trace, reader, images, kind
        self.scores = Scores()
        self._begin(images)

    def _begin(self, images: Tensor) -> None:
        self.images, self._plain = images, images.is_contiguous()
        self.values: dict[Node, Any] = {}
        known = self.trace.plans.get(self.kind) if self.kind is not None else None
        self.plan = known or Plan()
        self._planned = known is not None
        self._keeps = Counter(self.plan.keeps)
        self._reads = dict(self.plan.reads)
        self._uses: Counter[Node] = Counter()
        self._followers: Counter[Node] = Counter()
        self._done = 0
        self._refused = None
        self._stale: dict[int, tuple[weakref.ref[Tensor], Tensor]] = {}
        self._aliases: dict[int, list[weakref.ref[Tensor]]] = {}
        self._nodes.clear()

    @property
    def shapes(self) -> dict[Node, tuple[int, ...]]:
        """The shape of every tensor."""
        return self.plan.shapes

    @property
    def tracked(self) -> set[Node]:
        """The nodes whose tensor depends on the images."""
        return self.plan.tracked

    def forward(self) -> Any:
        """The model's output. `Differs` where the model does not do what the graph says."""
        if not self.trace.plain and channels_last_is_faster(self.given):
            self._begin(self.given.contiguous(memory_format=torch.channels_last))
            try:
                return self._forward()
            except (RuntimeError, Differs):
                if self.images is self.given:
                    raise
            self._begin(self.given)
            output = self._forward()
            self.trace.plain = True  # its code makes a view across channels, or the like
            return output
        return self._forward()

    def _forward(self) -> Any:
        if not self._planned:
            self._count_uses()
        image = self.trace.nodes[0]
        self.assign(self.images, image)
        self._store(image, self.images)
        output = self.watch(self.images)
        if self._done < len(self.trace.calls):
            raise Differs
        self.trace.unseen.clear()
        return output

    def _layer(self, name: str, layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
        calls, done = self.trace.calls, self._done
        if not self._inside and self._planned and done < len(calls) and len(args) == 1 and not kwargs:
            call, given, kind = calls[done], args[0], type(layer)
            found = self._nodes.get(id(given))
            expected = call.is_plain and call.target == name and call.layer == (kind, vars(layer).get("inplace"))
            if expected and found is not None and found[1] is call.args[0] and found[0]() is given:
                self._done, self._inside = done + 1, True
                try:
                    with torch._C.DisableTorchFunction():
                        runs = out_of_place(layer, call.node in self.plan.overwrites)
                        return self._register(call, args, kind.forward(runs, self.values[found[1]]))
                finally:
                    self._inside = False
        return super()._layer(name, layer, *args, **kwargs)

    def call(self, op: str, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], compute: Compute) -> Any:
        if self._done < len(self.trace.calls):
            call = self.trace.calls[self._done]
            if self._same(call, op, target, args, kwargs):
                self._done += 1
                return self._register(call, args, self._value(call))
        depends = self.depends(args, kwargs)
        value = compute(*replaced(args, self.current), **replaced(dict(kwargs), self.current))
        if depends and any(True for _ in tensors_in(value)):
            self.refuse(Differs())
        return value

    def current(self, tensor: Tensor) -> Tensor:
        """A tensor, or what it would hold by now, had the model's code overwritten it."""
        stale = self._stale.get(id(tensor))
        return tensor if stale is None else stale[1]

    def _register(self, call: Call, args: tuple[Any, ...], value: Any) -> Any:
        node = call.node
        if isinstance(value, Tensor):
            self.assign(value, node)
        if call.same:
            self._alias(args[0], value, node)
        self._store(node, value)
        for place, item in call.items.items():
            self.assign(value[place], item)
            self._store(item, value[place])
        return value

    def _alias(self, given: Tensor, value: Tensor, node: Node) -> None:
        """Let every tensor that is `given` for the model's code, and `value`, stand for the result of `node`."""
        refs = self._aliases.get(id(given), [])
        if not any(ref() is given for ref in refs):
            if given is value:
                return
            refs = [weakref.ref(given)]
        if not any(ref() is value for ref in refs):
            refs.append(weakref.ref(value))
        for ref in refs:
            tensor = ref()
            if tensor is not None:
                self.assign(tensor, node)
                self._aliases[id(tensor)] = refs
                if tensor is not value:
                    forget = partial(_forget, self._stale, id(tensor))
                    self._stale[id(tensor)] = weakref.ref(tensor, forget), value

    def _same(self, call: Call, op: str, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Whether this is the operation that the graph says, on what it says."""
        if call.op != op or call.target != target or call.layer != kind_of(self.layers, op, target):
            return False
        if len(args) == len(call.args) == 1 and not kwargs and not call.kwargs:
            return self._agree(call.args[0], args[0])
        return self._agree(call.args, args) and self._agree(call.kwargs, kwargs)

    def _agree(self, recorded: Any, given: Any) -> bool:
        if isinstance(given, Tensor):
            node = self.node_of(given)
            return node is recorded if node is not None else self._is_constant(recorded, given)
        if isinstance(given, (tuple, list)):
            alike = isinstance(recorded, (tuple, list)) and len(recorded) == len(given)
            return alike and all(map(self._agree, recorded, given))
        if isinstance(given, Mapping):
            alike = isinstance(recorded, Mapping) and recorded.keys() == given.keys()
            return alike and all(self._agree(recorded[name], value) for name, value in given.items())
        return recorded is given or (type(recorded) is type(given) and bool(recorded == given))

    def _is_constant(self, recorded: Any, given: Tensor) -> bool:
        if self.trace.constants.get(recorded) != (given.shape, given.dtype):
            return False
        unseen = self.trace.unseen.get(recorded)
        if unseen is not None and unseen is not given and (self.trace.own or not torch.equal(unseen, given)):
            remedy = (
                "It comes from code that cannot be followed (TorchScript, numpy, an extension, random numbers). Put "
                "that into a module of its own with a rule, FixationRules(extra={ThatModule: rule})."
            )
            came = f"one that changes from call to call, in node {next(iter(recorded.users)).name!r}"
            self.refuse(TypeError(complain("model", "tensors made by torch from the images alone", came, remedy)))
        self.values[recorded] = given
        return True

    def start_from(self, node: Node) -> None:
        """Let go of the output, unless a move reads it, and of what only other outputs need; remember the plan."""
        if not self._planned:
            self._followers[node] += 1
            for other in reversed(self.trace.nodes):
                if other is not node and self._followers[other] == 0 and other in self._reads:
                    self._followers[other] = 1
                    self._unfollow(other, None)
            if self.kind is not None:
                self.plan.reads, self.plan.keeps = dict(self._reads), Counter(self._keeps)
                self.trace.plans[self.kind] = self.plan
                if len(self.trace.plans) > _RULES:
                    del self.trace.plans[next(iter(self.trace.plans))]
        self._uses.clear()
        self._stale.clear()
        for kept in list(self.values):
            self._free(kept, None)

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
        self.values = {node: value for node, value in self.values.items() if node in self.trace.constants}
        image = self.trace.nodes[0]
        self.values[image] = self.images
        if bool(self.images.isnan().any()):
            raise ValueError(nan_message(image.name))
        for call in self.trace.calls:
            value = self.values[call.node] = self._value(call)
            self.values.update((item, value[place]) for place, item in call.items.items())
            if any(v.is_floating_point() and bool(v.isnan().any()) for v in tensors_in(value)):
                raise ValueError(nan_message(call.node.name))
        raise ValueError(nan_message(self.trace.nodes[-1].name))

    def _value(self, call: Call) -> Any:
        node, args, kwargs = call.node, call.args, call.kwargs
        if len(args) == 1 and isinstance(args[0], Node) and not kwargs:
            args = (self.values[args[0]],)
        else:
            args, kwargs = map_arg((args, node.kwargs), self.values.__getitem__)
        if call.copies:
            args = (args[0].clone(), *args[1:])
        value = compute(node, args, kwargs, self.layers, node in self.plan.overwrites)
        if call.op == "call_module" or self._plain or operation(node) != "interpolate" or value.ndim != 4:
            return value
        return value.contiguous(
            memory_format=torch.channels_last
        )  # what grew from one pixel turns what it is joined to

    def _count_uses(self) -> None:
        for node in self.trace.nodes:
            inner = self.reader.inner(node)
            self._uses.update([*node.all_input_nodes, *(n for i in inner for n in i.all_input_nodes)])
            self._followers.update(node.all_input_nodes)
        self.plan.shapes.update((node, tuple(shape)) for node, (shape, _) in self.trace.constants.items())

    def _store(self, node: Node, value: Any) -> None:
        """Keep a value as long as it is needed."""
        self.values[node] = value
        plan = self.plan
        if self._planned:
            if isinstance(value, Tensor) and plan.shapes[node] != tuple(value.shape):
                self.refuse(Differs())
            for free in plan.frees.get(node, ()):
                self.values.pop(free, None)
            return
        if isinstance(value, Tensor):
            plan.shapes[node] = tuple(value.shape)
        inputs = node.all_input_nodes
        plan.tracked.add(node)
        self._look_back(node)
        for n in (*inputs, *(n for inner in self.reader.inner(node) for n in inner.all_input_nodes)):
            self._uses[n] -= 1
            self._free(n, node)
        self._free(node, node)
        if may_overwrite(node, self.layers) and inputs[0] in plan.frees.get(node, ()):
            plan.overwrites.add(node)

    def _look_back(self, node: Node) -> None:
        """Keep what the move back from `node` reads; forget what is kept for branches no point can take."""
        follows = set(self.reader.follows(node, self))
        self._reads[node] = [n for n in self.reader.reads(node, self) if n in self.plan.tracked]
        self._keeps.update(self._reads[node])
        for operand in self.operands(node):
            if operand not in follows:
                self._unfollow(operand, node)

    def _unfollow(self, node: Node, now: Node | None) -> None:
        self._followers[node] -= 1
        if self._followers[node] == 0:
            for read in self._reads.pop(node, ()):
                self._keeps[read] -= 1
                self._free(read, now)
            for operand in set(self.operands(node)).intersection(self.reader.follows(node, self)):
                self._unfollow(operand, now)

    def _free(self, node: Node, now: Node | None) -> None:
        if self._uses[node] == 0 and self._keeps[node] == 0 and node in self.plan.tracked and node in self.values:
            del self.values[node]
            if now is not None and not self._planned:
                self.plan.frees.setdefault(now, []).append(node)


def _forget(kept: dict[int, Any], key: int, _: object) -> None:
    kept.pop(key, None)
