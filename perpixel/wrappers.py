"""The network inside what training loops wrap around it."""

from torch import nn


def unwrap(model: nn.Module) -> nn.Module:
    """The network inside torch.compile, DistributedDataParallel, FSDP, DataParallel, AveragedModel or Fabric."""
    for name in ("_orig_mod", "_original_module", "module"):
        inner = getattr(model, name, None)
        if isinstance(inner, nn.Module) and (name != "module" or list(model.children()) == [inner]):
            return unwrap(inner)
    return model
