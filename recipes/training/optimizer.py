"""Which layers train, at which rate."""

import torch
from torch import nn

from perpixel.models import parameter_groups
from recipes.kit.settings import Schedule


def set_training(network: nn.Module, chosen: list[str]) -> None:
    """`network.train()`, but frozen normalisation layers stay in evaluation: their statistics do not move."""
    network.train()
    for name, module in network.named_modules():
        if hasattr(module, "running_mean") and name not in chosen:
            module.eval()


def build_optimizer(network: nn.Module, classifier: str, schedule: Schedule) -> torch.optim.Optimizer:
    """The schedule's optimizer: biases and the classifier at rates of their own; decay of what has two axes or more."""
    groups = parameter_groups(
        network,
        lr=schedule.lr,
        weight_decay=schedule.weight_decay,
        classifier=classifier,
        bias_multiplier=schedule.bias_multiplier,
        classifier_multiplier=schedule.head_multiplier,
    )
    if schedule.optimizer == "adamw":
        return torch.optim.AdamW(groups)
    return torch.optim.SGD(groups, lr=schedule.lr, momentum=schedule.momentum)
