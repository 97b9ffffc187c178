"""The signed maps of an image: what its patches (Influence) or pixels (captum) do for the labels of its regions."""

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import captum.attr
import torch
from torch import Tensor, nn

from perpixel.attribution import Influence, explain, influence
from recipes.explaining.images import ExplainedImage, Region
from recipes.explaining.settings import INFLUENCE, ExplainSettings, MapSettings

TRAINED, RANDOM = "trained", "random weights"  # the explained network, and the first word of its controls' names


@dataclass(frozen=True)
class SignedMap:
    """values: float64 (H, W), what speaks for the region's label (positive) and against it.

    delta: what the method leaves unexplained, NaN where that is unknown.
    """

    region: Region
    method: str
    values: Tensor
    delta: float


@dataclass(frozen=True)
class Explanation:
    """What one network, by name, makes of one image: the effect of every patch, and a map per region and method."""

    network_name: str
    network: nn.Module
    image: ExplainedImage
    effects: Influence
    maps: list[SignedMap]


@dataclass
class Explainer:
    """Explains images as the settings say.

    networks: by name, the explained one first. stop_if_asked: called before every map, to raise KeyboardInterrupt.
    """

    settings: ExplainSettings
    networks: Mapping[str, nn.Module]
    device: torch.device
    stop_if_asked: Callable[[], None] = lambda: None

    def explain(self, image: ExplainedImage, methods: Sequence[str]) -> Iterator[Explanation]:
        """The explanations of one image, network by network; maps region by region, method by method."""
        for name, network in self.networks.items():
            effects, asked = self.influence(network, image), (*image.regions, *image.evidence_regions)
            maps = [self.map(network, image, region, method, effects) for region in asked for method in methods]
            yield Explanation(name, network, image, effects, maps)

    def influence(self, network: nn.Module, image: ExplainedImage) -> Influence:
        """What every patch of the image does."""
        maps = self.settings.maps
        batch, patch, size = self.batch(image), self.patch(image), maps.batch_size
        return influence(network, batch, patch=patch, stride=maps.stride, baselines=maps.baselines, batch_size=size)

    def map(
        self, network: nn.Module, image: ExplainedImage, region: Region, method: str, effects: Influence | None = None
    ) -> SignedMap:
        """The map of one region; effects: of the image, made anew where they are needed and not given."""
        self.stop_if_asked()
        mask, score = region.mask[None].to(self.device), self.settings.ask.score
        if method == INFLUENCE:
            effects = self.influence(network, image) if effects is None else effects
            values = effects.of(region.label, mask, score, pixels=True)[0]
            return SignedMap(region, method, values.double().cpu(), float("nan"))
        options = method_options(method, self.settings.maps)
        found = explain(network, self.batch(image), region.label, region=mask, method=method, score=score, **options)
        delta = float("nan") if found.delta is None else float(found.delta[0])
        return SignedMap(region, method, found.pixels[0].double().cpu(), delta)

    def batch(self, image: ExplainedImage) -> Tensor:
        """The image as a batch of one, on the device."""
        return image.pixels[None].to(self.device)

    def patch(self, image: ExplainedImage) -> int:
        """The side of the patches on this image."""
        return self.settings.maps.patch or max(min(image.pixels.shape[-2:]) // 8, 1)


def method_options(method: str, maps: MapSettings) -> dict[str, Any]:
    """What the settings say about a captum method: those of its options that they name."""
    call = getattr(getattr(captum.attr, method, None), "attribute", None)
    known = {} if call is None else inspect.signature(inspect.unwrap(call)).parameters
    options = {"baselines": maps.baselines, "n_steps": maps.steps}
    return {name: value for name, value in options.items() if name in known}


def check_methods(network: nn.Module, maps: MapSettings, device: torch.device) -> None:
    """Try every method once, on a small blank image, so that a wrong name shows before anything else is done."""
    network = network.to(device)
    blank, everywhere = torch.zeros(1, 3, 64, 64, device=device), torch.ones(1, 64, 64, dtype=torch.bool, device=device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for method in maps.methods:
            if method != INFLUENCE:
                options = method_options(method, replace(maps, steps=2))
                explain(network, blank, 0, region=everywhere, method=method, **options)
