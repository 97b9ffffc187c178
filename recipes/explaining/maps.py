"""The maps of one image, and what they say: for the explained network and for those with random weights alike."""

import inspect
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import captum.attr
import torch
from torch import Tensor, nn

from perpixel.attribution import (
    Influence,
    context_share,
    density_ratio,
    evidence_share,
    explain,
    influence,
    object_alone,
    pointing,
    radial_profile,
)
from recipes.explaining.questions import Question, Scene
from recipes.explaining.settings import INFLUENCE, ExplainSettings, MapSettings

Row = dict[str, Any]
TRAINED = "trained"


@dataclass
class Found:
    """What was measured on one image. Every row names the image, the network, the kind and label of its question.

    shares: a row per question, network and method; profiles: one per bin of these; alone: one per question and network.
    matrix: network -> (2, C, C) sums and counts of the class-context matrix, itself and its control.
    maps: (network, method, kind, label) -> float64 (H, W), where they are kept; effects: of the explained network.
    """

    shares: list[Row] = field(default_factory=list)
    profiles: list[Row] = field(default_factory=list)
    alone: list[Row] = field(default_factory=list)
    matrix: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    maps: dict[tuple[str, str, str, int], Tensor] = field(default_factory=dict)
    effects: Influence | None = None


def method_options(method: str, maps: MapSettings) -> dict[str, Any]:
    """What the settings say about a captum method: those of its options that they name."""
    call = getattr(getattr(captum.attr, method, None), "attribute", None)
    known = {} if call is None else inspect.signature(inspect.unwrap(call)).parameters
    options = {"baselines": maps.baselines, "n_steps": maps.steps}
    return {name: value for name, value in options.items() if name in known}


def check_methods(network: nn.Module, settings: ExplainSettings, device: torch.device) -> None:
    """Try every method once, on a small blank image, so that a wrong name shows before anything else is done."""
    network = network.to(device)
    blank, everywhere = torch.zeros(1, 3, 64, 64, device=device), torch.ones(1, 64, 64, dtype=torch.bool, device=device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for method in settings.maps.methods:
            if method != INFLUENCE:
                options = method_options(method, replace(settings.maps, steps=2))
                explain(network, blank, 0, region=everywhere, method=method, **options)


class Meter:
    """Asks the networks, by name, the explained one first; `edges`: of the radial profiles, in pixels."""

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        settings: ExplainSettings,
        names: Sequence[str],
        device: torch.device,
        ignore_index: int,
    ) -> None:
        self.networks, self.settings, self.names, self.device = networks, settings, list(names), device
        self.ignore_index = ignore_index
        self.edges: list[float] | None = None

    def patch(self, scene: Scene) -> int:
        """The side of the patches on this image."""
        return self.settings.maps.patch or max(min(scene.image.shape[-2:]) // 8, 1)

    def influence(self, network: nn.Module, scene: Scene) -> Influence:
        """What every patch of the image does."""
        maps = self.settings.maps
        return influence(
            network,
            scene.image[None].to(self.device),
            patch=self.patch(scene),
            stride=maps.stride,
            baselines=maps.baselines,
            batch_size=maps.batch_size,
        )

    def map(
        self, network: nn.Module, scene: Scene, question: Question, method: str, effects: Influence
    ) -> tuple[Tensor, float]:
        """The signed map float64 (H, W) of one question, and what it leaves unexplained (NaN where unknown)."""
        region, score = question.region[None].to(self.device), self.settings.ask.score
        if method == INFLUENCE:
            return effects.of(question.label, region, score, pixels=True)[0].double().cpu(), float("nan")
        found = explain(
            network,
            scene.image[None].to(self.device),
            question.label,
            region=region,
            method=method,
            score=score,
            **method_options(method, self.settings.maps),
        )
        delta = float("nan") if found.delta is None else float(found.delta[0])
        return found.pixels[0].double().cpu(), delta

    def measure(self, scene: Scene, methods: Sequence[str], *, keep: bool = False) -> Found:
        """Everything about one image; with `keep`, its maps and effects too."""
        found = Found()
        for name, network in self.networks.items():
            effects = self.influence(network, scene)
            found.matrix[name] = self._matrix(effects, scene)
            for question in (*scene.questions, *scene.trials):
                common = {"image": scene.name, "network": name, "kind": question.kind}
                common["label"] = self.names[question.label]
                for method in methods:
                    values, delta = self.map(network, scene, question, method, effects)
                    row = {**common, "method": method, **self._numbers(values, question, scene), "delta": delta}
                    found.shares.append(row)
                    found.profiles += self._profile(values, question, {**common, "method": method})
                    if keep:
                        found.maps[name, method, question.kind, question.label] = values
                if question.kind == "label":
                    found.alone.append({**common, **self._alone(network, scene, question)})
            if keep and name == TRAINED:
                found.effects = effects
        return found

    def _matrix(self, effects: Influence, scene: Scene) -> tuple[Tensor, Tensor]:
        """Sums and counts (2, C, C) of the class-context matrix of the image, so that images can be pooled."""
        measure = self.settings.measure
        use_truth = measure.truth and scene.truth is not None
        labels = scene.truth if use_truth and scene.truth is not None else scene.predicted
        matrix = effects.class_matrix(
            labels[None],
            ignore_index=self.ignore_index,
            least=measure.least,
            controls=measure.controls,
            seed=self.settings.seed,
        )
        counts = torch.stack([matrix.counts, matrix.control_counts]).double()
        return torch.stack([matrix.values, matrix.control]).nan_to_num() * counts, counts

    def _numbers(self, values: Tensor, question: Question, scene: Scene) -> Row:
        """One row of shares.csv; shares and chances in percent."""
        border = self.settings.maps.border
        border = self.patch(scene) if border is None else border
        maps, region = values[None], question.region[None]
        even = torch.ones_like(maps)
        row: Row = {"pixels": int(region.sum())}
        row["context_share"] = 100 * float(context_share(maps, region, exclude_border=border))
        row["context_area"] = 100 * float(context_share(even, region, exclude_border=border))
        row["density_ratio"] = float(density_ratio(maps, region, exclude_border=border))
        profile = radial_profile(maps, region, 2)
        row |= {"r50": float(profile.r50), "r50_area": float(profile.r50_area)}
        row |= {"positive": float(values.clamp(min=0).sum()), "negative": float(values.clamp(max=0).sum())}
        row |= {"evidence": float("nan"), "evidence_chance": float("nan")}
        row |= {"pointing": float("nan"), "pointing_chance": float("nan")}
        if question.evidence is not None:
            on = evidence_share(maps, question.evidence[None], part="positive")
            hit = pointing(maps, question.evidence[None])
            row |= {"evidence": 100 * float(on.share), "evidence_chance": 100 * float(on.chance)}
            row |= {"pointing": 100 * float(hit.hit), "pointing_chance": 100 * float(hit.chance)}
        return row

    def _profile(self, values: Tensor, question: Question, common: Row) -> list[Row]:
        """Rows of profiles.csv, percent: the mass outside the region by distance, beside the area there."""
        if self.edges is None:
            reach = 0.5 * float(torch.tensor(values.shape).double().norm())
            self.edges = torch.linspace(0, reach, self.settings.measure.bins + 1, dtype=torch.float64).tolist()
        found = radial_profile(values[None], question.region[None], self.edges)
        pairs = zip(self.edges, self.edges[1:])
        return [
            {**common, "from": low, "to": high, "share": 100 * share, "area": 100 * area}
            for (low, high), share, area in zip(pairs, found.share[0].tolist(), found.area[0].tolist())
        ]

    def _alone(self, network: nn.Module, scene: Scene, question: Question) -> Row:
        """One row of alone.csv, percent: how much of the region keeps the label with all else hidden."""
        found = object_alone(
            network,
            scene.image[None].to(self.device),
            question.label,
            question.region[None].to(self.device),
            baselines=self.settings.maps.baselines,
            seeds=self.settings.measure.controls,
        )
        row = {"kept_before": 100 * float(found.kept_before), "kept": 100 * float(found.kept)}
        row["kept_elsewhere"] = 100 * float(found.kept_elsewhere.nanmean())
        return row | {"logit_drop": float(found.logit_drop), "margin_drop": float(found.margin_drop)}
