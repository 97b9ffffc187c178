"""What `faithfulness` found: curves, checks and their controls, as numbers and in plain words."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from perpixel.attribution.faithfulness.baselines import BaselineSensitivity, Completeness
from perpixel.attribution.faithfulness.curves import Curve
from perpixel.attribution.faithfulness.infidelity import Infidelity
from perpixel.attribution.faithfulness.object_alone import ObjectAlone
from perpixel.attribution.faithfulness.randomised_weights import RandomisedWeights
from perpixel.attribution.inputs import counted, named_labels

_MAPS = {"region", "trained", "reset", "trained_mass", "reset_mass", "maps"}  # a value per pixel: not for a table
_SCORES = {
    "logit": "the label's logit",
    "margin": "its margin over the next label",
    "iou": "the IoU with the first mask",
}


@dataclass(frozen=True, eq=False, repr=False)
class Faithfulness:
    """How far an attribution of N images can be trusted, each number beside its control.

    label: (N,). region: bool (N, H, W). score: the one explained. baselines: what stands in for removed pixels.
    patch: what is removed at once, (height, width). freeze_object: whether the region (and `exclude_border` pixels
    around it) stays while the rest is removed.
    deletion, insertion: `Curve`s, with random orders and the orders "nearest first" (patches nearest to the region;
        only if the object is frozen) and "reset network" (the attribution of the network with all layers reset).
    randomised: the randomised-weights check; baseline_sensitivity: the spread over baselines; completeness: whether
        the values add up (None: the method does not promise it); object_alone: the region's labels with all context
        hidden; infidelity, sensitivity (N,): captum's. None: not run.
    context_share: (N,), share of |values| outside the region, as `Attribution.context_share`; context_share_reset: the
        same of the network with all layers reset, None if not run; context_area: (N,), share of the pixels. The share
        alone proves nothing: a network that has learnt nothing can have the same.
    """

    label: Tensor
    region: Tensor
    score: str
    baselines: str
    patch: tuple[int, int]
    freeze_object: bool
    exclude_border: float
    seeds: tuple[int, ...]
    deletion: Curve
    insertion: Curve
    object_alone: ObjectAlone
    completeness: Completeness | None
    context_share: Tensor
    context_area: Tensor
    context_share_reset: Tensor | None = None
    randomised: RandomisedWeights | None = None
    baseline_sensitivity: BaselineSensitivity | None = None
    infidelity: Infidelity | None = None
    sensitivity: Tensor | None = None

    def __repr__(self) -> str:
        """Areas under the curves, mean over the images, beside the least and the greatest of the random orders."""
        of = f"the {self.score} of {named_labels(self.label)} in {counted(len(self.label))}"
        lines = [
            f"Faithfulness of an attribution of {of}; .summary() says it in words",
            f"area under        attribution  {len(self.seeds)} random orders   (baseline {self.baselines!r})",
        ]
        for curve in (self.deletion, self.insertion):
            for score in (self.score, "iou"):
                if bool(curve.scores[score].isnan().all()):
                    continue
                drawn = curve.area(score, "random").double().nanmean(1)
                least, greatest = (_mean(end) for end in drawn.aminmax())
                own = _mean(curve.area(score))
                lines.append(f"{curve.kind:9}  {score:6}  {own:>11}  {least} to {greatest}")
        alone = f"object alone: {_mean(self.object_alone.kept, '.0%')} of the region keeps the label"
        lines.append(f"context share {_mean(self.context_share, '.1%')}; {alone}")
        return "\n  ".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Every number as plain dicts, lists, numbers and strings for `json.dumps`; NaN and infinity become None.

        Values per pixel are left out. The curves also have their "areas", by score.
        """
        found = _plain(self)
        for name, curve in (("deletion", self.deletion), ("insertion", self.insertion)):
            orders = ("random", *curve.controls)
            areas = {
                score: {
                    "area": curve.area(score),
                    "area_random": curve.area(score, "random"),
                    "gain": {order: curve.gain(score, order) for order in orders},
                    "relative_gain": {order: curve.relative_gain(score, order) for order in orders},
                    "beaten": curve.beaten(score),
                }
                for score in curve.scores
            }
            found[name]["areas"] = _plain(areas)
        if self.baseline_sensitivity is not None:
            found["baseline_sensitivity"]["mean_correlation"] = _plain(self.baseline_sensitivity.mean_correlation)
        if self.completeness is not None:
            found["completeness"]["gap"] = _plain(self.completeness.gap)
            found["completeness"]["relative_gap"] = _plain(self.completeness.relative_gap)
        return dict(found)

    def summary(self) -> str:
        """A few lines of plain words: means over the images, each with its control."""
        rows, columns = self.patch
        what = "single pixels" if self.patch == (1, 1) else f"patches of {rows}x{columns} pixels"
        removed = "the object stays and only context is" if self.freeze_object else "object and context are"
        curves = ((curve, score) for curve in (self.deletion, self.insertion) for score in (self.score, "iou"))
        lines = [
            f"{named_labels(self.label).capitalize()} in {counted(len(self.label))}: {removed} removed, in {what}, "
            f"replaced by baseline {self.baselines!r}; {len(self.seeds)} random orders.",
            *(self._curve_line(curve, score) for curve, score in curves),
            self._randomised_line(),
            self._context_line(),
            self._alone_line(),
        ]
        if self.baseline_sensitivity is not None:
            named = ", ".join(self.baseline_sensitivity.baselines)
            agree = _mean(self.baseline_sensitivity.mean_correlation)
            lines.append(f"Baselines ({named}): their maps agree with a mean rank correlation of {agree}.")
        if self.infidelity is not None:
            value, shuffled = _mean(self.infidelity.value), _mean(self.infidelity.shuffled)
            lines.append(f"Infidelity: {value} (0 is best, 1 no better than nothing); with shuffled values {shuffled}.")
        if self.completeness is not None:
            total, change = _mean(self.completeness.total), _mean(self.completeness.difference)
            text = f"the values add up to {total}; from the baseline the score changes by {change}"
            lines.append(f"Completeness: {text}.")
        return "\n".join(line for line in lines if line)

    def _curve_line(self, curve: Curve, score: str) -> str:
        if bool(curve.scores[score].isnan().all()):
            return ""
        gain = curve.gain(score).double().nanmean()
        verdict = "better" if gain > 0 else "worse" if gain < 0 else "no better"
        side = "lower" if (curve.kind == "deletion") == (not gain < 0) else "higher"
        text = (
            f"{curve.kind.capitalize()}: {_SCORES[score]} is on average {_mean(gain.abs())} {side} than in random "
            f"order ({verdict}; beats {_mean(curve.beaten(score), '.0%')} of the random orders)"
        )
        against = [f", {_mean(curve.gain(score, order), '+.3g')} against {order!r}" for order in curve.controls]
        return text + "".join(against) + "."

    def _randomised_line(self) -> str:
        if self.randomised is None:
            return "Randomised weights: not run, since there is no explainer; pass explainer= to run it."
        found = self.randomised
        text = (
            "Randomised weights: with all layers reset, the map's rank correlation with the trained "
            f"network's is {_mean(found.correlation[-1])} (of absolute values {_mean(found.magnitude[-1])}); near 1 "
            "would mean that it does not show what was learnt."
        )
        return text + (f" Not reset: {', '.join(found.kept)}." if found.kept else "")

    def _context_line(self) -> str:
        text = (
            f"Context share: {_mean(self.context_share)} of the attribution on {_mean(self.context_area)} of the pixels"
        )
        if self.context_share_reset is None:
            return text + "; without the reset network's share beside it, this says little."
        return text + f"; with all layers reset it is {_mean(self.context_share_reset)}."

    def _alone_line(self) -> str:
        found = self.object_alone
        missing = bool(found.kept_elsewhere.isnan().all())
        control = f", a piece of the same shape elsewhere gives it {_mean(found.kept_elsewhere, '.0%')}"
        return (
            f"Object alone: {_mean(found.kept, '.0%')} of the region has the label "
            f"({_mean(found.kept_before, '.0%')} in the image{'' if missing else control}); "
            f"the logit falls by {_mean(found.logit_drop)}, the margin by {_mean(found.margin_drop)}."
        )


def _mean(values: Tensor, form: str = ".3g") -> str:
    value = float(values.double().nanmean())
    return "undefined" if math.isnan(value) else format(value, form)


def _plain(value: Any) -> Any:
    """Tensors, dataclasses and mappings as lists and dicts of numbers that JSON has."""
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value) if field.name not in _MAPS]
        return {name: _plain(getattr(value, name)) for name in names}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Tensor):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
