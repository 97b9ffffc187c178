"""Walk from labelled output pixels back to the image points they rest on."""

import contextlib
import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx.node import Node

from perpixel.borrow import unwrap
from perpixel.checks import check_flag, check_integer, check_option, complain
from perpixel.fixations.arguments import VOID, check_images, check_start, counts, one
from perpixel.fixations.points import Points, merged
from perpixel.fixations.reading import Scratch
from perpixel.fixations.result import Fixations, PointMap, point_map
from perpixel.fixations.rules import joins
from perpixel.fixations.rules.step import Moves, Rule, Share, Step, Way
from perpixel.fixations.rules.table import FixationRules, fixation_rules
from perpixel.fixations.swift_walk import SwiftWalk
from perpixel.fixations.trace import graph
from perpixel.fixations.tracks import Tracks
from perpixel.outputs import dense_logits

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
    gave most to it. The model runs once, in evaluation mode, and is left as it was; large float32 images on the CPU in
    channels-last memory, whose sums may differ from the model's own in their last bits.

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
    check_images(images, model)
    layers = dict(model.named_modules())
    with graph.evaluating(layers):
        trace = graph.trace(model, layers, images, rules.leaves)
        way = Way(shift, rules.base == "seg-unravel", rules.select == "element", 0, counts(k, trace))
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
        labels = self._start(logits, start)
        del output, logits
        self.run.start_from(last)
        traced = ((labels >= 0) & (labels != VOID)).flatten() if start is not None else None
        swift = self._swift(labels)
        found = self._walk_swiftly(last, labels, traced) if swift else self._walk(last, self._points(labels, traced))
        started = float(labels.numel() if traced is None else traced.sum())
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

    def _start(self, logits: Tensor, start: Tensor | None) -> Tensor:
        """The labels (N, ...) to start from."""
        self.classes = logits.shape[1]
        self.way = replace(self.way, classes=self.classes)
        if start is None:
            values, labels = logits.max(1)
            nan = values.isnan()
        else:
            labels, nan = check_start(start, logits), logits.isnan()
        if bool(nan.any()):
            self.run.blame_nan()
        return labels

    def _points(self, labels: Tensor, traced: Tensor | None) -> Points:
        area, labels = labels[0].numel(), labels.flatten()
        place = torch.arange(len(labels), device=labels.device)
        if traced is not None:
            place, labels = place[traced], labels[traced]
        image = place // area
        mass = torch.ones(len(place), dtype=torch.float64, device=place.device)
        group, unit = image * self.classes + labels, labels * area + place - image * area
        return Points(group, unit, mass, distinct=not self.record)

    def _swift(self, labels: Tensor) -> bool:
        """Whether the walk may be the one in numpy."""
        values = (
            value for value in self.run.values.values() if isinstance(value, Tensor) and value.is_floating_point()
        )
        simple = self.way.k is one and not self.rules.extra and labels.device.type == "cpu"
        return simple and all(value.dtype in (torch.float32, torch.float64) for value in values)

    def _walk_swiftly(self, last: Node, labels: Tensor, traced: Tensor | None) -> Points:
        channel = labels.flatten().numpy()
        pixel = np.arange(len(channel))
        if traced is not None:
            pixel = traced.numpy().nonzero()[0]
            channel = channel.take(pixel)
        walk = SwiftWalk(self.run, self.way, self._rule, self.record)
        found = walk.back(last, Tracks(pixel, channel, np.ones(len(pixel)), distinct=True))
        for node, points in walk.recorded().items():
            self._record(node, points)
        self.dropped, self.jumps = walk.dropped, walk.through
        return found

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
        few = len(parts) == 1 and len(parts[0]) <= FEW and self.way.k is one and not self.record
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
        if math.prod(step.shape()[2:]) == 1 and rule.move in joins.POOLINGS:
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
        if self.way.k is one or len(points) <= self.max_points:
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
