"""The randomised-weights check: does a map change when what the network has learnt is taken away, layer by layer?"""

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrize import is_parametrized

from perpixel.attribution.faithfulness.explainer import Explainer, maps_of
from perpixel.attribution.inputs import check_images, check_model
from perpixel.attribution.progress import progress
from perpixel.borrow import Caller, borrowed, called, hooked, random_numbers, unwrap
from perpixel.checks import check_integer, check_option, complain
from perpixel.outputs import dense_logits

SALT = 0xB1A50000  # added to seeds, so that no reset repeats how somebody built the network (torch takes 32 bits)


@dataclass(frozen=True)
class RandomisedWeights:
    """How alike the maps of N images are before and after layers lost what they had learnt.

    mode: "cascade" (each step resets one more layer, from the output down) or "independent" (one layer at a time).
    layers: (L names) the layer reset last when the map was compared. correlation: (L, N), Spearman's rank correlation
    of the signed maps with those of the trained network; magnitude: (L, N), of their absolute values. NaN: a map
    without any contrast. kept: layers with weights that have no way to be reset and stayed as they were.
    trained, reset: (N, H, W), the maps of the network as it is and of the last step, all layers reset in "cascade";
    trained_mass, reset_mass: the same of |values|, summed over channels after that.

    A map that does not depend on what was learnt stays near 1. Adebayo et al. 2018 (arXiv 1810.03292).
    """

    mode: Literal["cascade", "independent"]
    layers: tuple[str, ...]
    correlation: Tensor
    magnitude: Tensor
    kept: tuple[str, ...]
    trained: Tensor
    reset: Tensor
    trained_mass: Tensor
    reset_mass: Tensor


def randomised_weights(
    model: nn.Module,
    images: Tensor,
    explainer: Explainer,
    *,
    mode: Literal["cascade", "independent"] = "cascade",
    layers: Sequence[str] | None = None,
    stages: int | None = None,
    where: Tensor | None = None,
    seed: int = 0,
    show_progress: bool = False,
    call: Caller | None = None,
) -> RandomisedWeights:
    """Compare the maps of `explainer(network, images)` before and after layers of a copy of `model` are reset.

    explainer: returns (N, C, H, W), (N, H, W) or an `Attribution` for the network it gets: the copy, evaluating;
        its random numbers are the same each time. Fix the region beforehand: a reset network may predict the label
        nowhere.
    layers: dotted names, reset in this order, each with everything inside; None: all that the logits depend on, last
        to run first, by their own `reset_parameters`, seeded. A batch norm that is reset takes its statistics from
        `images`, as in training: with mean 0 and variance 1, the signal of deep networks would die away.
    stages: compare maps after about this many resets, evenly spread, the last among them; None: after each.
    where: bool (N, H, W), the pixels whose ranks count; None: all. show_progress: a bar on the standard error.
    call: as in `RegionTarget`; the copy that the explainer gets is called so already: `network(images)`.

    `model` is not touched. ValueError if no layer can be reset or a name is unknown; a warning if resetting every
    layer leaves the maps bitwise as they were.
    """
    check_option("mode", mode, ("cascade", "independent"))
    images = check_images(images)
    network = _detached_copy(called(unwrap(check_model(model)), call))
    groups, kept = _plan(network, images, layers)
    shown = _spread(len(groups), stages)
    raw = maps_of(explainer, network, images, seed)
    (trained, mass), (now, left) = raw, raw
    found = []
    gone: list[nn.Module] = []
    bar = progress(groups, show_progress, "faithfulness, randomised weights", "layer")
    for number, (name, group) in enumerate(bar):
        if mode == "independent" and number not in shown:
            continue
        with _reset(group, SALT + seed + number, images.device, put_back=mode == "independent"):
            gone = [*gone, *group] if mode == "cascade" else group
            if number in shown:
                _measure_statistics(network, gone, images)
                now, left = maps_of(explainer, network, images, seed)
                pairs = ((trained, now), (trained.abs(), now.abs()))
                found.append((name, *(rank_correlation(*pair, where) for pair in pairs)))
    if mode == "cascade" and torch.equal(now, trained):
        warnings.warn(
            "explainer: resetting every layer leaves the map bitwise as it was. Either it explains a network of its "
            "own instead of the one it is given, or the method does not look at the weights.",
            stacklevel=2,
        )
    names, signed, absolute = zip(*found)
    return RandomisedWeights(mode, names, torch.stack(signed), torch.stack(absolute), kept, trained, now, mass, left)


def rank_correlation(first: Tensor, second: Tensor, where: Tensor | None = None) -> Tensor:
    """Spearman's rank correlation of two maps (N, H, W) per image: (N,) float64; NaN where one is constant."""
    from scipy.stats import spearmanr

    if where is not None and (where.dtype != torch.bool or where.shape != first.shape):
        expected = f"a bool tensor {tuple(first.shape)}, like the maps"
        raise ValueError(complain("where", expected, where, "Pass ~region for the context."))
    found = []
    for number, (a, b) in enumerate(zip(first, second)):
        chosen = slice(None) if where is None else where[number]
        a, b = (v[chosen].flatten().double().cpu().numpy() for v in (a, b))
        flat = len(a) < 2 or (a == a[0]).all() or (b == b[0]).all()
        found.append(float("nan") if flat else float(spearmanr(a, b).statistic))
    return torch.tensor(found, dtype=torch.float64)


def _detached_copy(model: nn.Module) -> nn.Module:
    try:
        with torch.inference_mode(False):
            network = copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        remedy = "Delete the activations it keeps, or other things that cannot be copied."
        raise ValueError(complain("model", "a network that copy.deepcopy can copy", str(error), remedy)) from error
    network.zero_grad()
    return network.eval()


def _own_tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(recurse=False), *module.buffers(recurse=False)]


def _spread(count: int, stages: int | None) -> set[int]:
    """Which of `count` steps to look at; the last one is always among them."""
    if stages is None or check_integer("stages", stages, low=1) >= count:
        return set(range(count))
    return {round((i + 1) * count / stages) - 1 for i in range(stages)}


def _plan(
    network: nn.Module, images: Tensor, layers: Sequence[str] | None
) -> tuple[list[tuple[str, list[nn.Module]]], tuple[str, ...]]:
    """The layers that are reset together, by name, in their order; and the names of those that cannot be."""
    names = {module: name for name, module in network.named_modules()}
    if layers is None:
        groups = [(name, [network.get_submodule(name)]) for name in reversed(_used_layers(network, images))]
    else:
        modules = {name: module for module, name in names.items()}
        inside = {name: list(modules[name].modules()) if name in modules else [] for name in layers}
        groups = [(name, [module for module in inside[name] if _own_tensors(module)]) for name in layers]
        for name, group in groups:
            if not group:
                remedy = "Take one from dict(model.named_modules())."
                raise ValueError(complain("layers", "dotted names of layers with weights", name, remedy))
        if not groups:
            raise ValueError(complain("layers", "at least one name", "none", "Pass None for all layers."))
    kept = [module for _, group in groups for module in group if not _can_reset(module, images.device)]
    able = [(name, [module for module in group if module not in kept]) for name, group in groups]
    able = [(name, group) for name, group in able if group]
    listed = tuple(dict.fromkeys(names[module] for module in kept))
    if not able:
        came = f"none ({', '.join(listed)})"
        raise ValueError(complain("model", "layers that reset_parameters resets", came, "Give them that method."))
    return able, listed


def _used_layers(network: nn.Module, images: Tensor) -> list[str]:
    """Names of the layers with tensors of their own that the logits depend on, in the order they run."""
    order: dict[str, int] = {}
    modules = dict(network.named_modules())

    def note(name: str, *_: object) -> None:
        order.setdefault(name, len(order))

    with torch.inference_mode(False), torch.enable_grad(), borrowed(network, gradients=True, restore_all=True):
        parameters = [p.requires_grad_() for p in network.parameters() if p.is_floating_point()]
        with hooked(modules, before=note):
            logits = dense_logits(network(images[:1].clone())).sum()
        differentiable = logits.requires_grad and parameters
        gradients = torch.autograd.grad(logits, parameters, allow_unused=True) if differentiable else ()
        unused = {id(p) for p, g in zip(parameters, gradients) if g is None}
    running: dict[str, int] = {}
    for name, module in modules.items():
        own = list(module.parameters(recurse=False))
        upwards = [".".join(name.split(".")[:depth]) for depth in range(name.count(".") + 1, 0, -1)]
        at = next((order[n] for n in upwards if n in order), None)  # some layers run inside their parent's code
        if _own_tensors(module) and at is not None and not (own and all(id(p) in unused for p in own)):
            running[name] = at
    if not running:
        expected = "layers with weights that the logits depend on"
        raise ValueError(complain("model", expected, "none", "Nothing to reset."))
    return sorted(running, key=running.__getitem__)


def _resetter(module: nn.Module) -> Callable[[], object] | None:
    return getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)


def _can_reset(module: nn.Module, device: torch.device) -> bool:
    """Whether a reset changes every weight of two or more dimensions; under weight norm, for one, it would not."""
    if _resetter(module) is None or is_parametrized(module):
        return False
    weights = [p for p in module.parameters(recurse=False) if p.ndim > 1]
    before = [p.detach().clone() for p in weights]
    try:
        with _reset([module], SALT - 1, device, put_back=True):
            return not any(torch.equal(p, value) for p, value in zip(weights, before))
    except TypeError:  # it wants arguments that nobody but its author knows
        return False


@contextmanager
def _reset(group: list[nn.Module], seed: int, device: torch.device, *, put_back: bool) -> Iterator[None]:
    before = [(tensor, tensor.detach().clone()) for module in group for tensor in _own_tensors(module) if put_back]
    try:
        with torch.no_grad(), random_numbers(device, seed):
            for reset in filter(None, map(_resetter, group)):
                reset()
        yield
    finally:
        with torch.no_grad():
            for tensor, value in before:
                tensor.copy_(value)


@torch.no_grad()
def _measure_statistics(network: nn.Module, layers: list[nn.Module], images: Tensor) -> None:
    """Give the batch norms among `layers` the mean and variance of what they get for `images`."""

    def measure(_: object, layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        values = given[0].transpose(0, 1).flatten(1)
        if values.shape[1] > 1:
            layer.running_mean.copy_(values.mean(1))  # type: ignore[operator]
            layer.running_var.copy_(values.var(1))  # type: ignore[operator]

    norms = [layer for layer in layers if isinstance(layer, _BatchNorm) and layer.running_mean is not None]
    if norms:
        with hooked({str(i): norm for i, norm in enumerate(norms)}, before=measure):
            network(images.clone())
