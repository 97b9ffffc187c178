"""The one door to captum: any of its methods on the label of a region, with sound defaults."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from perpixel.attribution.baselines import Baselines
from perpixel.attribution.captum.layers import layer_for
from perpixel.attribution.captum.methods import Method
from perpixel.attribution.captum.options import batches, images_at_once, layer_squares
from perpixel.attribution.captum.target import RegionTarget
from perpixel.attribution.captum.validity import prepare_model
from perpixel.attribution.inputs import check_images, check_model
from perpixel.attribution.measures.context import Attribution
from perpixel.borrow import Caller, borrowed, called, unwrap
from perpixel.checks import check_same_device, complain
from perpixel.outputs import logits_at
from perpixel.reduction import fingerprint, labels_on_grid

_MEMORY = ("internal_batch_size", "perturbations_per_eval", "nt_samples_batch_size")  # options that bound it
_CAPTUM_WARNINGS = (
    "Setting (forward|backward)",
    "Input Tensor",
    "Internal batch size",
    "This method computes finite differences",
    "You are providing multiple inputs",
)


def explain(
    model: nn.Module,
    images: Tensor,
    label: int | Tensor,
    *,
    region: Tensor | None = None,
    method: Any = "IntegratedGradients",
    layer: str | nn.Module | None = None,
    score: str = "logit",
    baselines: Baselines = None,
    call: Caller | None = None,
    **attribute_kwargs: Any,
) -> Attribution:
    """What every input value gives to the score of `label` on `region`, by any of captum's methods.

    model, label, region, score, call: as in `RegionTarget`. images: float (N, channels, H, W). The model runs in
        evaluation mode and is left as it was: hooks, flags, gradients; an object of captum's that is given as well.
    method: name of a captum class, the class, or an object of it (then put on this model). With "NoiseTunnel" or any
        of its options (nt_type, nt_samples, stdevs, ...) there is noise around the method; alone, around Saliency.
    layer: dotted name or module, for layer methods and GuidedGradCam; None: the last of the backbone's
        (`last_feature_layer`). Their values are summed over the layer's channels and upsampled bilinearly.
    baselines: "zero", "mean", "blur", a number, a tensor or a callable on the images; None: zero, as in captum. For
        DeepLiftShap and GradientShap a tensor (B, ...) to draw from; None: each image's own zero, mean and blur.
    attribute_kwargs: options of captum's `attribute`. Where not given: at most 8 images, and half a million pixels, in
        one pass of captum's; signed values; the convergence delta; for methods that hide parts, squares over all
        channels (Occlusion and FeatureAblation 32 pixels, at most a quarter of the shorter side; the others a quarter;
        ShapleyValues half).

    Sampling draws from torch's and numpy's generators, as captum does. A UserWarning says where a method does not hold
    for the network, and why: DeepLift, guided backpropagation, deconvolution, LRP. Values are float32, or float64 if
    the images are. TypeError or ValueError for unfit arguments, NaN too; RuntimeError, with a remedy, if captum fails.
    """
    model = called(unwrap(check_model(model)), call)
    chosen = Method(method, attribute_kwargs)
    with _ready_for_captum(model):
        images = _fit(images, model)
        at_once = attribute_kwargs.get("internal_batch_size") or images_at_once(images)
        target = RegionTarget(model, label, region, score).freeze(images, at_once)
        name, module = layer_for(chosen, model, layer, images)
        prepare_model(chosen.kind.__name__, model, images, score, module)
        options = {**layer_squares(chosen, model, module, images), **attribute_kwargs}
        labels, regions = target.arguments(images)
        parts, deltas = [], []
        for rows, own in batches(chosen, images, baselines, options):
            own["additional_forward_args"] = (labels[rows], regions[rows])
            part = images[rows].clone()
            result = _captum(chosen, target, module, part, own)
            if own.get("return_convergence_delta"):
                result, delta = result
                deltas.append(_mean_delta(delta.detach(), len(part), chosen, own))
            parts.append(_single(result, chosen).detach())
        values = torch.cat(parts)
        if getattr(options.get("layer_mask"), "shape", (0, 0))[1] == 1:
            values = values[:, :1]  # every channel has the effect of all
        values = _on_image(values, images, chosen)
        regions = labels_on_grid(regions, (images.shape[-2], images.shape[-1]))
    layer_name = name if chosen.layered else None
    delta = torch.cat(deltas) if deltas else None
    return Attribution(values, regions, target.label, chosen.name, delta, layer_name, score, fingerprint(images))


@contextmanager
def _ready_for_captum(model: nn.Module) -> Iterator[None]:
    """Gradients, no inference mode, the model borrowed, and captum's usual warnings off."""
    own = borrowed(model, gradients=True, restore_all=True)
    with torch.inference_mode(False), torch.enable_grad(), own, warnings.catch_warnings():
        for message in _CAPTUM_WARNINGS:
            warnings.filterwarnings("ignore", message=rf"\s*{message}")
        yield


def _fit(images: object, model: nn.Module) -> Tensor:
    """A copy of the images for captum, on the model's device and of its dtype."""
    images = check_images(images)
    weights = next((p for p in model.parameters() if p.is_floating_point()), None)
    if weights is not None:
        check_same_device(images=images, model=weights)
        if images.dtype != weights.dtype and not torch.is_autocast_enabled(images.device.type):
            remedy = "Convert the images with .to(dtype), or call under torch.autocast."
            raise TypeError(complain("images", f"the model's dtype {weights.dtype}", images, remedy))
    return images.clone()


def _mean_delta(delta: Tensor, count: int, chosen: Method, options: dict[str, Any]) -> Tensor:
    """Deltas of all samples of `count` images -> their means (count,); a noise tunnel lists them batch by batch."""
    if not chosen.noise:
        return delta.reshape(count, -1).mean(1)
    samples = options.get("nt_samples", 5)
    batch = min(options["nt_samples_batch_size"] or samples, samples)
    parts = delta.split(batch * (len(delta) // samples))
    return torch.cat([part.reshape(count, -1) for part in parts], 1).mean(1)


def _captum(chosen: Method, target: RegionTarget, layer: nn.Module | None, images: Tensor, own: dict[str, Any]) -> Any:
    name = chosen.name
    try:
        return chosen.on(target, layer).attribute(images, **own)
    except AssertionError as error:
        refused = f"what made captum say {str(error)!r}"
        raise ValueError(complain("method", f"options that {name} accepts", refused, "Change the options.")) from error
    except torch.OutOfMemoryError as error:
        memory = [option for option in _MEMORY if option in own]
        remedy = f"Lower {' and '.join(memory)}." if memory else "Explain fewer images at once."
        raise torch.OutOfMemoryError(complain("method", f"{name} to fit in memory", str(error), remedy)) from error
    except (ImportError, ValueError) as error:
        if "sklearn" not in str(error):
            raise
        remedy = "Install it (pip install scikit-learn), or choose ShapleyValueSampling."
        raise ImportError(complain("method", f"scikit-learn, which {name} needs", "none", remedy)) from error
    except RuntimeError as error:
        remedy = "Choose IntegratedGradients or Occlusion, which need nothing of a network but its output."
        raise RuntimeError(complain("method", f"captum's {name} to run on this network", str(error), remedy)) from error


def _single(result: Any, chosen: Method) -> Tensor:
    if isinstance(result, (tuple, list)) and len(result) == 1:
        result = result[0]
    if not isinstance(result, Tensor) or (chosen.layered and result.ndim != 4):
        came = result if isinstance(result, Tensor) else f"{type(result).__name__} of {len(result)}"
        raise ValueError(complain("layer", "one that gives a single map (N, D, h, w)", came, "Name another layer."))
    return result


def _on_image(result: Tensor, images: Tensor, chosen: Method) -> Tensor:
    """Values like the images, float32 or float64."""
    values = result.to(torch.float64 if images.dtype == torch.float64 else torch.float32)
    if chosen.layered:
        values = logits_at(values.sum(1, keepdim=True), images.shape[-2:])
    if not bool(torch.isfinite(values).all()):
        remedy = "Look for an overflow in the model's gradient, or use float32."
        raise ValueError(complain("method", f"finite values of {chosen.name}", "NaN or infinity", remedy))
    return values.expand(images.shape).contiguous()
