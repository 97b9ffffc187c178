"""torchvision's classification networks, which the networks here are made of: by name, their weights, their layers."""

import contextlib
import hashlib
import re
from collections import OrderedDict
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

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


def alexnet_layers(*, width: float = 1.0) -> nn.Sequential:
    """`features` of torchvision's AlexNet alone, weights at random, with `width` times as many channels.

    At width 1 names, shapes and order are torchvision's; weights are drawn as torchvision does.
    """
    check_number("width", width, low=0, high=1, open_low=True)
    with torch.device("meta"):
        layers: Any = classification_network("alexnet").features
    inputs = 3
    for place, layer in enumerate(layers):
        if isinstance(layer, nn.Conv2d):
            outputs = max(1, round(width * layer.out_channels))
            window: Any = (layer.kernel_size, layer.stride, layer.padding)
            layers[place] = nn.Conv2d(inputs, outputs, *window)
            inputs = outputs
    return layers


def googlenet_layers(weights: Any = None) -> nn.Sequential:
    """torchvision's GoogLeNet up to its last inception module, by their names; weights at random or those named.

    `transform_input` stands before them: those weights want images in [-1, 1], and torchvision converts to that what is
    normalised as for any other network. Without weights it does nothing.
    """
    random: dict[str, Any] = {"init_weights": False, "aux_logits": False}
    network: Any = classification_network("googlenet", weights, **(random if weights is None else {}))
    layers: OrderedDict[str, nn.Module] = OrderedDict(transform_input=_TransformInput(network.transform_input))
    left_out = ("aux1", "aux2", "avgpool", "dropout", "fc")
    layers.update((name, layer) for name, layer in network.named_children() if name not in left_out)
    return nn.Sequential(layers)


class _TransformInput(nn.Module):
    """Images normalised by ImageNet's mean and standard deviation -> by 0.5 and 0.5, if `active`."""

    scale: Tensor
    shift: Tensor

    def __init__(self, active: bool) -> None:
        super().__init__()
        mean, std = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]) if active else ([0.5] * 3, [0.5] * 3)
        self.register_buffer("scale", torch.tensor(std).view(3, 1, 1) / 0.5)
        self.register_buffer("shift", (torch.tensor(mean).view(3, 1, 1) - 0.5) / 0.5)

    def forward(self, images: Tensor) -> Tensor:
        return images * self.scale + self.shift


def as_convolution(linear: nn.Linear, size: int = 1, *, padding: int = 0) -> nn.Conv2d:
    """The convolution that does to every window of `size` cells what a linear layer does to one, flattened.

    The weights are the linear layer's, reshaped, not copied.
    """
    inputs = linear.in_features // size**2
    convolution = nn.Conv2d(inputs, linear.out_features, size, padding=padding, device="meta")
    convolution.weight = nn.Parameter(linear.weight.detach().view(linear.out_features, inputs, size, size))
    convolution.bias = nn.Parameter(linear.bias.detach())
    return convolution
