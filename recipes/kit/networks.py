"""Networks by name, the weights they start from, and which of their layers train at which rate."""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from perpixel.checks import complain
from perpixel.models import small_fcn
from perpixel.outputs import dense_logits
from recipes.kit.settings import ModelSettings, Schedule
from recipes.training.checkpoints import DamagedCheckpoint

Weights = dict[str, Tensor]


def build_network(settings: ModelSettings, num_classes: int) -> nn.Module:
    """The named network for `num_classes`, weights at random but for `weights_backbone`."""
    import torchvision

    options: dict[str, Any] = dict(settings.options)
    if settings.name == "small_fcn":
        for option in ("weights", "weights_backbone", "aux_loss"):
            if getattr(settings, option):
                came = f"{option}={getattr(settings, option)!r}"
                raise ValueError(complain(f"model.{option}", "nothing for small_fcn", came, "Leave it out."))
        return small_fcn(num_classes, **options)
    known = torchvision.models.list_models(module=torchvision.models.segmentation)
    if settings.name not in known:
        expected = "small_fcn or one of torchvision's " + ", ".join(known)
        raise ValueError(complain("model.name", expected, settings.name, "Choose one of these."))
    if "aux_loss" in inspect.signature(torchvision.models.get_model_builder(settings.name)).parameters:
        options["aux_loss"] = settings.aux_loss
    elif settings.aux_loss:
        remedy = "Leave model.aux_loss out."
        raise ValueError(complain("model.aux_loss", "false", f"true, but {settings.name} has none", remedy))
    backbone = settings.weights_backbone
    try:
        return torchvision.models.get_model(
            settings.name, weights=None, weights_backbone=backbone, num_classes=num_classes, **options
        )
    except (KeyError, ValueError) as error:
        raise ValueError(
            complain("model.weights_backbone", "torchvision weights of the backbone", backbone, str(error))
        ) from error


def starting_weights(settings: ModelSettings) -> tuple[Weights, str] | None:
    """What `model.weights` or `model.checkpoint` names, and its name for messages; None if neither does."""
    if settings.weights and settings.checkpoint:
        came = f"{settings.weights!r} and {settings.checkpoint!r}"
        raise ValueError(complain("model.weights, model.checkpoint", "one of them", came, "Leave one out."))
    if settings.weights:
        import torchvision

        try:
            weights = torchvision.models.get_model_weights(settings.name)[settings.weights]
        except (KeyError, ValueError) as error:
            try:
                listed = ", ".join(w.name for w in torchvision.models.get_model_weights(settings.name))
            except ValueError:
                listed = "none: torchvision has no weights for this network"
            raise ValueError(
                complain("model.weights", f"one of {listed}", settings.weights, "Choose one of these.")
            ) from error
        return dict(weights.get_state_dict(progress=False, check_hash=True)), f"torchvision's {weights}"
    if settings.checkpoint:
        return read_weights(Path(settings.checkpoint)), settings.checkpoint
    return None


def read_weights(path: Path) -> Weights:
    """State dict of a safetensors or torch.save file; a training checkpoint's "model" or "state_dict" is taken out."""
    if not path.is_file():
        raise FileNotFoundError(complain("model.checkpoint", "a file", f"{path}, not there", "Check the path."))
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise DamagedCheckpoint(f"{path}: not a sound safetensors file ({error})") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise DamagedCheckpoint(
            complain(
                "model.checkpoint",
                "a safetensors file or a state dict of torch.save that loads with weights_only=True",
                f"{path} ({type(error).__name__}: {str(error).splitlines()[0]})",
                "Save model.state_dict() alone.",
            )
        ) from error
    return unwrap_weights(content, str(path))


def unwrap_weights(content: Any, source: str) -> Weights:
    """The state dict inside a training checkpoint: averaged weights if there are some, else "model" or "state_dict"."""
    if isinstance(content, Mapping):
        if isinstance(content.get("ema"), Mapping) and content["ema"]:
            content = {k.removeprefix("module."): v for k, v in content["ema"].items() if k != "n_averaged"}
        for key in ("model", "state_dict", "model_state_dict"):
            if isinstance(content.get(key), Mapping):
                content = content[key]
                break
        if content and all(isinstance(v, Tensor) for v in content.values()):
            return dict(content)
    came = f"{type(content).__name__} in {source}"
    if isinstance(content, Mapping):
        came = f"a mapping with keys {list(content)[:6]} in {source}"
    raise ValueError(complain("model.checkpoint", "a state dict", came, 'Save model.state_dict(), or {"model": ...}.'))


def load_weights(
    network: nn.Module, weights: Weights, source: str, *, replace_head: bool, num_classes: int
) -> list[str]:
    """Load `weights`; returns the classifier entries that stay at random because their number of classes differs."""
    own = network.state_dict()
    for prefix in ("_orig_mod.", "module.", "model.", "network."):
        if weights and all(k.startswith(prefix) for k in weights) and not any(k.startswith(prefix) for k in own):
            weights = {k.removeprefix(prefix): v for k, v in weights.items()}
    has_aux = any(k.startswith("aux_classifier.") for k in own)
    weights = {k: v for k, v in weights.items() if has_aux or not k.startswith("aux_classifier.")}
    differ = [k for k in own if k in weights and own[k].shape != weights[k].shape]
    replaced = [k for k in differ if own[k].shape[1:] == weights[k].shape[1:] and own[k].shape[:1] == (num_classes,)]
    missing = [k for k in own if k not in weights and not k.startswith("aux_classifier.")]
    unexpected = [k for k in weights if k not in own]
    if replaced and not replace_head:
        shape = tuple(weights[replaced[0]].shape)
        raise ValueError(
            complain(
                "model.checkpoint",
                f"{num_classes} classes, as the data has",
                f"{replaced[0]} of shape {shape} in {source}",
                "Pass --model.replace_head true to train a new classifier.",
            )
        )
    faults = [
        f"{len(names)} {what} ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})"
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", [k for k in differ if k not in replaced]),
        )
        if names
    ]
    if faults:
        remedy = "Check model.name and model.options: the file belongs to another network."
        came = f"{source} with " + "; ".join(faults)
        raise ValueError(complain("model.checkpoint", "the network's entries", came, remedy))
    network.load_state_dict({**own, **{k: v for k, v in weights.items() if k not in replaced}})
    return replaced


@contextmanager
def _everything_differentiable(network: nn.Module) -> Iterator[None]:
    training = {m: m.training for m in network.modules()}
    wanted = {p: p.requires_grad for p in network.parameters()}
    try:
        network.eval().requires_grad_(True)
        yield
    finally:
        for module, flag in training.items():
            module.training = flag
        for parameter, flag in wanted.items():
            parameter.requires_grad_(flag)


def layers_to_logits(network: nn.Module, size: tuple[int, int] = (64, 64)) -> list[str]:
    """Names of the modules with parameters of their own that the logits depend on, in the order they run.

    Found by one forward pass on a blank image and the gradient of the main logits: an auxiliary head is not among them.
    """
    order: list[str] = []
    modules = {n: m for n, m in network.named_modules() if any(True for _ in m.parameters(recurse=False))}
    handles = [
        m.register_forward_pre_hook(lambda _m, _i, name=n: order.append(name) if name not in order else None)
        for n, m in modules.items()
    ]
    like = next(network.parameters())
    try:
        with _everything_differentiable(network), torch.enable_grad():
            image = torch.zeros(1, 3, *size, device=like.device, dtype=like.dtype)
            logits = dense_logits(network(image))
            parameters = [p for m in modules.values() for p in m.parameters(recurse=False)]
            gradients = torch.autograd.grad(logits.sum(), parameters, allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    used = {p for p, g in zip(parameters, gradients) if g is not None}
    return [n for n in order if any(p in used for p in modules[n].parameters(recurse=False))]


def select_layers(network: nn.Module, layers: str, head: str | None = None) -> tuple[list[str], str]:
    """Names of the modules that train ("last-3", "head" or "all") and of the classifier; freezes all the rest.

    A layer is a convolution or linear map; normalisation layers go with the one they follow.
    """
    path = layers_to_logits(network)
    modules = dict(network.named_modules())
    weighty = [n for n in path if any(p.ndim >= 2 for p in modules[n].parameters(recurse=False))]
    if not weighty:
        remedy = "Choose another network."
        raise ValueError(complain("model.name", "a network with convolutions", type(network).__name__, remedy))
    classifier = head if head is not None else weighty[-1]
    if classifier not in weighty:
        remedy = f"Layers before the logits: {', '.join(weighty[-4:])}."
        raise ValueError(complain("model.head", "a layer the logits depend on", classifier, remedy))
    if layers == "all":
        chosen = [n for n, m in modules.items() if any(True for _ in m.parameters(recurse=False))]
    elif layers == "head":
        chosen = [classifier]
    else:
        chosen = path[path.index(weighty[-min(3, len(weighty))]) :]
    trained = {p for n in chosen for p in modules[n].parameters(recurse=False)}
    for parameter in network.parameters():
        parameter.requires_grad_(parameter in trained)
    return chosen, classifier


def set_training(network: nn.Module, chosen: list[str]) -> None:
    """`network.train()`, but frozen normalisation layers stay in evaluation: their statistics do not move."""
    network.train()
    for name, module in network.named_modules():
        if hasattr(module, "running_mean") and name not in chosen:
            module.eval()


def parameter_groups(network: nn.Module, classifier: str, schedule: Schedule) -> list[dict[str, Any]]:
    """Optimizer groups: biases at twice the rate without decay, the classifier at ten times the rate (its bias: 20).

    Scales of normalisation layers train at the plain rate without decay. Each group keeps its rate as "base_lr".
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
            "base_lr": schedule.lr
            * (schedule.head_multiplier if is_head else 1.0)
            * (schedule.bias_multiplier if is_bias else 1.0),
            "weight_decay": schedule.weight_decay if decays else 0.0,
        }
        for (is_head, is_bias, decays), parameters in sorted(groups.items())
    ]


def build_optimizer(network: nn.Module, classifier: str, schedule: Schedule) -> torch.optim.Optimizer:
    """The schedule's optimizer over `parameter_groups`."""
    groups = [{**g, "lr": g["base_lr"]} for g in parameter_groups(network, classifier, schedule)]
    if schedule.optimizer == "adamw":
        return torch.optim.AdamW(groups)
    return torch.optim.SGD(groups, lr=schedule.lr, momentum=schedule.momentum)
