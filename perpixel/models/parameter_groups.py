"""Learning rate and weight decay of a segmentation network's parameters, by what they are."""

from typing import Any

from torch import nn

from perpixel.checks import check_number, complain


def parameter_groups(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float = 5e-4,
    classifier: str | None = None,
    bias_multiplier: float = 2.0,
    classifier_multiplier: float = 10.0,
) -> list[dict[str, Any]]:
    """Groups for a torch optimizer: `torch.optim.SGD(parameter_groups(model, lr=1e-3), lr=1e-3, momentum=0.9)`.

    As DeepLab is trained (arXiv 1412.7062): biases learn at `bias_multiplier` · lr without decay, the classifier at
    `classifier_multiplier` · lr, its bias at the product of both. What has one axis, such as the weight of a
    normalisation layer, has no decay either. Every parameter is in one group; those that require no gradient in none.

    Args:
        model: any network.
        lr: rate of ordinary weights.
        weight_decay: of weights of two axes or more.
        classifier: dotted name of the final layer, which may have layers of its own; None: `model.classifier_layer`.
        bias_multiplier: rate of biases, times lr.
        classifier_multiplier: rate of the classifier, times lr.

    Raises:
        ValueError: no such classifier, or none named; a number that is negative or not finite.
    """
    for name, number in (("weight_decay", weight_decay), ("bias_multiplier", bias_multiplier)):
        check_number(name, number, low=0.0)
    check_number("lr", lr, low=0.0)
    check_number("classifier_multiplier", classifier_multiplier, low=0.0)
    of_classifier = set(_classifier(model, classifier).parameters())
    groups: dict[tuple[bool, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_bias = name.rpartition(".")[2].endswith("bias")
            key = (parameter in of_classifier, is_bias, not is_bias and parameter.ndim >= 2)
            groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": lr * (classifier_multiplier if is_classifier else 1.0) * (bias_multiplier if is_bias else 1.0),
            "weight_decay": weight_decay if decays else 0.0,
        }
        for (is_classifier, is_bias, decays), parameters in sorted(groups.items())
    ]


def _classifier(model: nn.Module, name: str | None) -> nn.Module:
    name = getattr(model, "classifier_layer", None) if name is None else name
    layers = dict(model.named_modules())
    if not isinstance(name, str) or name not in layers or not name:
        expected = "the dotted name of the model's final layer"
        remedy = f"Name one; the last of its layers are {', '.join([*layers][-4:])}."
        raise ValueError(complain("classifier", expected, repr(name), remedy))
    return layers[name]
