"""Hooks that record the last forward pass: what the classifier layer was given, and the images; nothing else."""

import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from perpixel.attach.head import LayerRecord, candidate_heads, comes_from, named_layer, pick_head
from perpixel.borrow import unwrap
from perpixel.checks import complain, describe
from perpixel.outputs import logits_at, maps_in

_NAME_ANOTHER = "Name the classifier layer itself: attach(model, ..., head='<name>')."
_RUN_WHOLE = "Run the model whole, on one device per process."


class ForwardPass(NamedTuple):
    """What the terms ask of the pass that gave the logits; None where the recorder does not record it."""

    logits: Tensor  # (N, C, H, W) as the model returned them
    images: Tensor | None = None  # (N, channels, H, W)
    features: Tensor | None = None  # (N, D, h, w), the head's input
    grid: Tensor | None = None  # (N, C, h, w), the head's output, at the features' size


class Recorder:
    """Holds the head's input and output, and the images, of the last forward pass: until `finish`, or the next one.

    head: the layer's dotted name, or None: then the first pass keeps what every candidate layer gave, the first
    `last_pass` picks the head, and the other layers are let go. features, images: which of the two to record. A copy of
    a recorder (deepcopy, pickle) records the copy of its model; a copy of the model alone is recorded by nobody.
    """

    def __init__(self, model: nn.Module, head: str | None, *, features: bool, images: bool) -> None:
        self.model = unwrap(model)
        self.head = head
        self.layers = candidate_heads(model) if head is None else {head: named_layer(model, head)}
        if not features:
            self.layers = {}
        self.features, self.images = features, images
        self.is_open = False
        self._start()

    def _start(self) -> None:
        self.hooks: list[_Hook] = []
        self.records: dict[str, LayerRecord] = {}
        self.model_input: Tensor | None = None
        self.model_output: object = None
        self.used = False
        if self.is_open:
            self.open()

    def open(self) -> None:
        """Hook the model and the layers; on an error no hook stays."""
        self.is_open = True
        try:
            self._hook(self.model, "", before=True)
            self._hook(self.model, "")
            for name, layer in self.layers.items():
                self._hook(layer, name)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Take every hook off and let go of every tensor; may be called again."""
        self.is_open = False
        self.forget()
        while self.hooks:
            self.hooks.pop().remove()

    def forget(self) -> None:
        """Let go of the last pass."""
        self.records = {}
        self.model_input = None
        self.model_output = None

    def finish(self) -> None:
        """Let go of the last pass, since it has been used."""
        self.forget()
        self.used = True

    def last_pass(self, logits: Tensor) -> ForwardPass:
        """The last forward pass, which must be the one that gave `logits` (N, C, H, W).

        RuntimeError if there was no such pass, `logits` came from another, no images went into it, or the head did not
        run in it; ValueError if the head is not fit to be one, or cannot be found (the recorder is closed then).
        """
        if (self.images and self.model_input is None) or (self.features and not self.records):
            raise RuntimeError(self._what_is_missing())
        returned = self._returned(logits)
        images = self.model_input
        if images is not None and images.shape[0] != logits.shape[0]:
            came = f"{images.shape[0]} images for the logits of {logits.shape[0]}"
            raise RuntimeError(complain("model", "one image per output", came, _RUN_WHOLE))
        if not self.features:
            return ForwardPass(returned, images)
        if self.head is None:
            records, layers = self.records, self.layers
            self.close()
            self.head = pick_head(layers, records, returned)
            self.layers, self.records = {self.head: layers[self.head]}, records
            self.open()
        record = self.records[self.head]
        features, grid = _one_map("input", record.inputs), _one_map("output", (record.output,))
        if grid.shape[1] != logits.shape[1]:
            came = f"{grid.shape[1]} from {self.head!r}"
            raise ValueError(complain("head", f"a layer with {logits.shape[1]} output channels", came, _NAME_ANOTHER))
        if features.shape[0] != logits.shape[0]:
            came = f"{features.shape[0]} feature maps for {logits.shape[0]} images"
            raise RuntimeError(complain("head", "one feature map per image", came, _RUN_WHOLE))
        return ForwardPass(returned, images, features, logits_at(grid, features.shape[-2:]))

    def _returned(self, logits: Tensor) -> Tensor:
        """The map returned by the last forward pass that is `logits`, or that `logits` comes from."""
        returned = maps_in(self.model_output)
        for source in sorted(returned, key=lambda source: source is not logits):
            if comes_from(source, logits):
                return source
        recorded = maps_in([record.output for record in self.records.values()])
        if (self.head or not returned) and any(comes_from(source, logits) for source in recorded):
            return logits
        came = f"logits {tuple(logits.shape)} that did not come from it"
        remedy = "Call the criterion on each output before the next forward pass of the same model."
        raise RuntimeError(complain("output", "what the model's last forward pass returned", came, remedy))

    def _what_is_missing(self) -> str:
        if self.model_output is None:
            since = "the last call of the criterion" if self.used else "attach"
            remedy = "Call the criterion once after each forward pass, with gradients or without."
            return complain("criterion", f"a forward pass of the attached model since {since}", "none", remedy)
        if self.images and self.model_input is None:
            remedy = "Call model(images): one batch of images, (N, channels, H, W), as the first such argument."
            return complain("model", "images in its last forward pass", "none", remedy)
        layer = f"head {self.head!r}" if self.head else "classifier layer"
        remedy = (
            "Name a layer that runs in every forward pass. A model that had run under torch.compile before attach "
            "does not see new hooks: call torch.compiler.reset() after attach."
        )
        return complain(layer, "a run in the last forward pass", "none", remedy)

    def _hook(self, layer: nn.Module, name: str, before: bool = False) -> None:
        hook = _Hook(self, name, layer, before)
        self.hooks.append(hook)
        if before:
            hook.handle = layer.register_forward_pre_hook(hook, with_kwargs=self.images)
        else:
            hook.handle = layer.register_forward_hook(hook)

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("model", "head", "layers", "features", "images", "is_open")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()


class _Hook:
    """A forward (pre-)hook of a recorder. A deepcopy of the model goes without; an unpickled one has it cut off."""

    only_records = True  # `perpixel.borrow` takes such hooks off meanwhile

    def __init__(self, recorder: Recorder, name: str, layer: nn.Module, before: bool) -> None:
        self.recorder: Recorder | None = recorder
        self.name, self.layer, self.before = name, layer, before
        self.handle: RemovableHandle | None = None

    def __call__(self, layer: nn.Module, inputs: tuple[object, ...], more: object = None) -> None:
        """`more`: before the layer runs its keyword inputs, after it its output."""
        recorder = self.recorder  # None after `remove`: makes torch.compile notice as well
        if recorder is None or _in_backward():
            return
        if self.before:
            recorder.forget()
            recorder.used = False
            if recorder.images:
                recorder.model_input = next(iter(maps_in((inputs, more))), None)
        elif self.name:
            recorder.records[self.name] = LayerRecord(inputs, more)
        else:
            recorder.model_output = more

    def remove(self) -> None:
        self.recorder = None
        if self.handle is not None:
            self.handle.remove()

    def __reduce__(self) -> tuple[Any, ...]:
        return _cut_off, (self.handle.id if self.handle else 0,)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        hooks = memo.get(id(self.handle.hooks_dict_ref())) if self.handle else None
        if self.handle and hooks is not None:  # the copied layer's dict, being filled; memo goes at the end
            end: set[None] = set()
            memo[id(end)] = end
            weakref.finalize(end, _take_off, self.handle.id, hooks, memo.get(id(self.layer)))
        return _nothing


def _nothing(*_: object) -> None:
    """What stands in the place of a hook in a copied or loaded model."""


def _cut_off(number: int) -> Any:
    """A loaded hook; the number it is registered by is not given to another."""
    RemovableHandle.next_id = max(RemovableHandle.next_id, number + 1)
    return _nothing


def _take_off(number: int, hooks: dict[int, Any], layer: nn.Module | None) -> None:
    hooks.pop(number, None)
    if layer is not None:
        layer._forward_pre_hooks_with_kwargs.pop(number, None)


def _in_backward() -> bool:
    """Whether a checkpoint's recomputation, not a forward pass of its own, is running the model."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def _one_map(what: str, values: tuple[object, ...]) -> Tensor:
    tensors = [value for value in values if isinstance(value, Tensor)]
    if len(tensors) == 1 and tensors[0].ndim == 4 and tensors[0].is_floating_point():
        return tensors[0]
    came = ", ".join(describe(value) for value in values) or "no positional argument"
    raise ValueError(complain("head", f"a layer whose {what} is one 4-D floating-point tensor", came, _NAME_ANOTHER))
