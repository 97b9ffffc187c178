"""Hooks that record the last forward pass: what the classifier layer was given, and the images; nothing else."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from perpixel.attach.alignment import Call, Output, check_alignment, comes_from, computed_from
from perpixel.attach.head import LayerRecord, candidate_heads, named_layer, pick_head
from perpixel.borrow import unwrap
from perpixel.checks import complain, describe
from perpixel.outputs import logits_at, maps_in

_NAME_ANOTHER = "Name the classifier layer itself: attach(model, ..., head='<name>')."
_RUN_WHOLE = "Run the model whole, on one device per process."
_SIZES = 1024  # remembered as measured, at most


class ForwardPass(NamedTuple):
    """What the terms ask of the pass that gave the logits; None where the recorder does not record it."""

    logits: Tensor  # (N, C, H, W) as the model returned them
    images: Tensor | None = None  # (N, channels, H, W)
    size: torch.Size | None = None  # that of the images, of whatever dtype
    features: Tensor | None = None  # (N, D, h, w), the head's input
    grid: Tensor | None = None  # (N, C, h, w), the head's output, at the features' size


class Recorder:
    """Holds the call, the output and the head's part of the last forward pass: until `finish`, or the next one.

    head: the layer's dotted name, or None: then the first `last_pass` picks the head, from what every candidate layer
    gave in that pass with as many images and channels as an output has. features, images: which of the two to give. A
    copy of a recorder (deepcopy, pickle) records the copy of its model; a copy of the model alone nobody records.
    """

    def __init__(self, model: nn.Module, head: str | None, *, features: bool, images: bool) -> None:
        self.model = unwrap(model)
        self.head = head
        self.layers = candidate_heads(model) if head is None else {head: named_layer(model, head)}
        if not features:
            self.layers = {}
        self.features, self.images = features, images
        self.hooks: list[_Hook] = []
        self.kept = _Kept()
        self.aligned: set[tuple[object, ...]] = set()

    @property
    def is_open(self) -> bool:
        """Whether passes are recorded."""
        return self.kept.recording

    def open(self) -> None:
        """Hook the model and the layers; on an error no hook stays."""
        self.kept.recording, self.kept.searching = True, self.head is None
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
        self.kept.recording = False
        self.kept.forget()
        while self.hooks:
            self.hooks.pop().remove()

    def finish(self) -> None:
        """Let go of the last pass, since it has been used."""
        self.kept.forget()
        self.kept.used = True

    def last_pass(self, logits: Tensor) -> ForwardPass:
        """The last forward pass, which must be the one that gave `logits` (N, C, H, W), as they are or resized whole.

        RuntimeError if there was no such pass, `logits` came from another or are a part of its output, no images went
        into it, or the head did not run in it; ValueError if the head is not fit to be one, its grid covers another
        extent than the output, or it cannot be found (the recorder is closed then).
        """
        images = next(iter(maps_in(self.kept.call)), None)
        if (self.images and images is None) or (self.features and not self.kept.records):
            raise RuntimeError(self._what_is_missing())
        returned, place = self._returned(logits)
        size = self._image_size()
        if self.images and images is not None and images.shape[0] != logits.shape[0]:
            came = f"{images.shape[0]} images for the logits of {logits.shape[0]}"
            raise RuntimeError(complain("model", "one image per output", came, _RUN_WHOLE))
        if self.images and images is not None and self.kept.version not in (None, _version([images])):
            remedy = "Neither the model nor the loop may change them in place before the criterion is called."
            raise RuntimeError(complain("images", "those of the last forward pass", "images changed since", remedy))
        if not self.features:
            return ForwardPass(returned, images, size)
        record = self._record_of_head(returned, place)
        features, grid = _one_map("input", record.inputs), _one_map("output", (record.output,))
        if grid.shape[1] != logits.shape[1]:
            came = f"{grid.shape[1]} from {self.head!r}"
            raise ValueError(complain("head", f"a layer with {logits.shape[1]} output channels", came, _NAME_ANOTHER))
        if features.shape[0] != logits.shape[0]:
            came = f"{features.shape[0]} feature maps for {logits.shape[0]} images"
            raise RuntimeError(complain("head", "one feature map per image", came, _RUN_WHOLE))
        self._check_alignment(record.inputs, grid, returned, place)
        return ForwardPass(returned, images, size, features, logits_at(grid, features.shape[-2:]))

    def sizes(self, logits: Tensor) -> ForwardPass | None:
        """The images' size in the last pass, beside `logits`, whatever was made of its output; None without a pass."""
        return None if self.kept.call is None else ForwardPass(logits, size=self._image_size())

    def _image_size(self) -> torch.Size | None:
        return next((map.shape[-2:] for map in maps_in(self.kept.call, floating=False)), None)

    def _returned(self, logits: Tensor) -> tuple[Tensor, int | None]:
        """The map returned by the last forward pass that is `logits`, or is that resized; its place in the output.

        Where the model's layers were called one by one, `logits` themselves and None.
        """
        returned = maps_in(self.kept.output)
        for place in sorted(range(len(returned)), key=lambda place: returned[place] is not logits):
            if comes_from(returned[place], logits):
                return returned[place], place
        records = self.kept.records_outside or self.kept.records
        recorded = maps_in([record.output for record in records.values()])
        if (self.head or not returned) and any(comes_from(source, logits) for source in recorded):
            return logits, None
        if self.kept.output is None:
            raise RuntimeError(self._what_is_missing())
        shapes = ", ".join(str(tuple(map.shape)) for map in returned) or "no map"
        came = f"logits {tuple(logits.shape)} that are neither its output, {shapes}, nor all of that resized"
        remedy = (
            "Call the criterion on each output before the next forward pass of the same model. Do not crop, flip or "
            "select: give the output as it is, pad the labels with ignore_index, or attach the module that changes it."
        )
        raise RuntimeError(complain("output", "what the model's last forward pass returned", came, remedy))

    def _record_of_head(self, returned: Tensor, place: int | None) -> LayerRecord:
        """What the head was given and gave; found first, where it is not known."""
        records = self.kept.records if place is not None else self.kept.records_outside or self.kept.records
        if self.head is None:
            if returned.numel() == 0:
                remedy = "Name the classifier layer: attach(model, ..., head='<name>')."
                raise RuntimeError(complain("head", "a batch with images to find it in", "an empty one", remedy))
            try:
                self.head = pick_head(self.layers, records, returned)
            except ValueError:
                self.close()
                raise
            self.layers = {self.head: self.layers[self.head]}
            self.kept.searching = False
            for hook in self.hooks:
                if hook.name not in ("", self.head):
                    hook.remove()
            self.hooks = [hook for hook in self.hooks if hook.kept is not None]
        if self.head not in records:
            raise RuntimeError(self._what_is_missing())
        return records[self.head]

    def _check_alignment(self, inputs: tuple[object, ...], grid: Tensor, returned: Tensor, place: int | None) -> None:
        """ValueError if the head did not give `returned`, or (once for every size) covers another extent than it."""
        if computed_from(grid, returned) is False:
            remedy = "Name the layer whose last run gives the logits."
            came = f"the output of {self.head!r}, which has no part in them"
            raise ValueError(complain("head", "the layer that the logits are computed from", came, remedy))
        if place is None or self.kept.call is None or grid.numel() == 0:
            return
        size = tuple(tuple(map.shape[-2:]) for map in maps_in(self.kept.call, floating=False))
        key = (self.head, place, size, _one_map("input", inputs).shape[-2:], grid.shape[-2:], returned.shape[-2:])
        if key not in self.aligned:
            output = Output(grid, returned, place)
            check_alignment(self.model, self.layers[str(self.head)], self.kept.call, inputs, output)
            if len(self.aligned) >= _SIZES:
                self.aligned.clear()
            self.aligned.add(key)

    def _what_is_missing(self) -> str:
        if self.kept.output is None:
            since = "the last call of the criterion" if self.kept.used else "attach"
            remedy = "Call the criterion once after each forward pass, with gradients or without."
            return complain("criterion", f"a forward pass of the attached model since {since}", "none", remedy)
        if self.images and not maps_in(self.kept.call):
            remedy = "Call model(images): one batch of images, (N, channels, H, W), as the first such argument."
            return complain("model", "images in its last forward pass", "none", remedy)
        layer = f"head {self.head!r}" if self.head else "classifier layer"
        remedy = (
            "Name a layer that runs in every forward pass. A model that had run under torch.compile before attach "
            "does not see new hooks: call torch.compiler.reset() after attach."
        )
        return complain(layer, "a run in the last forward pass", "none", remedy)

    def _hook(self, layer: nn.Module, name: str, before: bool = False) -> None:
        hook = _Hook(self.kept, name, before)
        self.hooks.append(hook)
        if before:  # first of all, so that another's hook may change the images
            hook.handle = layer.register_forward_pre_hook(hook, with_kwargs=True, prepend=True)
        else:
            hook.handle = layer.register_forward_hook(hook)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "is_open": self.is_open}

    def __setstate__(self, state: dict[str, Any]) -> None:
        is_open = state.pop("is_open")
        self.__dict__.update(state)
        self.kept.recording, self.kept.searching = is_open, self.head is None


class _Kept:
    """What the hooks keep of the last forward pass. A copy keeps nothing, unless its recorder is copied as well.

    recording: whether hooks keep anything. searching: whether the head is still to be found.
    """

    def __init__(self) -> None:
        self.recording = self.searching = self.used = False
        self.forget()

    def forget(self) -> None:
        """Let go of the last pass."""
        self.records: dict[str, LayerRecord] = {}
        self.records_outside: dict[str, LayerRecord] = {}  # of layers called since the pass, not by the model
        self.call: Call | None = None
        self.version: int | None = None  # of the images in the call
        self.output: object = None

    def let_go(self) -> None:
        """Of all but the shape of what has not as many images and channels as any map of the output."""
        wanted = [map.shape[:2] for map in maps_in(self.output)]
        for name, record in self.records.items() if wanted else ():
            if isinstance(record.output, Tensor) and record.output.shape[:2] not in wanted:
                self.records[name] = LayerRecord((), torch.empty_like(record.output, device="meta"))

    def __reduce__(self) -> tuple[Any, ...]:
        return _Kept, ()


class _Hook:
    """A forward (pre-)hook of a recorder. It knows nothing of the recorder, so that a copy of the model copies none."""

    only_records = True  # `perpixel.borrow` takes such hooks off meanwhile

    def __init__(self, kept: _Kept, name: str, before: bool) -> None:
        self.kept: _Kept | None = kept
        self.name, self.before = name, before
        self.handle: RemovableHandle | None = None

    def __call__(self, layer: nn.Module, inputs: tuple[object, ...], more: Any = None) -> None:
        """`more`: before the layer runs its keyword inputs, after it its output."""
        kept = self.kept  # None after `remove`: makes torch.compile notice as well
        if kept is None or not kept.recording or _is_no_pass():
            return
        if self.before:
            kept.forget()
            kept.used = False
            kept.call = (inputs, more)
            kept.version = _version(maps_in(kept.call))
        elif self.name:
            records = kept.records if kept.output is None else kept.records_outside
            records[self.name] = LayerRecord(inputs, more)
        else:
            kept.output = more
            if kept.searching and not torch.compiler.is_compiling():
                kept.let_go()

    def remove(self) -> None:
        self.kept = None
        if self.handle is not None:
            self.handle.remove()

    @property
    def __name__(self) -> str:
        remedy = "Call criterion.remove() first, before the model is copied, too; attach again afterwards."
        raise AttributeError(complain("model", "no attached criterion in torch.jit.script", "hooks of one", remedy))


_is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)  # torch 2.6 has none


def _is_no_pass() -> bool:
    """Whether a checkpoint's recomputation, a trace or an export, not a pass of its own, is running the model."""
    if torch.compiler.is_compiling():
        return _is_exporting()
    return torch._C._current_graph_task_id() != -1 or torch.jit.is_tracing()


def _version(images: list[Tensor]) -> int | None:
    """How often the first of them was changed in place; None where nobody counts."""
    if not images or torch.compiler.is_compiling() or images[0].is_inference():
        return None
    return images[0]._version


def _one_map(what: str, values: tuple[object, ...]) -> Tensor:
    tensors = [value for value in values if isinstance(value, Tensor)]
    if len(tensors) == 1 and tensors[0].ndim == 4 and tensors[0].is_floating_point():
        return tensors[0]
    came = ", ".join(describe(value) for value in values) or "no positional argument"
    raise ValueError(complain("head", f"a layer whose {what} is one 4-D floating-point tensor", came, _NAME_ANOTHER))
