"""How captum is called: which images together, with which options of `attribute` where the caller names none."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from perpixel.attribution.baselines import Baselines, baseline_images
from perpixel.attribution.captum.methods import Method
from perpixel.borrow import hooked
from perpixel.checks import check_tensor, complain
from perpixel.outputs import maps_in

ROWS, PIXELS = 8, 1 << 19  # images in one forward pass, and the pixels of all
PATCH = 32  # pixels
DISTRIBUTION = ("DeepLiftShap", "GradientShap", "LayerDeepLiftShap", "LayerGradientShap")


def batches(
    method: Method, images: Tensor, baselines: Baselines, given: dict[str, Any]
) -> Iterator[tuple[slice, dict[str, Any]]]:
    """The images that are explained together, and the options of `attribute` for them: given, or sound values."""
    bases = baselines_for(method, baselines, images)
    for rows in _groups(method, images, bases, given):
        own = {
            name: v[rows] if isinstance(v, Tensor) and v.ndim == images.ndim and len(v) == len(images) else v
            for name, v in given.items()
        }
        options = _options(method, images[rows], own)
        base = bases[rows.start if len(bases) > 1 else 0]
        if base is not None:
            options["baselines"] = base if method.kind.__name__ in DISTRIBUTION else base[rows]
        yield rows, options


def baselines_for(method: Method, baselines: Baselines, images: Tensor) -> list[Tensor | None]:
    """Baselines for one call on all images, or one for each image where they are distributions of an image's own."""
    kind = method.kind.__name__
    if "baselines" not in method.parameters():
        if baselines is not None:
            expected = f"no baselines with {method.name}, which has none"
            raise TypeError(complain("baselines", expected, baselines, "Leave them out."))
        return [None]
    if kind not in DISTRIBUTION:
        return [baseline_images(baselines, images)]
    if baselines is None or isinstance(baselines, str):
        names = ("zero", "mean", "blur") if baselines is None else (baselines,)
        if len(names) < 2 and "DeepLiftShap" in kind:
            remedy = "Pass None for zero, mean and blur together, or a tensor (B, channels, H, W)."
            raise ValueError(complain("baselines", "at least two for DeepLiftShap", baselines, remedy))
        each = [baseline_images(name, images) for name in names]
        return [torch.stack([base[i] for base in each]) for i in range(len(images))]
    drawn = baselines(images) if callable(baselines) and not isinstance(baselines, Tensor) else baselines
    shape = "(B, channels, H, W), baselines to draw from"
    drawn = check_tensor("baselines", drawn, ndim=4, shape=shape, floating=True)
    if drawn.shape[1:] != images.shape[1:]:
        raise ValueError(complain("baselines", f"images {tuple(images.shape[1:])}", drawn, "Bring them to that size."))
    return [drawn.detach().to(images)]


def layer_squares(method: Method, model: nn.Module, layer: nn.Module | None, images: Tensor) -> dict[str, Tensor]:
    """Squares of the layer's map, an eighth of its shorter side, as the features of a method that hides them."""
    if "layer_mask" not in method.parameters() or layer is None:
        return {}
    sizes: list[torch.Size] = []
    note = lambda _, __, output: sizes.extend(made.shape[-2:] for made in maps_in(output))  # noqa: E731
    with torch.no_grad(), hooked({"": layer}, after=note):
        model(images[:1])
    if not sizes:
        expected = "one that gives a map (N, D, h, w)"
        raise ValueError(complain("layer", expected, "another output", "Name another layer."))
    return {"layer_mask": _squares(sizes[-1], max(1, min(sizes[-1]) // 8), images.device)}


def _groups(method: Method, images: Tensor, bases: list[Tensor | None], given: dict[str, Any]) -> Iterator[slice]:
    """As many images as go into one pass, unless the caller says how many do."""
    count = len(images)
    permutes = "Permutation" in method.kind.__name__
    if permutes and count < 2:
        expected = f"at least two with {method.name}, which swaps parts between them"
        raise ValueError(complain("images", expected, "one", "Explain more images, or choose FeatureAblation."))
    if permutes or "perturbations_per_eval" in given:
        size = count
    elif len(bases) > 1:
        size = 1
    else:
        size = given.get("internal_batch_size") or images_at_once(images)
    return (slice(start, start + size) for start in range(0, count, size))


def images_at_once(images: Tensor) -> int:
    """How many of them go into one forward pass, where the caller does not say."""
    return max(1, min(ROWS, PIXELS // images.shape[-2:].numel()))


def _options(method: Method, images: Tensor, given: dict[str, Any]) -> dict[str, Any]:
    most = images_at_once(images)
    rows = max(1, most // len(images))
    own, kind = method.parameters(), method.kind.__name__
    chosen: dict[str, Any] = {}
    if method.noise:
        chosen["nt_samples_batch_size"] = rows
        if isinstance(given.get("stdevs"), int):
            given = {**given, "stdevs": float(given["stdevs"])}
    if "internal_batch_size" in own:
        times = given.get("nt_samples_batch_size", rows) if method.noise else 1
        ends = 2 if kind == "LayerConductance" else 1
        chosen["internal_batch_size"] = max(most, ends * len(images) * (times or given.get("nt_samples", 5)))
    if "perturbations_per_eval" in own:
        chosen["perturbations_per_eval"] = most if kind in ("Lime", "KernelShap") else rows
    deltas = given.get("nt_type", "smoothgrad") == "smoothgrad"
    fixed = {"abs": False, "interpolate_mode": "bilinear", "return_convergence_delta": deltas}
    chosen |= {name: value for name, value in fixed.items() if name in own}
    return {**chosen, **_patches(kind, own, images, given), **given}


def _patches(kind: str, own: tuple[str, ...], images: Tensor, given: dict[str, Any]) -> dict[str, Any]:
    """Squares across all channels as the features of methods that hide some."""
    short = min(images.shape[-2:])
    fine = max(1, min(PATCH, short // 4))
    if "sliding_window_shapes" in own:
        if "sliding_window_shapes" in given:
            return {}
        return dict.fromkeys(("sliding_window_shapes", "strides"), (images.shape[1], fine, fine))
    if "feature_mask" not in own or given.get("feature_mask") is not None:
        return {}
    sides = {"ShapleyValues": -(-short // 2), "FeatureAblation": fine, "FeaturePermutation": fine}
    mask = _squares(images.shape[-2:], sides.get(kind, -(-short // 4)), images.device)
    more = {"n_samples": max(50, 4 * (int(mask.max()) + 1))} if kind in ("Lime", "KernelShap") else {}
    return {"feature_mask": mask, **more}


def _squares(size: torch.Size, side: int, device: torch.device) -> Tensor:
    """Feature numbers int64 (1, 1, H, W): squares of `side` pixels, row by row."""
    rows, columns = (torch.arange(length, device=device) // side for length in size)
    return (rows[:, None] * (columns[-1] + 1) + columns)[None, None]
