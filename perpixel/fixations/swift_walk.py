"""The walk back for k = 1 on the CPU: every unit once, whatever labels rest on it."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch.fx.node import Node

from perpixel.fixations import swift_moves
from perpixel.fixations.points import Points, merged
from perpixel.fixations.rules.joins import POOLINGS
from perpixel.fixations.rules.step import Rule, Step, TrackMoves, Way
from perpixel.fixations.trace.graph import Run, nan_message
from perpixel.fixations.tracks import Tape, Tracks

_STAYING = (swift_moves.same, swift_moves.normalise)
_KEEPING = (*_STAYING, swift_moves.resize)  # the channel, which is the label at the start


class SwiftWalk:
    """One walk. dropped: mass that was lost, by node. through: mass that went through a global pooling, by node."""

    def __init__(self, run: Run, way: Way, rule: Callable[[Step], Rule | None], record: bool) -> None:
        self.run, self.way, self.rule, self.record = run, way, rule, record
        self.tape = Tape(way.classes)
        self.dropped: dict[str, float] = {}
        self.through: dict[str, float] = {}
        self._seen: list[tuple[Node, Tracks, int]] = []
        self._past: dict[Node, Node] = run.plan.tables.setdefault("past", {})

    def back(self, last: Node, start: Tracks) -> Points:
        """From the tracks on `last` to the points on the images."""
        pending = {last: [start]}
        found: tuple[Node, Tracks] | None = None
        for node in reversed(self.run.trace.nodes):
            parts = pending.pop(node, None)
            if parts is not None:
                step = Step(node, self.run, self.way)
                rule = self.rule(step)
                tracks = parts[0]
                if len(parts) > 1 or rule is None or rule.swift not in _STAYING:
                    tracks = self._merged(node, parts)
                if self.record:
                    self._seen.append((node, tracks, self.tape.merges))
                if node.op == "placeholder":
                    found = node, tracks
                elif len(tracks):
                    for operand, part in self._move(tracks, step, rule):
                        if not self.record:
                            operand = self._past.get(operand) or self._beyond(operand)
                        pending.setdefault(operand, []).append(part)
            self.run.release(node)
        self._check()
        if found is None:
            found = last, start.take(np.zeros(0, np.int64))
        return self._points(*found)

    def recorded(self) -> dict[Node, Points]:
        """The points on every node passed, with record."""
        return {node: self._points(node, tracks, merges) for node, tracks, merges in self._seen}

    def _merged(self, node: Node, parts: list[Tracks]) -> Tracks:
        shape = self.run.shapes[node]
        return self.tape.merged(parts, shape[1], shape[0] * math.prod(shape[2:]))

    def _move(self, tracks: Tracks, step: Step, rule: Rule | None) -> TrackMoves:
        if rule is None:
            raise step.refuse("there is no rule for it")
        shape = step.shape()
        if rule.swift not in _KEEPING:
            self.tape.begin(tracks, math.prod(shape[2:]))
        moves = rule.swift(tracks, step)
        if moves is None:
            self.tape.begin(tracks, math.prod(shape[2:]))
            moves = _by_rule(tracks, step, rule)
        if sum(len(part) for _, part in moves) < len(tracks):
            self.dropped[step.node.name] = float(tracks.mass.sum() - sum(part.mass.sum() for _, part in moves))
        if rule.move in POOLINGS and math.prod(shape[2:]) == 1:
            self.through[step.node.name] = float(tracks.mass.sum())
        return moves

    def _beyond(self, node: Node) -> Node:
        """`node`, or where the points go from it without a change."""
        reached = node
        while (rule := self.rule(Step(reached, self.run, self.way))) is not None and rule.swift is swift_moves.same:
            reached = self.run.operands(reached)[0]
        self._past[node] = reached
        return reached

    def _points(self, node: Node, tracks: Tracks, merges: int | None = None) -> Points:
        shape = self.run.shapes[node]
        return merged([self.tape.points(tracks, math.prod(shape[2:]), merges)], math.prod(shape[1:]))

    def _check(self) -> None:
        scores = [score.ravel() for _, score in self.run.watched]
        if scores and np.isnan(np.concatenate(scores)).any():
            raise ValueError(nan_message(next(node.name for node, score in self.run.watched if np.isnan(score).any())))


def _by_rule(tracks: Tracks, step: Step, rule: Rule) -> TrackMoves:
    """Where the rule for any k moves the tracks: as points whose mass tells which is which."""
    shape = step.shape()
    area = math.prod(shape[2:])
    image = tracks.pixel // area
    group = torch.from_numpy(image * step.way.classes)
    unit = torch.from_numpy(tracks.channel * area + tracks.pixel - image * area)
    sign = None if tracks.minus is None else torch.from_numpy(1 - 2 * tracks.minus.astype(np.int64))
    moves = []
    for operand, part in rule.move(Points(group, unit, torch.arange(len(tracks), dtype=torch.float64), sign), step):
        if len(part):
            before = step.shape(operand)
            places = math.prod(before[2:])
            moved = tracks.take(part.mass.long().numpy())
            units = part.unit.numpy()
            moved.channel = units // places
            moved.pixel = units - moved.channel * places + (part.group.numpy() // step.way.classes) * places
            moved.minus = None if part.sign is None else part.sign.numpy() < 0
            moved.distinct = False
            moves.append((operand, moved))
    return moves
