"""Add per-pixel losses to the training loop of an existing segmentation model, in one line."""

import inspect
import warnings
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from perpixel.attach.auxiliary import Aux, Key, aux_weights, check_aux
from perpixel.attach.recorder import ForwardPass, Recorder
from perpixel.attach.targets import (
    check_size,
    class_numbers,
    cross_entropy,
    is_mask_per_class,
    labels_of_cells,
    target_of,
)
from perpixel.attach.terms import Term, has_weight_map, named_terms
from perpixel.borrow import Caller, called
from perpixel.checks import check_integer, check_tensor, complain
from perpixel.outputs import class_logits, dense_logits, further_logits, logits_at

Base = Callable[[Tensor, Tensor], Tensor]


def attach(
    model: nn.Module,
    *terms: Term,
    base: Base | None = None,
    head: str | None = None,
    features: Callable[[Any], Any] | None = None,
    ignore_index: int = 255,
    aux: Aux = None,
    call: Caller | None = None,
) -> "Feedback":
    """A criterion that adds `terms` to `base`: loss = base(logits, labels) + Σ weight · base(aux logits, labels)
    + Σ weight · term(...).

    model: any segmentation network, bare or wrapped (DistributedDataParallel, torch.compile, Fabric); only hooks are
        put on it, and `remove()` takes them off.
    terms: losses called with the features (N, D, h, w), the logits (N, C, h, w) on their grid and the labels; those
        that have a `weight_map` with the model, the images of the pass, the logits as it returned them and the labels.
    base: called with the logits at label size (bilinear) and the labels; default cross-entropy, binary for one channel,
        a mean over the pixels that are not `ignore_index`.
    head: dotted name of the classifier layer, whose input is the features: maps, or tokens (N, h, w, D) or (N, h·w, D)
        of a linear layer. None takes what the model declares, `classifier_layer = "<name>"`, an attribute for networks
        that sum several score layers; or finds it by the first output, for which what every layer gave is kept: name it
        to spare that memory. Terms with a `weight_map` need none. Its grid must cover the extent of the model's output,
        since the labels are brought to it: looked at for every new size, by values, or where the output is not the grid
        resized by five more passes in evaluation mode. A model whose grid covers more or less declares where its cells
        lie, `classifier_cells = (stride, offset)`: the pixel of the output at the centre of cell i is offset + stride
        · i; it is taken at its word, and terms get the labels of these pixels, void outside the image.
    features: instead of `head`, where no layer is the classifier: a function of what the criterion is given as output,
        `lambda output: output.hidden_states[-1]`. It returns the features (N, D, h, w), to which the output's logits
        are resized (bilinear), or a pair of them and the logits (N, C, h', w') to take; nobody can check that their
        extent is that of the labels.
    aux: weights of the output's further maps of logits (N, C, h, w), of auxiliary heads or deep supervision: one for
        all of them, or by name or place, {"aux": 0.4} or {1: 0.4, 2: 0.2}, the others left out. None counts "aux" at
        0.5, as torchvision does, and warns once of others; 0 leaves all out (DistributedDataParallel then needs
        find_unused_parameters=True). What a model does not return cannot be trained: transformers (UPerNet, BEiT,
        Data2Vec, DPT) keep their auxiliary head's logits to themselves.
    call: how terms with a `weight_map` run the model on images, call(model, images) -> output; None: model(images).

    TypeError or ValueError, and a model left as it was, if an argument is not fit.
    """
    return Feedback(
        model, terms, base=base, head=head, features=features, ignore_index=ignore_index, aux=aux, call=call
    )


class Feedback(nn.Module):
    """The criterion that `attach` returns: `loss = criterion(model(images), labels)`.

    After a call, `terms` has every part by name ("base", that of the main map alone; "aux", or "aux_1" of a further map
    at place 1; "template_similarity", a second one "template_similarity_2"), unweighted and detached, and `total` their
    weighted sum. The module's own parameters and state are those of `base` and the terms, never the model's.

    Several outputs of one step each have their own features, in any order and as often as needed: mixup, siamese
    passes. What the head was given and the model's inputs are held for as long as the output is, of eight passes at
    most, but not beyond `backward`, unless that retains the graph. Of the very last pass they are held without its
    output, too, until the next pass or call (with torch.compile, of the pass before as well). A head that runs several
    times in a pass: its last run.

    `criterion.base(logits, labels)` is the base alone, of any logits; in validation of those that are put together of
    several outputs (sliding windows, flips averaged) and have no features. Without terms the criterion takes them, too.

    Copies (deepcopy, pickle): of an object that owns both, model and criterion, an independent pair; of the model
    alone, one whose hooks do nothing and keep nothing. torch.jit.script takes no model with hooks: call `remove()`
    before it, and before the model is copied for it.
    """

    def __init__(
        self,
        model: nn.Module,
        terms: tuple[Term, ...],
        *,
        base: Base | None = None,
        head: str | None = None,
        features: Callable[[Any], Any] | None = None,
        ignore_index: int = 255,
        aux: Aux = None,
        call: Caller | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise TypeError(complain("model", "a torch.nn.Module", model, "Pass the network itself."))
        if base is not None and (inspect.isclass(base) or not callable(base)):
            raise TypeError(complain("base", "a callable on (logits, labels)", base, "Pass nn.CrossEntropyLoss()."))
        if features is not None and (inspect.isclass(features) or not callable(features)):
            remedy = "Pass lambda output: output.hidden_states[-1], say."
            raise TypeError(complain("features", "a function of the model's output", features, remedy))
        if features is not None and head is not None:
            raise ValueError(complain("features", "none beside head", "both", "Leave one of them out."))
        self.ignore_index = check_integer("ignore_index", ignore_index)
        self.base: Base = partial(cross_entropy, ignore_index=self.ignore_index) if base is None else base
        self.features = features
        self.aux = check_aux(aux)
        named = named_terms(terms)
        self.losses = nn.ModuleDict({name: term for name, term in named.items() if isinstance(term, nn.Module)})
        self.terms: dict[str, Tensor] = {}
        self.total: Tensor | None = None
        self._named_terms = named
        self._feature_terms = [name for name, term in named.items() if not has_weight_map(term)]
        self._warned: set[str] = set()
        self._removed = False
        by_head = bool(self._feature_terms) and features is None
        with_maps = len(self._feature_terms) < len(named)
        self._recorder = Recorder(model, head, features=by_head, images=with_maps)
        self._called = (called(self._recorder.model, call),)  # in a tuple: no module of the criterion's own
        self._recorder.open(model)

    def forward(self, output: object, labels: Tensor) -> Tensor:
        """The loss, a scalar, of what the model returned; labels int (N, H, W).

        output: the model's own, or that resized as a whole; not cropped, flipped or of some images only. labels: at the
        size of the images if these are no smaller than the output, of the output, or of what that was resized to. For a
        binary network, C = 1, 0 and 1 of any dtype, (N, H, W) or (N, 1, H, W); a `base` of one's own gets them as they
        are, one of torch or segmentation_models_pytorch as floats (N, 1, H, W). A base of one's own may also be given
        one mask per class (N, C, H, W), without terms.

        With terms, RuntimeError without a forward pass or with an output that is no longer held or of another model;
        ValueError or TypeError if output or labels do not fit, a name in `aux` is not in the output, the head cannot be
        found, or its grid covers another extent than the output (a network that pads its input and crops its logits:
        pad images and, with `ignore_index`, labels before it).
        All-void labels: zero, attached to the graph. On a GPU labels' values are checked only where a term has
        `validate=True`.
        """
        if not self.attached:
            raise RuntimeError(complain("criterion", "an attached criterion", "a removed one", "Call attach again."))
        logits = dense_logits(output)
        last = self._pass_of(output, logits)
        classes = self._class_numbers(labels, logits)
        if last.source is not None:
            check_size(labels, logits, last)
        further = further_logits(output, logits)
        weights = aux_weights(self.aux, further, training=self._recorder.model.training)
        self._warn_if_cut_off(last.features, logits)
        self._warn_if_left_out([key for key, each in further.items() if key not in weights and each.requires_grad])
        target = target_of(self.base, labels, classes, logits)
        total = self._base("base", logits, target)
        terms = {"base": total.detach()}
        for key, weight in weights.items():
            name = self._aux_name(key)
            value = self._base(name, further[key], target)
            terms[name] = value.detach()
            total = total + weight * value
        for name, term in self._named_terms.items():
            value = _scalar(name, self._value(term, last, classes))
            terms[name] = value.detach()
            total = total + term.weight * value
        self.terms, self.total = terms, total.detach()
        if last.source is not None:
            self._recorder.kept.drop_after(total, last.source)
        return total

    def _class_numbers(self, labels: Tensor, logits: Tensor) -> Tensor | None:
        """Labels as int64 (N, H, W); None for one mask per class, which a base of one's own may take."""
        own = getattr(self.base, "func", None) is not cross_entropy
        if own and not self._named_terms and is_mask_per_class(labels, logits):
            return None
        on_cpu = logits.device.type == "cpu"
        check_values = on_cpu or any(getattr(term, "validate", False) for term in self._named_terms.values())
        return class_numbers(labels, logits, self.ignore_index, check_values, [*self._named_terms] if own else ["base"])

    def _pass_of(self, output: object, logits: Tensor) -> ForwardPass:
        """What the terms ask of the pass that gave the output; without terms its images' size, if that is known."""
        recorder = self._recorder
        last = recorder.pass_of(logits) if recorder.features or recorder.images else recorder.sizes(logits)
        if self.features is None or not self._feature_terms:
            return last
        found = self.features(output)
        features, grid = found if isinstance(found, (tuple, list)) and len(found) == 2 else (found, logits)
        expected = "shape (N, D, h, w)"
        for name, each in (("features(output)", features), ("features(output)[1]", grid)):
            check_tensor(name, each, ndim=4, shape="(N, D, h, w)", floating=True)
            if each.shape[0] != logits.shape[0]:
                raise ValueError(complain(name, expected, each, f"Give {len(logits)} maps, one for each image."))
        if grid.shape[1] != logits.shape[1]:
            raise ValueError(complain("features(output)[1]", f"{logits.shape[1]} channels", grid, "Give the logits."))
        return last._replace(features=features, grid=logits_at(grid, features.shape[-2:]))

    def _base(self, name: str, logits: Tensor, target: Tensor) -> Tensor:
        return _scalar(name, self.base(logits_at(logits, target.shape[-2:]), target))

    def _aux_name(self, key: Key) -> str:
        """Its key among the terms, none of which may have it."""
        name = key if isinstance(key, str) and key.startswith("aux") else f"aux_{key}"
        while name in self._named_terms:
            name = f"aux_{name}"
        return name

    def _value(self, term: Term, last: ForwardPass, labels: Any) -> object:
        """The term of the pass, with void marked as the term expects it."""
        void = getattr(term, "ignore_index", self.ignore_index)
        if void != self.ignore_index:
            labels = labels.masked_fill(labels == self.ignore_index, void)
        call: Callable[..., object] = term
        if has_weight_map(term):
            return call(*self._called, last.images, last.logits, labels)
        grid = None if last.grid is None else class_logits(last.grid)
        return call(last.features, grid, labels_of_cells(labels, last, void))

    def _warn_if_cut_off(self, features: Tensor | None, logits: Tensor) -> None:
        if features is None or features.requires_grad or not logits.requires_grad or "cut off" in self._warned:
            return
        self._warned.add("cut off")
        source = "what features= gives" if self.features is not None else f"the input of head {self._recorder.head!r}"
        warnings.warn(
            f"The terms {self._feature_terms} train nothing: {source} carries no "
            "gradient. Train a layer below the head; checkpoint with use_reentrant=False.",
            stacklevel=5,
        )

    def _warn_if_left_out(self, left_out: list[Key]) -> None:
        if not left_out or self.aux is not None or "left out" in self._warned:
            return
        self._warned.add("left out")
        warnings.warn(
            f"The maps {left_out} of the model's output have the form of logits but add nothing to the loss. Count "
            "them with attach(model, ..., aux=0.4) or by name; aux=0 leaves all further maps out.",
            stacklevel=5,
        )

    @property
    def attached(self) -> bool:
        """Whether the criterion can still be called: False after `remove()`, or once the head could not be found."""
        return not self._removed and self._recorder.is_open

    @property
    def head(self) -> str | None:
        """Dotted name of the classifier layer; None as long as no call has found it."""
        return self._recorder.head

    def remove(self) -> None:
        """Take every hook off the model and let go of every feature; may be called again."""
        self._removed = True
        self._recorder.close()

    def __enter__(self) -> "Feedback":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def __del__(self) -> None:
        if "_recorder" in self.__dict__:
            self._recorder.close()

    def extra_repr(self) -> str:
        return f"head={self.head!r}, ignore_index={self.ignore_index}, attached={self.attached}"


def _scalar(name: str, value: object) -> Tensor:
    if not isinstance(value, Tensor) or value.ndim > 0:
        raise TypeError(complain(f"{name} loss", "a scalar tensor", value, "Reduce it to one number per batch."))
    return value
