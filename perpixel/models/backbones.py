"""torchvision's classification networks, which the networks here are made of: by name, their weights, their layers."""

import contextlib
import hashlib
import re
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from torch import nn

from perpixel.checks import check_number, complain


def backbone_weights(backbone: str, weights: Any) -> Any:
    """The member of torchvision's weights of `backbone` (None: None); ValueError that lists the known ones."""
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if backbone not in known:
        expected = f"a classification network of torchvision: {', '.join(known)}"
        raise ValueError(complain("backbone", expected, repr(backbone), "Choose one of these."))
    kind = torchvision.models.get_model_weights(backbone)
    if weights is None or (not isinstance(weights, str) and isinstance(weights, kind)):
        return weights
    name = weights.rpartition(".")[2] if isinstance(weights, str) else ""
    if name not in kind.__members__:
        expected = f"None or one of {', '.join(kind.__members__)}, torchvision's weights of {backbone}"
        raise ValueError(complain("weights", expected, repr(weights), "Choose one of these."))
    return kind[name]


def classification_network(backbone: str, weights: Any = None, **options: Any) -> nn.Module:
    """torchvision's `backbone`, with random weights or those named (fetched at first use)."""
    import torchvision

    weights = backbone_weights(backbone, weights)
    if weights is None:
        return torchvision.models.get_model(backbone, weights=None, **options)
    with fetching(weights):
        return torchvision.models.get_model(backbone, weights=weights, **options)


@contextlib.contextmanager
def fetching(weights: Any, argument: str = "weights") -> Iterator[None]:
    """Around what lets torch fetch the file of torchvision's `weights` and read it.

    ConnectionError, with what to do by hand, where it cannot be fetched. ValueError where a file fetched earlier is not
    what its name says: torch looks only while it fetches. Both name the `argument`.
    """
    url = str(weights.url)
    path = Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])
    digest = re.search(r"-([0-9a-f]{8,})\.", path.name)
    if digest and path.is_file() and not hashlib.sha256(path.read_bytes()).hexdigest().startswith(digest[1]):
        expected, came = f"a file whose SHA-256 begins with {digest[1]}", f"another content in {path}"
        raise ValueError(complain(argument, expected, came, "Remove it: it will be fetched again."))
    try:
        yield
    except (OSError, RuntimeError, HTTPException) as error:  # no network; another content than its name says
        if path.is_file():
            raise
        reason = str(getattr(error, "reason", error))
        remedy = f"Fetch {url} by other means and put it into {path.parent}."
        raise ConnectionError(complain(argument, f"the file {path.name} to be fetched", reason, remedy)) from error


def vgg_layers(backbone: str, *, width: float = 1.0) -> nn.Sequential:
    """`features` of torchvision's vgg11 to vgg19_bn alone, weights at random, with `width` times as many channels.

    At width 1 names, shapes and order are torchvision's. Weights are drawn as torchvision does (Kaiming, fan out).
    """
    from torchvision.models import vgg

    letters = {"11": "A", "13": "B", "16": "D", "19": "E"}
    depth, normalised = backbone.removeprefix("vgg").removesuffix("_bn"), backbone.endswith("_bn")
    if not backbone.startswith("vgg") or depth not in letters:
        known = ", ".join(f"vgg{depth}{end}" for end in ("", "_bn") for depth in letters)
        raise ValueError(complain("backbone", f"one of {known}", repr(backbone), "Choose one of these."))
    check_number("width", width, low=0, high=1, open_low=True)
    plan = [step if isinstance(step, str) else max(1, round(width * step)) for step in vgg.cfgs[letters[depth]]]
    layers = vgg.make_layers(plan, batch_norm=normalised)
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return layers
