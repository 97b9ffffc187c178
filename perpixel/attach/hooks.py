"""Hooks that keep what belongs to each forward pass, for as long as an output of it may come to the criterion."""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakTensorKeyDictionary

from perpixel.attach.alignment import Call
from perpixel.attach.head import LayerRecord, channels_of
from perpixel.checks import complain
from perpixel.outputs import maps_in

PASSES = 8  # that are kept at most beside the last one


class Pass:
    """What one forward pass was given and gave: the call, the layers' records, the output.

    records: of the layers it ran; outside: of layers called since, not by the model.
    """

    def __init__(self, call: Call | None = None, version: int | None = None) -> None:
        self.call, self.version = call, version  # version: of the images in the call
        self.records: dict[str, LayerRecord] = {}
        self.outside: dict[str, LayerRecord] = {}
        self.output: object = None
        self.returned: list[Any] | None = None  # maps of the output, or weak references to them

    @property
    def maps(self) -> list[Tensor]:
        """The 4-D maps of the output; of a tied pass those that are still there."""
        maps = maps_in(self.output) if self.returned is None else map(_held, self.returned)
        return [each for each in maps if each is not None]

    def place(self, returned: Tensor) -> int:
        """Of one of the maps among all of them."""
        maps = self.maps if self.returned is None else [_held(each) for each in self.returned]
        return next(place for place, each in enumerate(maps) if each is returned)

    def layers(self, outside: bool = False) -> dict[str, LayerRecord]:
        """What each layer was given and gave."""
        records = self.outside if outside else self.records
        return {name: LayerRecord(tuple(map(_held, given)), _held(gave)) for name, (given, gave) in records.items()}

    def sizes(self) -> tuple[torch.Size, ...]:
        """Of the maps in the call, of whatever dtype, images first."""
        return tuple(each.shape[-2:] for each in maps_in(self.call, floating=False))

    def tied_to(self, keys: Iterable[Tensor]) -> "Pass":
        """The same pass, which holds none of `keys`, so that they can hold it."""
        own = {id(key) for key in keys}

        def loose(value: Any) -> Any:
            return weakref.ref(value) if id(value) in own else value

        tied = Pass(self.call, self.version)
        tied.records, tied.outside = (
            {name: LayerRecord(tuple(map(loose, given)), loose(gave)) for name, (given, gave) in records.items()}
            for records in (self.records, self.outside)
        )
        tied.returned = [loose(each) for each in self.maps]
        return tied


class Kept:
    """The passes that hooks have seen. A copy keeps nothing, unless its recorder is copied as well.

    The last pass is held whole, since its output may come changed; any other, and that one too once the criterion was
    called, by the maps it returned alone, and goes with the last of them, or with its graph in backward. Under
    torch.compile, where nobody can tell whether they are there, the one before the last is held as well, until the
    criterion is called.
    recording: whether hooks keep anything. searching: whether the head is still to be found.
    """

    def __init__(self) -> None:
        self.recording = self.searching = self.called = False
        self.forget()

    def forget(self) -> None:
        """Let go of every pass."""
        self.last, self.before = Pass(), Pass()
        self.tied: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # map of an output -> its pass
        self.made_of: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # what the criterion was given -> such a map

    def settle(self) -> Pass:
        """Tie the last passes to their outputs; the very last one, whole."""
        last = self.last
        for one in (self.before, last):
            self.tie(one, one.maps)
        self.last, self.before = Pass(), Pass()
        return last

    def tie(self, one: Pass, keys: list[Tensor]) -> None:
        """Keep a pass for as long as any of `keys` is there, but for its images and, if others are left, features."""
        images = {id(each) for each in maps_in(one.call)}
        features = {id(each) for record in one.records.values() for each in record.inputs}
        keys = [key for key in keys if id(key) not in images]
        keys = [key for key in keys if id(key) not in features] or keys
        tied = one.tied_to(keys)
        for key in keys:
            self.tied[key] = tied
        for old in self.passes()[PASSES:]:
            self.drop(old)

    def drop(self, one: Pass) -> None:
        """Let go of a pass, whoever holds its output."""
        for key, each in list(self.tied.items()):
            if each is one:
                del self.tied[key]

    def drop_after(self, loss: Tensor, one: Pass) -> None:
        """Let go of a pass when backward, unless it keeps its graph, has begun at a loss of its output."""
        if not loss.requires_grad or torch.compiler.is_compiling():
            return
        found = weakref.ref(one)

        def drop(_: Tensor) -> None:
            used = found()
            if used is not None and not torch._C._autograd._get_current_graph_task_keep_graph():
                self.drop(used)

        loss.register_hook(drop)

    def passes(self) -> list[Pass]:
        """Those tied to an output that is still there, the last one first."""
        return list({id(one): one for one in reversed(list(self.tied.values()))}.values())

    def let_go(self) -> None:
        """Of all but the shape of what has not as many images and channels as any map of the output."""
        wanted = [each.shape[:2] for each in self.last.maps]
        for name, (_, output) in self.last.records.items() if wanted else ():
            if isinstance(output, Tensor) and not any(channels_of(output, shape) for shape in wanted):
                self.last.records[name] = LayerRecord((), torch.empty_like(output, device="meta"))

    def __reduce__(self) -> tuple[Any, ...]:
        return Kept, ()


class Hook:
    """A forward (pre-)hook of a recorder. It knows nothing of the recorder, so that a copy of the model copies none."""

    only_records = True  # `perpixel.borrow` takes such hooks off meanwhile

    def __init__(self, kept: Kept, name: str, before: bool) -> None:
        self.kept: Kept | None = kept
        self.name, self.before = name, before
        self.handle: RemovableHandle | None = None

    def register(self, layer: nn.Module) -> None:
        if self.before:  # first of all, so that another's hook may change the images
            self.handle = layer.register_forward_pre_hook(self, with_kwargs=True, prepend=True)
        else:
            self.handle = layer.register_forward_hook(self)

    def __call__(self, layer: nn.Module, inputs: tuple[object, ...], more: Any = None) -> None:
        """`more`: before the layer runs its keyword inputs, after it its output."""
        kept = self.kept  # None after `remove`: makes torch.compile notice as well
        if kept is None or not kept.recording or _is_no_pass():
            return
        if self.before:
            if torch.compiler.is_compiling():
                kept.before = kept.last
            else:
                kept.settle()
            call = (inputs, more)
            kept.last = Pass(call, version_of(maps_in(call)))
        elif self.name:
            last = kept.last
            records = last.records if last.call is not None and last.output is None else last.outside
            records[self.name] = LayerRecord(inputs, more)
        else:
            kept.last.output = more
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


def version_of(images: list[Tensor]) -> int | None:
    """How often the first of them was changed in place; None where nobody counts."""
    if not images or torch.compiler.is_compiling() or images[0].is_inference():
        return None
    return images[0]._version


_is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)  # torch 2.6 has none


def _is_no_pass() -> bool:
    """Whether a checkpoint's recomputation, a trace or an export, not a pass of its own, is running the model."""
    if torch.compiler.is_compiling():
        return _is_exporting()
    return torch._C._current_graph_task_id() != -1 or torch.jit.is_tracing()


def _held(value: Any) -> Any:
    return value() if isinstance(value, weakref.ref) else value
