"""What belongs to an output: the pass that gave it, its images, what the classifier layer was given; nothing else."""

from itertools import pairwise
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from perpixel.attach.alignment import Output, check_alignment, comes_from, computed_from, is_whole_in_graph
from perpixel.attach.head import (
    LayerRecord,
    candidate_heads,
    declared_cells,
    declared_head,
    features_and_grid,
    named_layer,
    pick_head,
)
from perpixel.attach.hooks import PASSES, Hook, Kept, Pass, version_of
from perpixel.borrow import unwrap
from perpixel.checks import complain
from perpixel.outputs import logits_at, maps_in

_SIZES = 1024  # remembered as measured, at most
_COMPILED = (
    "A model run under torch.compile before attach does not see new hooks: call torch.compiler.reset() after it."
)


class ForwardPass(NamedTuple):
    """What the terms ask of the pass that gave the logits; None where the recorder does not record it."""

    logits: Tensor  # (N, C, H, W) as the model returned them
    images: Tensor | None = None  # (N, channels, H, W)
    size: torch.Size | None = None  # that of the images, of whatever dtype
    features: Tensor | None = None  # (N, D, h, w), the head's input
    grid: Tensor | None = None  # (N, C, h, w), the head's output, at the features' size
    source: Pass | None = None  # None if it is not known which pass gave the logits
    cells: tuple[float, float] | None = None  # stride and offset of the grid, where the model declares them


class Recorder:
    """Says which forward pass an output is of, and gives what the terms ask of it.

    head: the layer's dotted name, or None: then the model's own declaration, or the first output picks the head, from
    what every candidate layer gave with as many images and channels. features, images: which of the two to give. A copy
    of a recorder (deepcopy, pickle) records the copy of its model; a copy of the model alone nobody records.
    """

    def __init__(self, model: nn.Module, head: str | None, *, features: bool, images: bool) -> None:
        self.model = unwrap(model)
        self.head = declared_head(model) if head is None and features else head
        self.cells = None if self.head is None else declared_cells(self.model, self.head)
        self.layers = candidate_heads(model) if self.head is None else {self.head: named_layer(model, self.head)}
        if not features:
            self.layers = {}
        self.features, self.images = features, images
        self.hooks: list[Hook] = []
        self.kept = Kept()
        self.aligned: set[tuple[object, ...]] = set()

    @property
    def is_open(self) -> bool:
        """Whether passes are recorded."""
        return self.kept.recording

    def open(self, wrapper: nn.Module) -> None:
        """Hook the model, the layers and what wraps it, if anything does; on an error no hook stays."""
        self.kept.recording, self.kept.searching = True, self.head is None
        try:
            self._hook(self.model, "", before=True)
            for layer in {self.model, wrapper}:  # a wrapper may give the output on as another tensor
                self._hook(layer, "")
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

    def pass_of(self, logits: Tensor) -> ForwardPass:
        """The forward pass that gave `logits` (N, C, H, W), as they are or resized whole.

        RuntimeError if there is no such pass, or none any more, `logits` are a part of its output, no images went into
        it, or the head did not run in it; ValueError if the head is not fit to be one, its grid covers another extent
        than the output, or it cannot be found (the recorder is closed then).
        """
        last = self.kept.settle()  # held until the end of this call
        one, returned = self._find(logits, last)
        whole = returned is not None
        returned = logits if returned is None else returned
        self.kept.called = True
        images = next(iter(maps_in(one.call)), None)
        if self.images and images is None:
            remedy = "Call model(images): one batch of images, (N, channels, H, W), as the first such argument."
            raise RuntimeError(complain("model", "images in the forward pass of the output", "none", remedy))
        if self.images and images is not None and images.shape[0] != logits.shape[0]:
            came = f"{images.shape[0]} images for the logits of {logits.shape[0]}"
            raise RuntimeError(complain("model", "one image per output", came, "Run the model whole, on one device."))
        if self.images and images is not None and one.version not in (None, version_of([images])):
            remedy = "Neither the model nor the loop may change them in place before the criterion is called."
            raise RuntimeError(complain("images", "those of the last forward pass", "images changed since", remedy))
        size = next(iter(one.sizes()), None)
        if not self.features:
            return ForwardPass(returned, images, size, source=one)
        record = self._record_of_head(one, returned, whole)
        layer = self.layers[str(self.head)]
        features, grid = features_and_grid(str(self.head), layer, record, returned)
        if computed_from(cast(Tensor, record.output), returned) is False:
            remedy = "Name the layer whose last run gives the logits."
            came = f"the output of {self.head!r}, which has no part in them"
            raise ValueError(complain("head", "the layer that the logits are computed from", came, remedy))
        place = one.place(returned) if one.call is not None else 0
        if one.call is not None and grid.numel() > 0 and (self.cells is None or place > 0):
            tokens = None if grid is record.output else cast(Tensor, record.output)
            output = Output(grid, returned, place, tokens)
            sizes = [each.shape[-2:] for each in (features, grid, returned)]
            key = (self.head, output.place, one.sizes(), *sizes)
            if key not in self.aligned:
                check_alignment(self.model, layer, one.call, record.inputs, output)
                if len(self.aligned) >= _SIZES:
                    self.aligned.clear()
                self.aligned.add(key)
        return ForwardPass(returned, images, size, features, logits_at(grid, features.shape[-2:]), one, self.cells)

    def sizes(self, logits: Tensor) -> ForwardPass:
        """The images' size, beside `logits`, in the pass that gave a map of their shape or that they are, resized.

        Not known without such a pass: they may be made of several.
        """
        last = self.kept.settle()
        for one in (*self.kept.passes(), last):
            if any(each.shape == logits.shape or is_whole_in_graph(each, logits) for each in one.maps):
                return ForwardPass(logits, size=next(iter(one.sizes()), None), source=one)
        return ForwardPass(logits)

    def _find(self, logits: Tensor, last: Pass) -> tuple[Pass, Tensor | None]:
        """The pass of `logits`, and the map it returned that they are, or are made of by a cast or resizing.

        Without a map where the model's layers were called one by one.
        """
        kept = self.kept
        returned = kept.made_of.get(logits, logits)
        one = kept.tied.get(returned)
        if one is not None:
            return one, returned if one.call is not None else None
        fitting = {id(one): (one, each) for one in kept.passes() for each in one.maps[::-1] if comes_from(each, logits)}
        alike = [_like_images(one, other) for (one, _), (other, _) in pairwise(fitting.values())]
        if fitting and all(alike):
            one, returned = next(iter(fitting.values()))
            kept.made_of[logits] = returned
            return one, returned
        outside = Pass()
        outside.outside = last.outside or last.records
        recorded = maps_in([record.output for record in outside.outside.values()])
        if not fitting and (self.head or not last.maps) and any(comes_from(source, logits) for source in recorded):
            kept.tie(outside, [logits])
            return outside, None
        raise RuntimeError(self._what_is_missing(logits, last, len(fitting)))

    def _record_of_head(self, one: Pass, returned: Tensor, whole: bool) -> LayerRecord:
        """What the head was given and gave; found first, where it is not known."""
        records = one.layers(outside=not whole)
        if not records or (self.head is not None and self.head not in records):
            layer = f"head {self.head!r}" if self.head else "classifier layer"
            remedy = "Name a layer that runs in every forward pass."
            raise RuntimeError(complain(layer, "a run in the last forward pass", "none", f"{remedy} {_COMPILED}"))
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
        return records[self.head]

    def _what_is_missing(self, logits: Tensor, last: Pass, fitting: int) -> str:
        held = [each for one in self.kept.passes() for each in one.maps] or last.maps
        expected, shape = "what one of the model's last forward passes returned", tuple(logits.shape)
        if fitting > 1:
            came = f"logits {shape} that {fitting} of them may have given"
            remedy = "Without gradients, give the very output, not what was made of it."
            return complain("output", expected, came, remedy)
        remedy = (
            f"Give an output as it is, while it is held and before its backward, of the last {PASSES} at most. Do not "
            "crop, flip or select: pad the labels with ignore_index, or attach the module that changes it. Logits made "
            "of several outputs (flips averaged, tiles put together) have no features: criterion.base(logits, labels)."
        )
        if held:
            shapes = ", ".join(str(tuple(each.shape)) for each in held)
            came = f"logits {shape} that are neither its output, {shapes}, nor all of that resized"
            return complain("output", expected, came, remedy)
        since = "the last call of the criterion" if self.kept.called else "attach"
        expected = f"a forward pass of the attached model since {since}"
        return complain("criterion", expected, "none", f"{remedy} {_COMPILED}")

    def _hook(self, layer: nn.Module, name: str, before: bool = False) -> None:
        hook = Hook(self.kept, name, before)
        self.hooks.append(hook)
        hook.register(layer)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "is_open": self.is_open}

    def __setstate__(self, state: dict[str, Any]) -> None:
        is_open = state.pop("is_open")
        self.__dict__.update(state)
        self.kept.recording, self.kept.searching = is_open, self.head is None


def _like_images(one: Pass, other: Pass) -> bool:
    """Whether two passes were given equal maps: with equal outputs they are then as good as one."""
    given, also = maps_in(one.call), maps_in(other.call)
    return len(given) == len(also) and all(map(torch.equal, given, also))
