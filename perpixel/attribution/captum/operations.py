"""Which operations a network runs, in which layers: what decides whether a method's rules hold for it."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from perpixel.borrow import hooked
from perpixel.outputs import dense_logits

# ATen operations, without the underscores around their names: values moved about; linear; a product of two arguments
_MOVES = (
    "alias as_strided cat channel_shuffle chunk clone col2im constant_pad_nd contiguous copy cumsum detach "
    "diagonal expand expand_as fill flatten flip fold gather im2col index index_put index_select masked_fill "
    "movedim narrow native_channel_shuffle permute pixel_shuffle pixel_unshuffle reflection_pad2d repeat "
    "replication_pad2d reshape reshape_alias roll scatter select select_scatter slice slice_scatter split "
    "split_with_sizes squeeze stack t to to_copy transpose unbind unfold unsafe_view unsqueeze view"
)
_LINEAR = (
    "adaptive_avg_pool2d add avg_pool2d batch_norm_with_update_functional cudnn_batch_norm "
    "mean miopen_batch_norm mkldnn_adaptive_avg_pool2d native_batch_norm native_batch_norm_legit "
    "native_batch_norm_legit_no_training native_dropout neg rsub sub sum upsample_bicubic2d upsample_bicubic2d_aa "
    "upsample_bilinear2d upsample_bilinear2d_aa upsample_nearest2d upsample_nearest_exact2d"
)
_BILINEAR = (
    "addbmm addmm baddbmm bmm convolution cudnn_convolution div linear matmul miopen_convolution mkldnn_convolution mm "
    "mul"
)
MOVES, LINEAR, BILINEAR = (frozenset(names.split()) for names in (_MOVES, _LINEAR, _BILINEAR))
_QUIET = frozenset(("empty", "empty_like", "ones_like", "zeros_like", "new_zeros", "new_empty", "argmax"))


@dataclass(frozen=True, eq=False)
class Operation:
    """One run of an operation, inside the layer `name` of the network ('' is the network itself)."""

    kind: str
    name: str
    layer: nn.Module


@dataclass
class Operations:
    """A forward pass' operations that depend on the image.

    nonlinear: neither linear nor a product. products: of two things that both depend on the image. sums: likewise.
    runs: how often each leaf layer ran. channels: of the logits.
    """

    nonlinear: list[Operation] = field(default_factory=list)
    products: list[Operation] = field(default_factory=list)
    sums: list[Operation] = field(default_factory=list)
    runs: Counter[nn.Module] = field(default_factory=Counter)
    channels: int = 0


@torch.no_grad()
def operations_of(model: nn.Module, images: Tensor) -> Operations:
    """What `model` runs for the first of `images`; call it with the model in evaluation mode."""
    recorder = _Recorder()
    image = images[:1].clone()
    image._follows_image = True  # type: ignore[attr-defined]
    with hooked(dict(model.named_modules()), before=recorder.enter, after=recorder.leave), recorder:
        recorder.found.channels = dense_logits(model(image)).shape[1]
    return recorder.found


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.found = Operations()
        self.inside: list[tuple[str, nn.Module]] = []

    def enter(self, name: str, layer: nn.Module, _: object) -> None:
        self.inside.append((name, layer))
        if not layer._modules:
            self.found.runs[layer] += 1

    def leave(self, *_: object) -> None:
        self.inside.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        followed = [t for t in tree_leaves((args, kwargs)) if getattr(t, "_follows_image", False)]
        result = func(*args, **kwargs)
        if followed:
            outputs = [t for t in tree_leaves(result) if isinstance(t, Tensor) and t.is_floating_point()]
            for output in outputs:
                output._follows_image = True  # type: ignore[attr-defined]
            if outputs and not func.is_view:
                self._note(func._schema.name.split("::")[-1].strip("_"), args, len(followed))
        return result

    def _note(self, operation: str, args: Any, followed: int) -> None:
        if operation in MOVES or operation in _QUIET:
            return
        run = Operation(operation, *(self.inside[-1] if self.inside else ("", nn.Identity())))
        if operation in BILINEAR:
            divided = operation == "div" and getattr(args[1], "_follows_image", False)
            if followed > 1 or divided:
                self.found.products.append(run)
        elif operation not in LINEAR:
            self.found.nonlinear.append(run)
        elif followed > 1 and operation in ("add", "sub", "rsub"):
            self.found.sums.append(run)
