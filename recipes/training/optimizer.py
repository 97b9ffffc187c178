"""Which layers train, at which rate, and how the rates fall."""

from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from recipes.kit.settings import Schedule


def set_training(network: nn.Module, chosen: list[str]) -> None:
    """`network.train()`, but frozen normalisation layers stay in evaluation: their statistics do not move."""
    network.train()
    for name, module in network.named_modules():
        if hasattr(module, "running_mean") and name not in chosen:
            module.eval()


def parameter_groups(network: nn.Module, classifier: str, schedule: Schedule) -> list[dict[str, Any]]:
    """Optimizer groups: biases at twice the rate without decay, the classifier at ten times the rate (its bias: 20).

    Scales of normalisation layers train at the plain rate without decay.
    """
    groups: dict[tuple[bool, bool, bool], list[nn.Parameter]] = {}
    for name, module in network.named_modules():
        for kind, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                is_bias = kind.endswith("bias")
                key = (name == classifier, is_bias, not is_bias and parameter.ndim >= 2)
                groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": schedule.lr
            * (schedule.head_multiplier if is_head else 1.0)
            * (schedule.bias_multiplier if is_bias else 1.0),
            "weight_decay": schedule.weight_decay if decays else 0.0,
        }
        for (is_head, is_bias, decays), parameters in sorted(groups.items())
    ]


def build_optimizer(network: nn.Module, classifier: str, schedule: Schedule) -> torch.optim.Optimizer:
    """The schedule's optimizer over `parameter_groups`."""
    groups = parameter_groups(network, classifier, schedule)
    if schedule.optimizer == "adamw":
        return torch.optim.AdamW(groups)
    return torch.optim.SGD(groups, lr=schedule.lr, momentum=schedule.momentum)


def build_scheduler(optimizer: torch.optim.Optimizer, schedule: Schedule, steps: int) -> LambdaLR:
    """Every group's rate times `schedule.factor(step, steps)`."""
    return LambdaLR(optimizer, lambda step: schedule.factor(step, steps))
