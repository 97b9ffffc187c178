"""One skip connection from any node of a classification network to the prediction (Yim and Sohn, arXiv 1710.08192)."""

import contextlib
import difflib
import io
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from perpixel.checks import check_integer, complain
from perpixel.models.backbones import backbone_weights, classification_network, vgg_layers

# Two images that show which axes of a node's output are those of the image, and how coarse they are.
_SIZES = ((384, 576), (768, 1344))
_POOLS, _POOL_FUNCTIONS = (nn.MaxPool2d, nn.AvgPool2d), (F.max_pool2d, F.avg_pool2d)


@dataclass(frozen=True)
class FeatureMap:
    """A node of a backbone that gives a map (N, channels, h, w).

    stride, offset: unit i stands over pixel offset + stride·i, the middle of its receptive field. depth: convolutions
    on the longest way from the image. ends_block: the last map of a block, or a pooling between blocks: what comes
    later sees the image through this map alone.
    """

    name: str
    channels: int
    stride: int
    offset: float
    depth: int
    ends_block: bool


def feature_maps(backbone: str, layers: Sequence[str] | None = None) -> dict[str, FeatureMap]:
    """The nodes of torchvision's `backbone` that a skip may start from, by name, in the order they run.

    layers: only these; of a module its last map. ValueError where one gives none; the choices are listed.

    Names are those of `torchvision.models.feature_extraction.get_graph_node_names`. Left out are nodes of the
    classifier, nodes whose output does not grow with the image (pooled, or of a fixed size), and what is no map
    (N, C, h, w), such as tokens and channels-last. The last is the one that is scored without any skip.
    ValueError: an unknown backbone, or one that takes images of one size only.
    """
    traced = _Traced(backbone, _blank(backbone))
    chosen = traced.maps.values() if layers is None else {traced.find(name) for name in layers}
    return {name: one for name, one in traced.maps.items() if one in chosen}


def single_skip(
    num_classes: int,
    *,
    backbone: str = "resnet18",
    layer: str | Sequence[str] | None = None,
    weights: Any = None,
) -> "SkipNetwork":
    """torchvision's `backbone` with one skip connection from `layer` to the prediction.

    The last feature map is scored by a 1×1 convolution and brought to the grid of `layer`, where a second score, of
    that node and zero at first, is added; the sum is brought to the image. Units are placed where their receptive
    fields lie, whatever stride and padding made of them.

    Args:
        num_classes: C.
        backbone: A classification network of torchvision that takes images of any size.
        layer: A key of `feature_maps(backbone)`, or a module, whose last map is meant. None, or the last map itself:
            no skip. Several: a skip from each, coarse to fine, as of FCN-16s and FCN-8s.
        weights: torchvision's weights of the backbone.

    Raises:
        ValueError: an unknown backbone or layer, or one that gives no map; the choices are listed.
    """
    check_integer("num_classes", num_classes, low=1)
    chosen = backbone_weights(backbone, weights)
    network = _blank(backbone) if chosen is None else classification_network(backbone, chosen)
    traced = _Traced(backbone, network)
    *_, last = traced.maps.values()
    names = [layer] if isinstance(layer, str) else list(layer or ())
    found = dict.fromkeys(traced.find(name) for name in names)
    skips = [skip for skip in reversed(traced.maps.values()) if skip in found and skip != last]
    return SkipNetwork(*traced.cut([last, *skips]), [last, *skips], num_classes)


@torch.fx.wrap
def upsample(maps: Tensor, size: Sequence[int], stride: int, offset: float) -> Tensor:
    """Maps (N, C, h, w) -> (N, C, H, W): at y the bilinear value at (y - offset) / stride, at the rim the nearest one.

    offset: brought to a whole number, or to one and a half times as far as a stride's half-pixel centre, (stride-1)/2,
    which every window of whole padding has.
    """
    centred = (2 * offset) % 2 != 0  # half-pixel centres, as of windows of an even size
    shift = round(offset - (stride - 1) / 2 if centred else offset)
    ends = [int(full) - shift if centred else int(full) - 1 - shift for full in size]
    before = max(0, -(-shift // stride))
    after = [max(0, -(-end // stride) - length + int(not centred)) for end, length in zip(ends, maps.shape[-2:])]
    if before or any(after):
        maps = F.pad(maps, (before, after[1], before, after[0]), mode="replicate")
    if stride > 1:
        grown = [length * stride if centred else (length - 1) * stride + 1 for length in maps.shape[-2:]]
        maps = F.interpolate(maps, size=grown, mode="bilinear", align_corners=not centred)
    first = before * stride - shift
    return maps[..., first : first + int(size[0]), first : first + int(size[1])]


@torch.fx.wrap
def _check_images(images: Tensor, minimum: int) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[-2:]) < minimum:
        expected = f"shape (N, 3, H, W) with H and W at least {minimum}"
        raise ValueError(complain("images", expected, images, "Pass a batch of RGB images, or larger ones."))


class SkipHead(nn.Module):
    """Scores of the last map and of the skips, summed from coarse to fine: maps -> logits (N, C, H, W)."""

    def __init__(self, maps: Sequence[FeatureMap], num_classes: int) -> None:
        super().__init__()
        self.maps = tuple(maps)
        self.classifier = nn.Conv2d(maps[0].channels, num_classes, 1)
        self.skips = nn.ModuleList(nn.Conv2d(skip.channels, num_classes, 1) for skip in maps[1:])
        for parameter in self.skips.parameters():
            nn.init.zeros_(parameter)

    def forward(self, maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """maps: of the last layer, then of the skips from coarse to fine; size: of the image."""
        logits, here = self.classifier(maps[0]), self.maps[0]
        for score, features, there in zip(self.skips, maps[1:], self.maps[1:]):
            stride, offset = here.stride // there.stride, (here.offset - there.offset) / there.stride
            logits, here = upsample(logits, features.shape[-2:], stride, offset) + score(features), there
        return upsample(logits, size, here.stride, here.offset)


class SkipNetwork(nn.Module):
    """Images (N, 3, H, W) -> logits (N, C, H, W): `backbone`, images -> its maps by name, and a `SkipHead`."""

    classifier_layer = "head.classifier"  # for `perpixel.attach`: the score of the last map

    def __init__(self, backbone: nn.Module, minimum: int, maps: Sequence[FeatureMap], num_classes: int) -> None:
        super().__init__()
        self.backbone, self.minimum = backbone, minimum
        self.head = SkipHead(maps, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        _check_images(images, self.minimum)
        found = self.backbone(images)
        return self.head([found[one.name] for one in self.head.maps], images.shape[-2:])


def _blank(backbone: str) -> nn.Module:
    """The network with random weights; of VGG only the convolutions, since its classifier takes a second to draw."""
    backbone_weights(backbone, None)
    if backbone.startswith("vgg"):
        return nn.Sequential(OrderedDict(features=vgg_layers(backbone)))
    return classification_network(backbone)


class _Traced:
    """The graph of a network, and which of its nodes are `maps`, by name."""

    def __init__(self, backbone: str, network: nn.Module) -> None:
        from torchvision import ops
        from torchvision.models.feature_extraction import NodePathTracer

        self.backbone, self.network = backbone, network
        leaves = [one for one in vars(ops).values() if isinstance(one, type) and issubclass(one, nn.Module)]
        tracer = NodePathTracer(autowrap_modules=(math, ops), leaf_modules=leaves)
        training = network.training
        self.graph: fx.Graph = tracer.trace(network.eval())  # the same layers train; auxiliary outputs are not traced
        network.train(training)
        self.nodes: dict[str, fx.Node] = {
            name: node for node, name in tracer.node_to_qualname.items() if node.op != "placeholder"
        }
        every = _with_output(network, self.graph, self.nodes)
        try:
            sizes = [_shapes(every, size) for size in _SIZES]
        except (RuntimeError, AssertionError, ValueError) as error:
            remedy = "Choose one that is made of convolutions throughout, such as resnet18 or convnext_tiny."
            came = f"{backbone}, which takes those of one size ({str(error).splitlines()[0]})"
            raise ValueError(complain("backbone", "a network for images of any size", came, remedy)) from error
        self.shapes = sizes[0]
        parts = [name for name, part in network.named_children() if any(True for _ in part.parameters())]
        tail = parts[-1] if len(parts) > 1 else ""
        strides = {
            name: stride
            for name in self.nodes
            if (stride := _stride(*(of.get(name) for of in sizes))) and (not tail or name.split(".")[0] != tail)
        }
        self.maps = self._place(strides)

    def _place(self, strides: Mapping[str, int]) -> dict[str, FeatureMap]:
        """Where their units lie: through the windows of convolutions and poolings; else the middles of cells."""
        names, ends = {node: name for name, node in self.nodes.items()}, self._block_ends(strides)
        places: dict[fx.Node, tuple[int, float, int]] = {}  # stride, offset, depth
        found = {}
        for node in self.graph.nodes:
            known = [places[one] for one in node.all_input_nodes if one in places]
            at, offset, depth = max(known, key=lambda place: place[2], default=(1, 0.0, 0))
            for window in _windows(node, self.network):
                offset += at * (window.dilation * (window.kernel - 1) / 2 - window.padding)
                at, depth = at * window.stride, depth + window.convolves
            if (name := names.get(node, "")) in strides:
                if at != strides[name]:
                    at, offset = strides[name], (strides[name] - 1) / 2
                found[name] = FeatureMap(name, self.shapes[name][1], at, offset, depth, name in ends)
            places[node] = (at, offset, depth)
        return found

    def _block_ends(self, strides: Mapping[str, int]) -> set[str]:
        """Of the nodes that all later ones depend on alone: the last of each block, and poolings."""
        order = {node: place for place, node in enumerate(self.graph.nodes)}
        held, ends = 0, dict[Any, str]()
        names = {node: name for name, node in self.nodes.items()}
        for node, place in order.items():
            if node.op == "get_attr":
                continue
            name = names.get(node, "")
            if held <= place and name in strides:
                path = name.split(".")
                block = (tuple(path[:2]),) if len(path) > 2 else (tuple(path[:-1]), strides[name])
                ends[(name,) if _pools(node, self.network) else block] = name
            held = max([held, *(order[user] for user in node.users)])
        return set(ends.values())

    def find(self, layer: object) -> FeatureMap:
        """The map of that name, or the last in the module of that name."""
        if not isinstance(layer, str):
            raise TypeError(complain("layer", "the name of a node, several, or None", layer, "See feature_maps."))
        inside = [name for name in self.nodes if name == layer or name.startswith(f"{layer}.")]
        usable = [name for name in inside if name in self.maps]
        if usable:
            return self.maps[usable[-1]]
        ends = ", ".join(one.name for one in self.maps.values() if one.ends_block)
        if not inside:
            close = difflib.get_close_matches(layer, self.maps, 3)
            remedy = f"{f'Did you mean {chr(32).join(close[:1])}? ' if close else ''}The ends of blocks: {ends}."
            raise ValueError(complain("layer", f"a node of {self.backbone}", repr(layer), remedy))
        order = list(self.nodes)
        near = sorted(self.maps, key=lambda name: abs(order.index(name) - order.index(inside[-1])))[:4]
        shape = self.shapes.get(inside[-1])
        came = f"{layer!r}, which gives {'no tensor' if shape is None else shape} for an image of {_SIZES[0]}"
        remedy = f"The nearest that do: {', '.join(near)}. The ends of blocks: {ends}."
        raise ValueError(complain("layer", "a node that gives a map (N, C, h, w) of the image", came, remedy))

    def cut(self, maps: Sequence[FeatureMap]) -> tuple[fx.GraphModule, int]:
        """The backbone as far as these maps, which it gives by name; the least side of an image that it takes."""
        backbone = _with_output(self.network, self.graph, {one.name: self.nodes[one.name] for one in maps})
        low, side, high = 0, 1, min(_SIZES[0])
        while high - low > 1:
            try:
                fits = all(0 not in shape for shape in _shapes(backbone, (side, side)).values())
            except RuntimeError:
                fits = False
            low, high = (low, side) if fits else (side, high)
            side = (low + high) // 2
        return backbone, high


@dataclass(frozen=True)
class _Window:
    kernel: int
    stride: int
    padding: int
    dilation: int
    convolves: bool


def _windows(node: fx.Node, network: nn.Module) -> Iterator[_Window]:
    """Of the convolutions and poolings that a node runs, along the height."""
    if node.op == "call_module":
        module = network.get_submodule(str(node.target))
        for part in module.modules() if isinstance(module, nn.Sequential) else [module]:
            if isinstance(part, (nn.Conv2d, *_POOLS)):
                yield _window(part.kernel_size, part.stride, part.padding, getattr(part, "dilation", 1), part)
    elif node.target in _POOL_FUNCTIONS:
        given = dict(zip(("input", "kernel_size", "stride", "padding"), node.args)) | dict(node.kwargs)
        kernel = given["kernel_size"]
        yield _window(kernel, given.get("stride") or kernel, given.get("padding", 0), given.get("dilation", 1), None)


def _window(kernel: Any, stride: Any, padding: Any, dilation: Any, part: nn.Module | None) -> _Window:
    numbers = [one[0] if isinstance(one, tuple) else one for one in (kernel, stride, padding, dilation)]
    if isinstance(numbers[2], str):  # "same" or "valid"
        numbers[2] = numbers[3] * (numbers[0] - 1) // 2 if padding == "same" else 0
    return _Window(*numbers, isinstance(part, nn.Conv2d))


def _pools(node: fx.Node, network: nn.Module) -> bool:
    if node.op == "call_module":
        return isinstance(network.get_submodule(str(node.target)), _POOLS)
    return node.target in _POOL_FUNCTIONS


def _with_output(network: nn.Module, graph: fx.Graph, nodes: Mapping[str, fx.Node]) -> fx.GraphModule:
    """The network, layers shared, that gives these nodes by name, without what they do not need."""
    cut, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    cut.graph_copy(graph, copies)
    cut.output({name: copies[node] for name, node in nodes.items()})
    module = fx.GraphModule(network, cut)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
    return module


def _shapes(network: nn.Module, size: tuple[int, int]) -> dict[str, tuple[int, ...]]:
    """Of all tensors in the dictionary that a network gives for one image; nothing is computed."""
    state = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    blank = {name: torch.empty_like(value, device="meta") for name, value in state.items()}
    training = network.training
    call: Callable[..., Any] = torch.func.functional_call
    with contextlib.redirect_stderr(io.StringIO()):  # where torch.fx tells of an error before it is raised
        found = call(network.eval(), blank, (torch.empty(1, 3, *size, device="meta"),))
    network.train(training)
    return {name: tuple(value.shape) for name, value in found.items() if isinstance(value, Tensor)}


def _stride(small: tuple[int, ...] | None, large: tuple[int, ...] | None) -> int:
    """Pixels per unit of a map (N, C, h, w), by its shapes for images of _SIZES; 0 where it is none."""
    if small is None or large is None or len(small) != 4 or small[:2] != large[:2]:
        return 0
    steps = [(b - a) for a, b in zip(*_SIZES)]
    grown = [b - a for a, b in zip(small[2:], large[2:])]
    if min(grown) <= 0 or steps[0] % grown[0] or steps[0] * grown[1] != steps[1] * grown[0]:
        return 0
    return steps[0] // grown[0]
