"""Which layers train, at which rate."""

from typing import Any

import torch
from torch import nn

from recipes.kit.settings import Schedule


def set_training(network: nn.Module, chosen: list[str]) -> None:
    """`network.train()`, but frozen normalisation layers stay in evaluation: their statistics do not move."""
    network.train()
    for name, module in network.named_modules():
        if hasattr(module, "running_mean") and name not in chosen:
            module.eval()


def build_optimizer(network: nn.Module, classifier: str, schedule: Schedule) -> torch.optim.Optimizer:
    """The schedule's optimizer: biases and the classifier at rates of their own; decay of what has two axes or more."""
    groups: dict[tuple[bool, bool, bool], list[nn.Parameter]] = {}
    for name, module in network.named_modules():
        for kind, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                is_bias = kind.endswith("bias")
                key = (name == classifier, is_bias, not is_bias and parameter.ndim >= 2)
                groups.setdefault(key, []).append(parameter)
    settings: list[dict[str, Any]] = []
    for (is_head, is_bias, decays), parameters in sorted(groups.items()):
        rate = schedule.lr * (schedule.head_multiplier if is_head else 1.0)
        rate *= schedule.bias_multiplier if is_bias else 1.0
        settings.append({"params": parameters, "lr": rate, "weight_decay": schedule.weight_decay if decays else 0.0})
    if schedule.optimizer == "adamw":
        return torch.optim.AdamW(settings)
    return torch.optim.SGD(settings, lr=schedule.lr, momentum=schedule.momentum)
