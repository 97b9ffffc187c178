"""The layers of a network: the one that a layer method explains, and those that run several times in a pass."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from perpixel.attribution.captum.methods import Method
from perpixel.borrow import hooked
from perpixel.checks import complain
from perpixel.outputs import dense_logits, maps_in

BACKBONES = ("backbone", "encoder", "features", "body", "trunk")


def layer_for(
    method: Method, model: nn.Module, layer: str | nn.Module | None, images: Tensor
) -> tuple[str | None, nn.Module | None]:
    """Name and module of the layer that `method` explains: as given, that of the given object, or the last of features.

    None for a method without layers.
    """
    if not method.takes_layer:
        if layer is not None:
            remedy = "Leave it out, or choose LayerGradCam, say."
            raise TypeError(complain("layer", f"none with {method.name}, which explains the image", layer, remedy))
        return None, None
    layer = method.own_layer if layer is None else layer
    name, module = last_feature_layer(model, images) if layer is None else find_layer(model, layer)
    if method.kind.__name__ == "LayerLRP" and not list(module.parameters(recurse=False)):
        expected = "a layer with weights of its own for LayerLRP"
        raise ValueError(complain("layer", expected, f"{name!r}, a {type(module).__name__}", "Name a convolution."))
    return name, module


def find_layer(model: nn.Module, layer: str | nn.Module) -> tuple[str, nn.Module]:
    """Name and module of `layer`, given as either; TypeError or ValueError if the model has no such."""
    named = dict(model.named_modules())
    for name, module in named.items():
        if name and (module is layer or name == layer):
            return name, module
    expected = "a layer of the model, or its dotted name"
    if not isinstance(layer, (str, nn.Module)):
        raise TypeError(complain("layer", expected, layer, "See model.named_modules()."))
    came = str(layer) if isinstance(layer, nn.Module) else repr(layer)
    raise ValueError(complain("layer", expected, came[:80], "See model.named_modules()."))


def last_feature_layer(model: nn.Module, images: Tensor) -> tuple[str, nn.Module]:
    """Name and module of the deepest feature map, for Grad-CAM and its like; one pass of one image, and back.

    Only layers that give one map and nothing beside it, on which the logits depend. Where a layer called backbone,
    encoder, features, body or trunk gives maps: the layer inside it that made the last (torchvision's backbone.layer4,
    the last stage of smp's encoders); if none did, since the backbone works on tokens (transformers, smp's mit_b0), the
    last layer on the grid of that map, before the classifier. Otherwise, among the layers before the classifier, the
    last of those on the coarsest grid that is not one of global or pyramid pooling. ValueError if there is none, with
    the layers that give maps.
    """
    named = dict(model.named_modules())
    seen: list[tuple[str, list[Tensor], bool]] = []  # the maps that every layer gave, in the order in which they ended

    def note(name: str, _: nn.Module, output: object) -> None:
        seen.append((name, maps_in(output), isinstance(output, Tensor)))

    image = images[:1].detach().requires_grad_()
    with torch.enable_grad(), hooked(named, after=note):
        logits = dense_logits(model(image.clone()))
    maps_alone = [(name, made[0]) for name, made, alone in seen if alone and made and name]
    single = _used(maps_alone, logits)
    given = {name: made for name, made, _ in seen if made and name.split(".")[-1] in BACKBONES}
    for backbone, maps in given.items():
        last = maps[-1].data_ptr()
        inside = [n for n, made in single if n.startswith(f"{backbone}.") and made.data_ptr() == last]
        whole = [n for n, _ in single if n == backbone]
        if inside or whole:
            return (inside or whole)[-1], named[(inside or whole)[-1]]
    features = [(name, made.shape[-2:]) for name, made in _before_head(single, named) if made.shape[-2:].numel() > 1]
    if not features:
        maps_from = ", ".join(dict.fromkeys(repr(name) for name, _ in maps_alone[-5:])) or "no layer"
        remedy = f"Name a layer: layer='...'. Maps come from {maps_from}; see model.named_modules()."
        raise ValueError(complain("layer", "a network with a layer that gives a feature map", "none", remedy))
    pooled = {made.shape[-2:] for name, made in maps_alone if isinstance(named[name], nn.AdaptiveAvgPool2d)}
    grids = [maps[-1].shape[-2:] for maps in given.values()][-1:]  # of the outermost backbone
    grids += sorted({grid for _, grid in features}, key=lambda grid: (grid in pooled, grid.numel()))
    name = next(name for grid in grids for name, of_layer in reversed(features) if of_layer == grid)
    return name, named[name]


def _used(layers: list[tuple[str, Tensor]], logits: Tensor) -> list[tuple[str, Tensor]]:
    """Those whose maps the logits depend on."""
    graded = [made for _, made in layers if made.requires_grad]
    if not graded or not logits.requires_grad:
        return layers
    slopes = torch.autograd.grad(logits.sum(), graded, allow_unused=True)
    used = {id(made) for made, slope in zip(graded, slopes) if slope is not None}
    return [(name, made) for name, made in layers if id(made) in used]


def _before_head(layers: list[tuple[str, Tensor]], named: dict[str, nn.Module]) -> list[tuple[str, Tensor]]:
    """Without the last layer that has parameters, which gives the logits, and what comes after or around it."""
    for end in range(len(layers) - 1, -1, -1):
        name, logits = layers[end]
        if not named[name]._modules and list(named[name].parameters()):
            return [(n, m) for n, m in layers[:end] if m.data_ptr() != logits.data_ptr()]
    return layers


def copy_for_each_run(model: nn.Module, reused: Mapping[nn.Module, int]) -> None:
    """Put a copy for every use in a forward pass in the place of each layer that is used several times.

    For layers without parameters, such as the one ReLU of a residual block: captum keeps one input per layer. To be
    called on a model that is `borrowed` with `restore_all`.
    """
    stand_ins = {id(layer): _CopyPerRun(layer, times) for layer, times in reused.items()}
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if id(child) in stand_ins:
                module._modules[name] = stand_ins[id(child)]


class _CopyPerRun(nn.Module):
    """Passes its k-th run in a forward pass on to the k-th copy of a layer."""

    def __init__(self, layer: nn.Module, times: int) -> None:
        super().__init__()
        self.copies = nn.ModuleList(copy.deepcopy(layer) for _ in range(times))
        self.runs = 0
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.runs += 1
        return self.copies[(self.runs - 1) % len(self.copies)](*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:  # what the network reads off the layer itself
            return getattr(self._modules["copies"][0], name)  # type: ignore[index]
