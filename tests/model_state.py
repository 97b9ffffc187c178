"""All of a model that a user can see, to compare before and after."""

from typing import Any

import torch
from attach_cases import hooks
from torch import Tensor, nn


def snapshot(model: nn.Module) -> dict[str, Any]:
    """All that a user can see of a model: objects by identity, values bitwise."""
    return {
        "objects": {name: id(t) for name, t in (*model.named_parameters(), *model.named_buffers())},
        "layers": {name: id(m) for name, m in model.named_modules()},
        "attributes": {name: sorted(vars(m)) for name, m in model.named_modules()},
        "state": {name: t.clone() for name, t in model.state_dict().items()},
        "trains": {name: p.requires_grad for name, p in model.named_parameters()},
        "gradients": {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()},
        "modes": {name: m.training for name, m in model.named_modules()},
        "forwards": {name: m.forward.__func__ for name, m in model.named_modules()},
        "hooks": list(hooks(model)),
    }


def assert_same(now: object, then: object, where: str = "") -> None:
    if isinstance(then, dict):
        assert isinstance(now, dict)
        assert now.keys() == then.keys(), where
        for key, value in then.items():
            assert_same(now[key], value, f"{where}.{key}")
    elif isinstance(then, Tensor):
        assert isinstance(now, Tensor)
        assert torch.equal(now, then), where
    else:
        assert now == then, where
