"""The nodes of a classification network that give maps: how coarse they are, where their units lie, how deep."""

import contextlib
import difflib
import io
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from perpixel.checks import complain
from perpixel.models.backbones import backbone_weights, classification_network, vgg_layers
from perpixel.models.learnable_upsampling import Cells, cells_of

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

    @property
    def cells(self) -> Cells:
        """stride and offset."""
        return Cells(self.stride, self.offset)


def feature_maps(backbone: str, layers: Sequence[str] | None = None) -> dict[str, FeatureMap]:
    """The nodes of torchvision's `backbone` that a skip may start from, by name, in the order they run.

    layers: only these; of a module its last map.

    Names are those of `torchvision.models.feature_extraction.get_graph_node_names`. Left out are nodes of the
    classifier, nodes whose output does not grow with the image (pooled, or of a fixed size), and what is no map
    (N, C, h, w), such as tokens and channels-last. The last is the one that is scored without any skip.
    ValueError: an unknown backbone, or one that takes images of one size only; a layer that is unknown or gives no map.
    """
    known = inspected(backbone)
    chosen = known.maps.values() if layers is None else {known.find(name) for name in layers}
    return {name: one for name, one in known.maps.items() if one in chosen}


@dataclass(frozen=True)
class Inspected:
    """What is known of a backbone: names of its nodes, shapes of their tensors, its maps, the least side it takes."""

    backbone: str
    names: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]
    maps: dict[str, FeatureMap]
    minimum: int

    def find(self, layer: object) -> FeatureMap:
        """The map of that name, or the last in the module of that name."""
        if not isinstance(layer, str):
            raise TypeError(complain("layer", "the name of a node, several, or None", layer, "See feature_maps."))
        inside = [name for name in self.names if name == layer or name.startswith(f"{layer}.")]
        usable = [name for name in inside if name in self.maps]
        if usable:
            return self.maps[usable[-1]]
        ends = ", ".join(one.name for one in self.maps.values() if one.ends_block)
        if not inside:
            close = difflib.get_close_matches(layer, self.maps, 3)
            remedy = f"{f'Did you mean {chr(32).join(close[:1])}? ' if close else ''}The ends of blocks: {ends}."
            raise ValueError(complain("layer", f"a node of {self.backbone}", repr(layer), remedy))
        order = list(self.names)
        near = sorted(self.maps, key=lambda name: abs(order.index(name) - order.index(inside[-1])))[:4]
        shape = self.shapes.get(inside[-1])
        came = f"{layer!r}, which gives {'no tensor' if shape is None else shape} for an image of {_SIZES[0]}"
        remedy = f"The nearest that do: {', '.join(near)}. The ends of blocks: {ends}."
        raise ValueError(complain("layer", "a node that gives a map (N, C, h, w) of the image", came, remedy))


@cache
def inspected(backbone: str) -> Inspected:
    """Of torchvision's `backbone`, whatever its weights."""
    traced = _Traced(backbone_network(backbone))
    every = traced.cut(traced.nodes)
    try:
        sizes = [_shapes(every, size) for size in _SIZES]
    except (RuntimeError, AssertionError, ValueError) as error:
        remedy = "Choose one that is made of convolutions throughout, such as resnet18 or convnext_tiny."
        came = f"{backbone}, which takes those of one size ({str(error).splitlines()[0]})"
        raise ValueError(complain("backbone", "a network for images of any size", came, remedy)) from error
    parts = [name for name, part in traced.network.named_children() if any(True for _ in part.parameters())]
    tail = parts[-1] if len(parts) > 1 else ""
    strides = {
        name: stride
        for name in traced.nodes
        if (stride := _stride(*(of.get(name) for of in sizes))) and (not tail or name.split(".")[0] != tail)
    }
    maps = traced.place(strides, sizes[0])
    return Inspected(backbone, tuple(traced.nodes), sizes[0], maps, _least_side(traced.cut(list(maps)[-1:])))


def cut_backbone(backbone: str, weights: Any, names: Sequence[str]) -> fx.GraphModule:
    """torchvision's `backbone` as far as these nodes, which it gives by name."""
    return _Traced(backbone_network(backbone, weights)).cut(names)


class _Traced:
    """A network as a graph, its nodes by the names that torchvision gives them."""

    def __init__(self, network: nn.Module) -> None:
        from torchvision import ops
        from torchvision.models.feature_extraction import NodePathTracer

        leaves = [one for one in vars(ops).values() if isinstance(one, type) and issubclass(one, nn.Module)]
        tracer = NodePathTracer(autowrap_modules=(math, ops), leaf_modules=leaves)
        training, self.network = network.training, network
        self.graph: fx.Graph = tracer.trace(network.eval())  # the same layers train; auxiliary outputs are not traced
        network.train(training)
        named = tracer.node_to_qualname.items()
        self.nodes: dict[str, fx.Node] = {name: node for node, name in named if node.op != "placeholder"}

    def cut(self, names: Iterable[str]) -> fx.GraphModule:
        """The network, layers shared, that gives these nodes by name, without what they do not need."""
        cut, copies = fx.Graph(), dict[fx.Node, fx.Node]()
        cut.graph_copy(self.graph, copies)
        cut.output({name: copies[self.nodes[name]] for name in names})
        module = fx.GraphModule(self.network, cut)
        module.graph.eliminate_dead_code()
        module.delete_all_unused_submodules()
        module.recompile()
        return module

    def place(self, strides: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, FeatureMap]:
        """Where their units lie: through the windows of convolutions and poolings; else the middles of cells."""
        names, ends = {node: name for name, node in self.nodes.items()}, self._block_ends(strides)
        places: dict[fx.Node, tuple[Cells, int]] = {}  # and depth
        found = {}
        for node in self.graph.nodes:
            known = [places[one] for one in node.all_input_nodes if one in places]
            cells, depth = max(known, key=lambda place: place[1], default=(Cells(), 0))
            layers = _layers(node, self.network)
            step, depth = cells_of(layers), depth + sum(isinstance(layer, nn.Conv2d) for layer in layers)
            cells = Cells(cells.stride * step.stride, cells.offset + cells.stride * step.offset)
            if (name := names.get(node, "")) in strides:
                if cells.stride != strides[name]:
                    cells = Cells(strides[name], (strides[name] - 1) / 2)
                found[name] = FeatureMap(name, shapes[name][1], *cells, depth, name in ends)
            places[node] = (cells, depth)
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


def _layers(node: fx.Node, network: nn.Module) -> list[nn.Module]:
    """What a node runs: a layer, those of a sequence, or the pooling that a function is."""
    if node.op == "call_module":
        module = network.get_submodule(str(node.target))
        return list(module.modules()) if isinstance(module, nn.Sequential) else [module]
    if node.target in _POOL_FUNCTIONS:
        given: dict[str, Any] = dict(zip(("input", "kernel_size", "stride", "padding"), node.args)) | dict(node.kwargs)
        return [nn.MaxPool2d(given["kernel_size"], given.get("stride"), given.get("padding", 0))]
    return []


def _pools(node: fx.Node, network: nn.Module) -> bool:
    if node.op == "call_module":
        return isinstance(network.get_submodule(str(node.target)), _POOLS)
    return node.target in _POOL_FUNCTIONS


def _least_side(network: nn.Module) -> int:
    """Of the square images that a network takes."""
    low, side, high = 0, 1, min(_SIZES[0])
    while high - low > 1:
        try:
            fits = all(0 not in shape for shape in _shapes(network, (side, side)).values())
        except RuntimeError:
            fits = False
        low, high = (low, side) if fits else (side, high)
        side = (low + high) // 2
    return high


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


def backbone_network(backbone: str, weights: Any = None) -> nn.Module:
    """The network; without weights of VGG only the convolutions, since its classifier takes a second to draw."""
    chosen = backbone_weights(backbone, weights)
    if chosen is None and backbone.startswith("vgg"):
        return nn.Sequential(OrderedDict(features=vgg_layers(backbone)))
    return classification_network(backbone, chosen)
