"""Walk from labelled output pixels back to the image points they rest on."""

import contextlib
import difflib
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.fx.node import Node

from perpixel.checks import check_flag, check_integer, check_option, check_same_device, check_tensor, complain
from perpixel.fixations import graph, joins, windows
from perpixel.fixations.points import Points, merged
from perpixel.fixations.reading import Scratch
from perpixel.fixations.result import Fixations, PointMap, point_map
from perpixel.fixations.rules import FixationRules, fixation_rules
from perpixel.fixations.step import K, Moves, Rule, Share, Step, Way
from perpixel.outputs import dense_logits
from perpixel.wrappers import unwrap

VOID = 255
FEW = 128
_ROUNDING = 1e-9  # of the mass: what shares may lose in adding up


@torch.no_grad()
def fixations(
    model: nn.Module,
    images: Tensor,
    *,
    start: Tensor | None = None,
    k: int | Share | str | Mapping[str, int | Share] = 1,
    shift: str = "full",
    rules: str | FixationRules = "modern",
    record: bool = False,
    max_points: int = 1 << 20,
) -> Fixations:
    """The image points that every labelled output pixel rests on, found layer by layer.

    A pixel labelled c starts as a point in channel c of the output; through each operation it moves to the input that
    gave most to it. The model runs once, in evaluation mode, and is left as it was.

    images: float (N, channels, H, W), on the model's device and of its dtype.
    start: None for the arg-max of the output; or labels int (N, H', W') at the output's size, negative or 255 for not
        traced. For a classifier's output (N, C): (N,). Nothing to trace: zero points.
    k: inputs a point moves to: a number; `Share(s)`, the fewest that give the share s of the activation; "resolution",
        as many as a layer's input has more pixels than its output; or {layer or node: one of the first two}, else 1.
    shift: "full"; "partial", points keep their place in dilated convolutions; "none", in all convolutions.
    rules: "modern", "seg-unravel" (as published), or a `FixationRules`.
    record: keep the points on every tensor. max_points: keep the heaviest points where k > 1 makes more; says so.

    TypeError or ValueError for unfit arguments, a model that cannot be traced, NaN (naming the node);
    NotImplementedError naming the node if points reach an operation without a rule.
    Ganeshan 2017, chapter 2; Mopuri et al., CNN Fixations (arXiv 1708.06670).
    """
    if not isinstance(model, nn.Module):
        raise TypeError(complain("model", "a torch.nn.Module", model, "Pass the network itself."))
    rules = fixation_rules(rules)
    check_option("shift", shift, ("full", "partial", "none"))
    check_flag("record", record)
    check_integer("max_points", max_points, low=1)
    model = unwrap(model)
    _check_images(images, model)
    layers = dict(model.named_modules())
    with graph.evaluating(layers):
        trace = graph.trace(model, layers, images, rules.leaves)
        way = Way(shift, rules.base == "seg-unravel", rules.select == "element", 0, _counts(k, trace))
        walk = _Walk(layers, images, trace, rules, way, record, max_points)
        return walk.back(start)


class _Walk:
    """One run there and back."""

    def __init__(
        self,
        layers: graph.Layers,
        images: Tensor,
        trace: graph.Trace,
        rules: FixationRules,
        way: Way,
        record: bool,
        max_points: int,
    ) -> None:
        self.trace, self.rules, self.way, self.record, self.max_points = trace, rules, way, record, max_points
        kind = None if rules.extra else (rules.base, rules.select)  # what a plan for one run holds for
        self.run = graph.Run(trace, layers, images, self, kind)
        self.run.scratch = Scratch()
        self.images, self.classes = images.shape[0], 0
        self.layers: dict[str, PointMap] = {}
        self.nodes: dict[str, str] = {}
        self.dropped: dict[str, float] = {}
        self.capped: dict[str, float] = {}
        self.jumps: dict[str, float] = {}

    def follows(self, node: Node, run: graph.Run) -> Iterable[Node]:
        step = Step(node, run, self.way)
        rule = self._rule(step)
        with contextlib.suppress(NotImplementedError):  # raised if points come here
            return step.operands if rule is None else rule.follows(step)
        return step.operands

    def reads(self, node: Node, run: graph.Run) -> Iterable[Node]:
        step = Step(node, run, self.way)
        rule = self._rule(step)
        with contextlib.suppress(NotImplementedError):
            return [] if rule is None else rule.reads(step)
        return []

    def inner(self, node: Node) -> Iterable[Node]:
        if node not in self.trace.inner:
            self.trace.inner[node] = joins.inner_nodes(node)
        return self.trace.inner[node]

    def back(self, start: Tensor | None) -> Fixations:
        output = self.run.forward()
        logits = output if isinstance(output, Tensor) and output.ndim == 2 else dense_logits(output)
        last = graph.last_node(self.trace, output, logits)
        points = self._start(logits, start)
        started = points.total()
        del output, logits
        self.run.start_from(last)
        found = self._walk(last, points)
        self._report()
        on_input = point_map(found, tuple(self.run.images.shape), self.images, self.classes)
        return Fixations(
            **vars(on_input),
            started=started,
            dropped=sum(self.dropped.values()),
            dropped_at=self.dropped,
            capped=self.capped,
            jumps=self.jumps,
            layers=self.layers,
            nodes=self.nodes,
        )

    def _start(self, logits: Tensor, start: Tensor | None) -> Points:
        self.classes = logits.shape[1]
        area = logits[0, 0].numel()
        self.way = Way(self.way.shift, self.way.published, self.way.elements, self.classes, self.way.k)
        if start is None:
            values, labels = logits.max(1)
            nan = values.isnan()
        else:
            labels, nan = _check_start(start, logits), logits.isnan()
        if bool(nan.any()):
            self.run.blame_nan()
        labels = labels.flatten()
        place = torch.arange(len(labels), device=labels.device)
        if start is not None:
            place = place[(labels >= 0) & (labels != VOID)]
            labels = labels[place]
        image = place // area
        mass = torch.ones(len(place), dtype=torch.float64, device=place.device)
        group, unit = image * self.classes + labels, labels * area + place - image * area
        return Points(group, unit, mass, distinct=not self.record)

    def _walk(self, last: Node, points: Points) -> Points:
        pending: dict[Node, list[Points]] = {last: [points]}
        found = points.take(slice(0, 0))
        for node in reversed(self.trace.nodes):
            parts = pending.pop(node, [])
            if parts:
                here = self._merged(node, parts)
                if node is not last:
                    here = self._capped(node, here)
                self._record(node, here)
                if node.op == "placeholder":
                    found = here
                    continue
                for operand, part in self._move(node, here):
                    pending.setdefault(operand, []).append(part)
            self.run.release(node)
        return found

    def _merged(self, node: Node, parts: list[Points]) -> Points:
        few = len(parts) == 1 and len(parts[0]) <= FEW and self.way.k is _one and not self.record
        if few and node.op != "placeholder":  # following a few points twice costs less than finding them equal
            return parts[0]
        if node.op == "placeholder":
            parts = [replace(part, distinct=False) for part in parts]
        return merged(parts, math.prod(self.run.shapes[node][1:]))

    def _move(self, node: Node, points: Points) -> Moves:
        step = Step(node, self.run, self.way)
        rule = self._rule(step)
        if rule is None:
            raise step.refuse("there is no rule for it")
        moves = [(operand, part) for operand, part in rule.move(points, step) if len(part)]
        if len(moves) == 1 and moves[0][1].mass is points.mass:
            return moves
        mass = points.total()
        lost = mass - sum(part.total() for _, part in moves)
        if lost > _ROUNDING * mass:
            self.dropped[node.name] = lost
        if math.prod(step.shape()[2:]) == 1 and rule.move in (windows.adaptive_pool, joins.reduce):
            self.jumps[node.name] = mass
        return moves

    def _rule(self, step: Step) -> Rule | None:
        if self.rules.extra:
            return self.rules.rule(step.node, step.module)
        known = self.trace.rules
        if step.node not in known:
            known[step.node] = self.rules.rule(step.node, step.module)
        return known[step.node]

    def _capped(self, node: Node, points: Points) -> Points:
        if self.way.k is _one or len(points) <= self.max_points:
            return points
        keep = points.mass.sort(descending=True, stable=True).indices[: self.max_points].sort().values
        kept = points.take(keep)
        cut = points.total() - kept.total()
        self.capped[node.name] = cut
        self.dropped[node.name] = self.dropped.get(node.name, 0.0) + cut
        return replace(kept, distinct=True)

    def _record(self, node: Node, points: Points) -> None:
        if self.record:
            shape = self.run.shapes[node]
            self.layers[node.name] = point_map(points, shape, self.images, self.classes)
            if node.op == "call_module":
                self.nodes[node.name] = str(node.target)

    def _report(self) -> None:
        if self.capped:
            warnings.warn(
                f"max_points={self.max_points} cut {sum(self.capped.values()):g} of the mass, at {list(self.capped)}; "
                "it counts as dropped. Raise max_points, lower k, or trace fewer pixels (start).",
                stacklevel=5,
            )


def _one(step: Step) -> K:
    return 1


def _finer(step: Step) -> K:
    """The increase of spatial resolution from the operation's result to its source."""
    before, after = (math.prod(shape[2:]) for shape in (step.shape(step.operands[0]), step.shape()))
    return max(1, round(before / max(after, 1)))


def _counts(k: object, trace: graph.Trace) -> Callable[[Step], K]:
    """How many inputs a point moves to, by step."""
    if k == "resolution":
        return _finer
    if not isinstance(k, Mapping):
        count = _count("k", k)
        return _one if count == 1 else lambda step: count
    names = {name for node in trace.nodes for name in (node.name, str(node.target))}
    counts = {name: _count(f"k[{name!r}]", value) for name, value in k.items()}
    for name in counts:
        if name not in names:
            close = difflib.get_close_matches(str(name), names, 5)
            remedy = f"The closest are {', '.join(close)}." if close else "See model.named_modules()."
            raise ValueError(complain("k", "names of layers or nodes as keys", name, remedy))
    return lambda step: counts.get(step.node.name, counts.get(str(step.node.target), 1))


def _count(argument: str, k: object) -> K:
    if isinstance(k, Share):
        return k
    if isinstance(k, str):
        raise ValueError(complain(argument, "an integer, a Share or 'resolution'", k, "Choose one of these."))
    return check_integer(argument, k, low=1)


def _check_images(images: object, model: nn.Module) -> None:
    images = check_tensor("images", images, ndim=4, shape="(N, channels, H, W)", floating=True)
    if images.numel() == 0:
        raise ValueError(complain("images", "at least one image with pixels", images, "Skip empty batches."))
    weights = next((p for p in model.parameters() if p.is_floating_point()), None)
    if weights is None:
        return
    check_same_device(images=images, model=weights)
    if images.dtype != weights.dtype and not torch.is_autocast_enabled(images.device.type):
        remedy = "Convert the images with .to(dtype), or call under torch.autocast."
        raise TypeError(complain("images", f"the model's dtype {weights.dtype}", images, remedy))


def _check_start(start: object, logits: Tensor) -> Tensor:
    expected = (logits.shape[0], *logits.shape[2:])
    labels = check_tensor("start", start, ndim=len(expected), shape=f"{expected}, the output's size", floating=False)
    check_same_device(start=labels, images=logits)
    if tuple(labels.shape) != expected:
        remedy = "Bring the labels to the output's size with nearest-neighbour interpolation."
        raise ValueError(complain("start", f"shape {expected}, the output's size", labels, remedy))
    labels = labels.long()
    high = int(labels.masked_fill(labels == VOID, -1).max()) if labels.numel() else -1
    if high >= logits.shape[1]:
        place = tuple((labels == high).nonzero()[0].tolist())
        expected_values = f"values below {logits.shape[1]}, negative ones, or {VOID}"
        remedy = "Mark what is not to be traced with 255 or a negative number."
        raise ValueError(complain("start", expected_values, f"{high} at position {place}", remedy))
    return labels
