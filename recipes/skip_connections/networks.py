"""The networks of a study: one backbone, the skips of an arm, trained scores or none yet."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

import torch

from perpixel.models import FeatureMap, SkipNetwork
from recipes.kit.networks import build_network, seed_everything
from recipes.kit.settings import ModelSettings
from recipes.kit.weights import Weights
from recipes.skip_connections.layers import Arms


@dataclass(frozen=True)
class StudyNetworks:
    """Builds those of the arms; weights: of the network without skips, whose backbone all share."""

    model: ModelSettings
    channels: int
    weights: Weights
    arms: Arms

    def settings(self, maps: Sequence[FeatureMap]) -> ModelSettings:
        """Of the network of these maps, the last layer's first; its weights at random."""
        return without_weights(self.model, maps[1:])

    def start(self, maps: Sequence[FeatureMap], seed: int) -> SkipNetwork:
        """The backbone, and new scores: that of the last map is the same for every arm of a seed."""
        seed_everything(seed)
        network = cast(SkipNetwork, build_network(self.settings(maps), self.channels))
        network.backbone.load_state_dict(self.backbone)
        return network

    def trained(self, maps: Sequence[FeatureMap], weights: Weights, device: torch.device) -> SkipNetwork:
        """In evaluation mode, with the weights of all of it, or of its head alone."""
        if any(name.startswith("backbone.") for name in weights):
            network = self.start(maps, 0)
            network.load_state_dict(weights)
        else:
            network = SkipNetwork(self.frozen.backbone, self.frozen.minimum, maps, self.channels)
            network.head.load_state_dict(weights)
        return network.to(device).eval()

    @cached_property
    def frozen(self) -> SkipNetwork:
        """With skips from all maps of the study: its backbone gives every map that an arm needs."""
        return self.start(list(dict.fromkeys(one for maps in self.arms.values() for one in maps)), 0)

    @cached_property
    def backbone(self) -> Weights:
        """The weights of the backbone alone."""
        prefix = "backbone."
        return {name.removeprefix(prefix): one for name, one in self.weights.items() if name.startswith(prefix)}


def without_weights(model: ModelSettings, skips: Sequence[FeatureMap] = ()) -> ModelSettings:
    """The settings of a network with these skips that is not to be fetched."""
    layer = {"layer": [one.name for one in skips]} if skips else {}
    return replace(model, weights_backbone=None, checkpoint=None, options={**model.options, **layer})
