"""Walk from labelled output pixels back to the image points they rest on: check, trace, run, walk, points."""

import contextlib
import warnings
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.fx.node import Node

from perpixel.borrow import Caller, borrowed, called, named_layers, unwrap
from perpixel.checks import check_flag, check_integer, complain
from perpixel.fixations.arguments import check_images, starting_labels, starting_points
from perpixel.fixations.options import FixationOptions, K, Shift, conventions_of
from perpixel.fixations.points import Array, Points, Units, merged
from perpixel.fixations.result import Fixations, PointMap, point_map
from perpixel.fixations.rules.step import Rule, Step
from perpixel.fixations.rules.table import FixationRules, fixation_rules
from perpixel.fixations.steps import Steps
from perpixel.fixations.trace.graph import traced
from perpixel.fixations.trace.run import Differs, Run
from perpixel.outputs import dense_logits

_LITTLE = 1 << 16  # contributions that are looked at sooner than equal units are found
_PORTION = 1 << 15  # units that are moved at once where each becomes several
_SAMPLE = 64  # units with which a rule is tried
_ROUNDING = 1e-9  # of the mass: what shares may lose in adding up


def fixations(
    model: nn.Module,
    images: Tensor,
    *,
    start: Tensor | None = None,
    k: K = 1,
    shift: Shift = "full",
    rules: str | FixationRules = "modern",
    record: bool = False,
    max_points: int = 1 << 20,
    strict: bool = False,
    call: Caller | None = None,
) -> Fixations:
    """The image points that every labelled output pixel rests on, found layer by layer.

    A pixel labelled c starts as a point in channel c of the output; through each operation it moves to the input that
    gave most to it. Of a binary network's one channel, the background's points (label 0) move to the input that did
    most to make it negative. What is followed is the model's own forward, hooks included: the operations that its code
    calls in this very run, in evaluation mode (the first run for a size of images, and one after the code took another
    way, is made twice). The model is left as it was. Large float32 images on the CPU run in channels-last memory, whose
    sums may differ from the model's own in their last bits. Numbers that the code reads off tensors count as constants.

    images: float (N, channels, H, W), on the model's device and of its dtype.
    start: None for the arg-max of the output, of one channel its sign; or labels int (N, H', W') at the output's size,
        negative or 255 for not traced (with more than 255 classes 255 is one of them); where there are two
        classes, masks of any dtype, (N, 1, H', W') as well. For a classifier's output (N, C): (N,). Nothing to trace:
        zero points.
    k: inputs a point moves to: a number; `Share(s)`, the fewest that give the share s of the activation; "resolution",
        as many as a layer's input has more pixels than its output; or {layer or node: one of the first two}, else 1.
    shift: "full"; "partial", points keep their place in dilated convolutions; "none", in all convolutions.
    rules: "modern", "seg-unravel" (as published), or a `FixationRules`.
    record: keep the points on every tensor. max_points: keep the heaviest points where k > 1 makes more; says so.
    strict: refuse a model with an operation that points of other images might reach and could not be followed through.
    call: how the model is called, (model, images) -> output, for one that wants more than the images; what it does to
        them beforehand is followed too. None: model(images).

    TypeError or ValueError for unfit arguments, NaN (naming the node), a model whose tensors pass through code that
    torch does not see (TorchScript, numpy, extensions) or that overwrites a tensor in part;
    NotImplementedError naming the node if points reach an operation without a rule.
    Ganeshan 2017, chapter 2; Mopuri et al., CNN Fixations (arXiv 1708.06670).
    """
    if not isinstance(model, nn.Module):
        raise TypeError(complain("model", "a torch.nn.Module", model, "Pass the network itself."))
    options = FixationOptions(rules, k, shift)
    rules = fixation_rules(options.rules)
    check_flag("record", record)
    check_flag("strict", strict)
    check_integer("max_points", max_points, low=1)
    model = unwrap(model)
    check_images(images, model)
    with borrowed(model, images.device):
        run, steps, output = _forward(model, call, images, options)
        logits = output if isinstance(output, Tensor) and output.ndim == 2 else dense_logits(output)
        last, logits = run.node_of(logits), run.current(logits)
        if last is None:
            remedy = "Give the part that does into a module of its own, with a rule in FixationRules(extra=...)."
            came = "logits that TorchScript, numpy or an extension made"
            raise TypeError(complain("model", "operations of torch from the images to the logits", came, remedy))
        labels, nan = starting_labels(logits, start)
        if nan:
            run.blame_nan()
        points, classes = starting_points(labels, logits.shape[1]), max(2, logits.shape[1])
        del output, logits
        run.start_from(last)
        if strict and not run.plan.checked:
            _check_rules(run, steps, last)
        walk = _Walk(run, steps, classes, record, max_points)
        return walk.back(last, points)


def _forward(model: nn.Module, call: Caller | None, images: Tensor, options: FixationOptions) -> tuple[Run, Steps, Any]:
    """A run of the model along its graph, the rules by node, and the model's output; a new graph where it changed."""
    rules, layers = fixation_rules(options.rules), named_layers(called(model, call))
    kind = None if rules.extra else (rules.base, rules.select, rules.attention)
    for own in (False, True):
        trace = traced(model, call, layers, rules.leaves, images, own=own)
        steps = Steps(trace, rules, conventions_of(options, trace))
        run = Run(trace, layers, rules.leaves, images, steps, kind)
        with contextlib.suppress(Differs):
            return run, steps, run.forward()
    came = "one that does not do the same twice for the same images"
    raise TypeError(complain("model", "a network that repeats its operations", came, "Take what is random out of it."))


def _check_rules(run: Run, steps: Steps, last: Node) -> None:
    """NotImplementedError if some units of an operation on the way back cannot be followed through it."""
    reached = {last}
    for node in reversed(run.trace.nodes):
        if node not in reached or node.op == "placeholder":
            continue
        if node not in run.shapes:  # a tuple of tensors
            reached.update(run.operands(node))
            continue
        step, rule = steps.at(node, run)
        if rule is None:
            raise step.refuse("there is no rule for it")
        reached.update(set(rule.follows(step)).difference(steps.inner(node)))
        rule.move(_some_units(step), step)
    run.scores.forget()
    run.plan.checked = True


def _some_units(step: Step) -> Units:
    """A few units of the result, from all over it."""
    images, channels, places = *step.shape()[:2], step.places()
    index = np.unique(np.linspace(0, images * channels * places - 1, _SAMPLE).astype(np.int64))
    image, rest = np.divmod(index, channels * places)
    channel, place = np.divmod(rest, places)
    return Units(image * places + place, channel, distinct=True)


def _check_images(points: Points, classes: int, step: Step) -> None:
    """NotImplementedError if points of one image lie on another."""
    if points.group is None or points.unit is None:
        return
    if (points.group // classes != points.units.pixel.take(points.unit) // step.places()).any():
        raise step.refuse("points of one image lead to another: the model mixes the images of a batch")


class _Walk:
    """The way back, node by node."""

    def __init__(self, run: Run, steps: Steps, classes: int, record: bool, max_points: int) -> None:
        self.run, self.steps, self.classes, self.record, self.max_points = run, steps, classes, record, max_points
        self.several = steps.conventions.k is not None
        self.stays: dict[Node, Node] = run.plan.tables.setdefault("stays", {})
        self.layers: dict[str, PointMap] = {}
        self.nodes: dict[str, str] = {}
        self.dropped: dict[str, float] = {}
        self.capped: dict[str, float] = {}
        self.jumps: dict[str, float] = {}

    def back(self, last: Node, start: Points) -> Fixations:
        """From the points on the output to those on the images."""
        started = start.total()
        pending: dict[Node, list[Points]] = {last: [start]}
        image = next(node for node in self.run.trace.nodes if node.op == "placeholder")
        found = Points(start.units.take(start.mass < 0), start.mass[:0])
        for node in reversed(self.run.trace.nodes):
            parts = pending.pop(node, None)
            if parts is not None:
                step, rule = self.steps.at(node, self.run)
                points = self._merged(parts, step, rule)
                if node is not last:
                    points = self._capped(points, step)
                if self.record:
                    self._record(points, step)
                if node is image:
                    _check_images(points, self.classes, step)
                    found = points
                elif len(points.units):
                    self._move(points, step, rule, pending)
            self.run.release(node)
        self.run.scores.check()
        if self.capped:
            warnings.warn(
                f"max_points={self.max_points} cut {sum(self.capped.values()):g} of the mass, at {list(self.capped)}; "
                "it counts as dropped. Raise max_points, lower k, or trace fewer pixels (start).",
                stacklevel=3,
            )
        on_images = point_map(found, tuple(self.run.images.shape), self.classes, self.run.images.device)
        return Fixations(
            **{name: getattr(on_images, name) for name in PointMap.__dataclass_fields__},
            started=started,
            dropped=sum(self.dropped.values()),
            dropped_at=self.dropped,
            capped=self.capped,
            jumps=self.jumps,
            layers=self.layers,
            nodes=self.nodes,
        )

    def _merged(self, parts: list[Points], step: Step, rule: Rule | None) -> Points:
        points = parts[0]
        alone = len(parts) == 1 and not self.several and not self.record
        if alone and rule is not None and len(points.units) * rule.work(step) <= _LITTLE:
            return points
        return merged(parts, step.shape(), self.classes, add_up=self.several)

    def _move(self, points: Points, step: Step, rule: Rule | None, pending: dict[Node, list[Points]]) -> None:
        if rule is None:
            raise step.refuse("there is no rule for it")
        if not rule.keeps_channel:
            points = points.labelled(step.places(), self.classes)
        arrived: list[tuple[int, Array]] = []
        for portion in points.portions(_PORTION) if self.several else (points,):
            for operand, units in rule.move(portion.units, step):
                if len(units):
                    part = portion.moved(units)
                    arrived.append((len(units), part.mass))
                    self._await(part, operand, pending)
        if self.several or sum(count for count, _ in arrived) < len(points.units):
            mass = points.total()
            lost = mass - sum(float(masses.sum()) for _, masses in arrived)
            if lost > _ROUNDING * mass:
                self.dropped[step.node.name] = lost
        if rule.jumps and step.places() == 1:
            self.jumps[step.node.name] = points.total()

    def _await(self, points: Points, node: Node, pending: dict[Node, list[Points]]) -> None:
        """Put points down where they go to, beyond what leaves every unit as it is; together where they are many."""
        if not self.record:
            node = self.stays.get(node) or self._beyond(node)
        here = pending.setdefault(node, [])
        here.append(points)
        if self.several and len(here) > 1 and sum(len(part.mass) for part in here) > 2 * self.max_points:
            here[:] = [merged(here, self.run.shapes[node], self.classes, add_up=True)]

    def _beyond(self, node: Node) -> Node:
        """`node`, or where the points go from it without a change."""
        reached = node
        while (rule := self.steps.at(reached, self.run)[1]) is not None and rule.stays:
            reached = self.run.operands(reached)[0]
        self.stays[node] = reached
        return reached

    def _capped(self, points: Points, step: Step) -> Points:
        if not self.several or len(points.mass) <= self.max_points:
            return points
        kept = points.heaviest(self.max_points)
        name, cut = step.node.name, points.total() - kept.total()
        self.capped[name] = cut
        self.dropped[name] = self.dropped.get(name, 0.0) + cut
        return kept

    def _record(self, points: Points, step: Step) -> None:
        name = step.node.name
        self.layers[name] = point_map(points, step.shape(), self.classes, self.run.images.device)
        if step.node.op == "call_module":
            self.nodes[name] = str(step.node.target)
