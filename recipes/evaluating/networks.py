"""Which networks are scored: those of the arms of a run, of all seeds, or the one that weights are given for."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

from torch import nn

from perpixel.checks import complain
from recipes.evaluating.settings import EvaluateSettings
from recipes.kit.images import Images
from recipes.kit.networks import build_network
from recipes.kit.settings import ModelSettings
from recipes.kit.weights import load_weights
from recipes.training.origin import Origin
from recipes.training.pretraining import check_same_task, load_network, read_part, trained_parts


@dataclass(frozen=True)
class Candidate:
    """A network to score: its arm, the seed of its training (None: one for all), its folder in the run (None: none)."""

    arm: str
    seed: int | None = None
    part: str | None = None


@dataclass(frozen=True)
class Loaded:
    """A network with its weights; trained: what they depend on, as far as it is known."""

    network: nn.Module
    model: ModelSettings
    source: str
    trained: Origin


def find_candidates(settings: EvaluateSettings) -> list[Candidate]:
    """The networks that are asked for, arm by arm; ValueError listing what the run has for an arm that it has not."""
    model = settings.model
    if settings.run is None:
        return [Candidate(Path(model.checkpoint).stem if model.checkpoint else f"{model.weights}")]
    found = [_candidate(part) for part in trained_parts(settings.run)]
    arms = list(dict.fromkeys(one.arm for one in found))
    chosen = []
    for name in settings.arm or arms:
        some = [replace(one, arm=name) for one in found if name in (one.arm, one.part)]
        if not some:
            single = next((one.part for one in found if one.seed is not None), arms[0])
            expected = f"one of {', '.join(arms)}, or a single network such as {single}"
            raise ValueError(complain("arm", expected, name, "Choose."))
        chosen += sorted(some, key=lambda one: -1 if one.seed is None else one.seed)
    return chosen


def _candidate(part: str) -> Candidate:
    """By its folder: "seed0/control" is arm "control" with seed 0."""
    seeds = re.findall(r"(?:^|/)seed(\d+)(?=/|$)", part)
    arm = "/".join(one for one in part.split("/") if not re.fullmatch(r"seed\d+", one))
    return Candidate(arm, int(seeds[0]), part) if len(seeds) == 1 and arm else Candidate(part, None, part)


def load(settings: EvaluateSettings, candidate: Candidate, images: Images) -> Loaded:
    """The network, as its folder says which it is; ValueError where it was trained on other classes."""
    if candidate.part is None or settings.run is None:
        network, source = cast(tuple[nn.Module, str], load_network(settings, images.channels))  # weights are given
        return Loaded(network, settings.model, source, {})
    weights, trained, source = read_part(settings.run, candidate.part)
    names = ("binary", "ignore_index")
    given = {f"data.{name}": getattr(settings.data, name) for name in names}
    check_same_task(trained, {**given, "data: classes": list(images.classes)}, source)
    known = {one.name: trained.get(f"model.{one.name}") for one in fields(ModelSettings)}
    model = replace(settings.model, **{name: value for name, value in known.items() if value is not None})
    model = replace(model, weights_backbone=None)
    network = build_network(model, images.channels)
    load_weights(network, weights, source, replace_head=None, num_classes=images.channels)
    return Loaded(network, model, source, trained)


def name_classes(settings: EvaluateSettings) -> EvaluateSettings:
    """The classes of the training for masks of one's own where nothing beside them names any.

    Their number would be guessed from the masks, and a test set need not have them all.
    """
    data = settings.data
    if (
        settings.run is None
        or data.name != "folder"
        or data.root is None
        or {"classes", "num_classes"} & {*data.options}
    ):
        return settings
    part = find_candidates(settings)[0].part
    if part is None or any((Path(data.root) / name).is_file() for name in ("classes.txt", "classes.json")):
        return settings
    classes = read_part(settings.run, part)[1].get("data: classes")
    options = {**data.options, "classes": classes} if classes else data.options
    return replace(settings, data=replace(data, options=options))


def check_model(given: ModelSettings, own: Mapping[str, Any]) -> None:
    """ValueError for a setting of the model that is not that of the run: its folders say which networks they hold."""
    for one in fields(given):
        name, value = f"model.{one.name}", getattr(given, one.name)
        if name in own and value != own[name]:
            remedy = f"Leave --{name} out, or give the file of weights as --model.checkpoint instead of --run."
            raise ValueError(complain(name, f"{own[name]}, as the run has it", f"{value}", remedy))
