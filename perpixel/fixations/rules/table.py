"""One rule per operation, in one mapping, and the two sets of conventions."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn
from torch.fx.node import Node
from torch.nn import functional as F

from perpixel.checks import check_option, complain
from perpixel.fixations.points import Units
from perpixel.fixations.rules import attention, convolution, gates, joins, placement, pooling
from perpixel.fixations.rules.step import Moves, Rule, Step, nothing
from perpixel.fixations.trace.operations import operation


def _first(step: Step) -> list[Node]:
    return step.operands[:1]


_UNIT = Rule(joins.same, nothing, _first, stays=True, keeps_channel=True)
_NORM = Rule(joins.normalise, nothing, _first, keeps_channel=True)
_CONV = Rule(convolution.convolution, work=convolution.work)
_UPCONV = Rule(convolution.transposed_convolution, work=convolution.work)
_LINEAR = Rule(convolution.linear, work=convolution.work)
_MAX, _MEAN = Rule(pooling.max_pool, keeps_channel=True), Rule(pooling.average_pool, keeps_channel=True)
_CELL = Rule(pooling.adaptive_pool, keeps_channel=True, jumps=True, work=pooling.cell_size)
_JOIN = Rule(joins.join, joins.reads_join, joins.follows_join)
_REDUCE = Rule(joins.reduce, joins.reads_reduce, joins.follows_join, jumps=True)
_GATE = Rule(gates.gate, gates.reads_gate, gates.follows_gate)
_CAT = Rule(joins.cat, nothing)
_MATMUL = Rule(attention.matmul, attention.reads_matmul, attention.follows_matmul)
_ATTENTION = Rule(attention.attention, attention.reads_attention, attention.follows_attention)
_POWER, _GLU = Rule(joins.power, follows=_first), Rule(gates.glu, nothing)
_SAMPLE = Rule(placement.grid_sample, placement.reads_sample, placement.follows_sample, keeps_channel=True)
_UNPOOL = Rule(pooling.unpool, pooling.reads_unpool, pooling.follows_unpool, keeps_channel=True)
_STACK, _WHERE = Rule(joins.stack, nothing), Rule(joins.where, joins.reads_where, joins.follows_where)
_PLACE = Rule(placement.rearrange, nothing, placement.follows_rearrange)
_RESIZE = Rule(placement.resize, placement.reads_resize, keeps_channel=True)

# Operation -> rule. An operation is a layer's class (its subclasses count too), a function, or a bare name, which
# stands for the method and for any function of that name.
RULES: Mapping[Any, Rule] = {
    **dict.fromkeys((nn.Conv2d, nn.Conv1d, "conv2d", "conv1d"), _CONV),
    **dict.fromkeys((nn.ConvTranspose2d, nn.ConvTranspose1d, "conv_transpose2d", "conv_transpose1d"), _UPCONV),
    **dict.fromkeys((nn.Linear, F.linear), _LINEAR),
    **dict.fromkeys((nn.MaxPool2d, nn.MaxPool1d, "max_pool2d", "max_pool1d"), _MAX),
    **dict.fromkeys(("max_pool2d_with_indices", "max_pool1d_with_indices"), _MAX),
    **dict.fromkeys((nn.AvgPool2d, nn.AvgPool1d, "avg_pool2d", "avg_pool1d"), _MEAN),
    **dict.fromkeys((nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool1d), _CELL),
    **dict.fromkeys(("adaptive_avg_pool2d", "adaptive_avg_pool1d"), _CELL),
    **dict.fromkeys(("adaptive_max_pool2d", "adaptive_max_pool1d"), _CELL),
    **dict.fromkeys((nn.MaxUnpool2d, nn.MaxUnpool1d, "max_unpool2d", "max_unpool1d"), _UNPOOL),
    "grid_sample": _SAMPLE,
    **dict.fromkeys(("sum", "mean", "amax", "amin"), _REDUCE),
    **dict.fromkeys((nn.BatchNorm2d, nn.SyncBatchNorm, nn.InstanceNorm2d, nn.GroupNorm, nn.LayerNorm), _NORM),
    **dict.fromkeys((nn.BatchNorm1d, nn.InstanceNorm1d, nn.RMSNorm), _NORM),
    **dict.fromkeys(("batch_norm", "instance_norm", "group_norm", "layer_norm", "rms_norm"), _NORM),
    **dict.fromkeys(("pow", "square", "abs"), _POWER),
    **dict.fromkeys((nn.GLU, "glu"), _GLU),
    **dict.fromkeys((nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU), _UNIT),
    **dict.fromkeys((nn.Mish, nn.Softplus, nn.Tanh, nn.Sigmoid, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid), _UNIT),
    **dict.fromkeys((nn.Softmax, nn.LogSoftmax, nn.Softmax2d, nn.LogSigmoid, nn.LocalResponseNorm, nn.Identity), _UNIT),
    **dict.fromkeys((nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout), _UNIT),
    **dict.fromkeys(("relu", "relu6", "leaky_relu", "prelu", "elu", "selu", "celu", "gelu", "silu", "mish"), _UNIT),
    **dict.fromkeys(("softplus", "tanh", "sigmoid", "hardtanh", "hardswish", "hardsigmoid", "softmax"), _UNIT),
    **dict.fromkeys(("log_softmax", "logsigmoid", "local_response_norm", "dropout", "dropout2d", "clamp"), _UNIT),
    **dict.fromkeys(("contiguous", "clone", "detach", "to", "float", "double", "half", "type_as"), _UNIT),
    **dict.fromkeys(("as_tensor", "normalize", "sqrt", "exp", "log", "log1p", "expm1", "softsign"), _UNIT),
    **dict.fromkeys(("stochastic_depth", "drop_path", "alpha_dropout", "feature_dropout"), _UNIT),
    **dict.fromkeys(("add", "sub", "neg", "maximum", "minimum", "max", "min"), _JOIN),
    **dict.fromkeys(("cat", "concat", "concatenate"), _CAT),
    **dict.fromkeys(("matmul", "__matmul__", "bmm", "mm", "einsum"), _MATMUL),
    F.scaled_dot_product_attention: _ATTENTION,
    "stack": _STACK,
    **dict.fromkeys(("where", "masked_fill"), _WHERE),
    **dict.fromkeys(("mul", "multiply", "div", "truediv", "true_divide"), _GATE),
    **dict.fromkeys((nn.Upsample, nn.UpsamplingBilinear2d, nn.UpsamplingNearest2d, F.interpolate), _RESIZE),
    **dict.fromkeys(
        (nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle, nn.Fold, nn.Unfold), _PLACE
    ),
    **dict.fromkeys((nn.ZeroPad2d, nn.ConstantPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d), _PLACE),
    **dict.fromkeys(("getitem", "view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "permute"), _PLACE),
    **dict.fromkeys(("transpose", "movedim", "swapaxes", "narrow", "select", "flip", "roll", "pad", "expand"), _PLACE),
    **dict.fromkeys(
        (
            "expand_as",
            "fold",
            "unfold",
            "view_as",
            "reshape_as",
            "pixel_shuffle",
            "pixel_unshuffle",
            "channel_shuffle",
            "repeat",
            "repeat_interleave",
            "tile",
            "broadcast_to",
            "index_select",
            "gather",
            "take_along_dim",
            "swapdims",
            "moveaxis",
            "t",
            "ravel",
            "rot90",
            "getattr",
        ),
        _PLACE,
    ),
}


@dataclass(frozen=True)
class FixationRules:
    """The conventions points are followed by.

    base: "modern", or "seg-unravel", the published behaviour (Ganeshan 2017, chapter 2, and its code).
    select: how "modern" ranks the inputs of a convolution: "channel" takes the channels with the largest contribution
        summed over the kernel, and the best tap in each; "element" takes single contributions (equation 2.3).
    attention: where points of attention's output go: "value", to the token with the largest probability x value, head
        by head; "skip", to the values of their own token, where there are as many as queries. Either way the
        probabilities are taken as given: the queries and keys that made them, and a mask, a position or a grid to
        sample at made of the images, are not followed. So a point says where what it rests on came from, not why it
        was looked for there. What weighs in a product is what comes out of a softmax; without one, out of a sigmoid;
        without that, out of another activation (linear attention, gated units); else the smaller one (filters made of
        the images). If they are alike: an error.
    extra: operation -> rule, looked up first. An operation is a layer's class, a function, or the name of a method or
        function. A rule is a function (units, step) -> pairs of an operand and the units on it, or a `Rule`.

    TypeError or ValueError for anything else.
    """

    base: Literal["modern", "seg-unravel"] = "modern"
    select: Literal["channel", "element"] = "channel"
    extra: Mapping[Any, Rule | Callable[[Units, Step], Moves]] = field(default_factory=dict)
    attention: Literal["value", "skip"] = "value"

    def __post_init__(self) -> None:
        check_option("base", self.base, ("modern", "seg-unravel"))
        check_option("select", self.select, ("channel", "element"))
        check_option("attention", self.attention, ("value", "skip"))
        if self.base == "seg-unravel" and self.select != "channel":
            raise ValueError(complain("select", "'channel' for base='seg-unravel'", self.select, "Use base='modern'."))
        if not isinstance(self.extra, Mapping):
            raise TypeError(
                complain("extra", "a mapping from operation to rule", self.extra, "Pass {operation: rule}.")
            )
        for op, rule in self.extra.items():
            if not callable(op) and not isinstance(op, str):
                raise TypeError(complain("extra", "a layer's class, a function or a name as key", op, "Pass one."))
            if not isinstance(rule, Rule) and not callable(rule):
                raise TypeError(complain(f"extra[{op!r}]", "a function (units, step)", rule, "Pass one."))

    @property
    def leaves(self) -> tuple[type[nn.Module], ...]:
        """Layer classes that have a rule of the user's own, so that tracing does not look into them."""
        return tuple(op for op in self.extra if isinstance(op, type) and issubclass(op, nn.Module))

    def rule(self, node: Node, layer: nn.Module | None) -> Rule | None:
        """The rule for a node of the graph, or None."""
        for op in _names(node, layer):
            for rules in (self.extra, RULES):
                if op in rules:
                    found = rules[op]
                    return found if isinstance(found, Rule) else Rule(found)
        return None


def fixation_rules(rules: object) -> FixationRules:
    """`rules` itself, or the set of that name."""
    if isinstance(rules, FixationRules):
        return rules
    if not isinstance(rules, str):
        raise TypeError(complain("rules", "'modern', 'seg-unravel' or a FixationRules", rules, "Pass one of these."))
    check_option("rules", rules, ("modern", "seg-unravel"))
    return FixationRules(base=rules)  # type: ignore[arg-type]


def _names(node: Node, layer: nn.Module | None) -> Iterable[Any]:
    if layer is not None:
        return type(layer).__mro__
    return (node.target, operation(node)) if node.op in ("call_function", "call_method") else ()
