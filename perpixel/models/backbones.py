"""torchvision's classification networks, which the networks here are made of: by name, their weights, their layers."""

from typing import Any

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
    return torchvision.models.get_model(backbone, weights=weights, **options)


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
