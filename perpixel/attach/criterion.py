"""Add per-pixel losses to the training loop of an existing segmentation model, in one line."""

import inspect
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perpixel.attach.auxiliary import Aux, Key, aux_weights, check_aux
from perpixel.attach.recorder import ForwardPass, Recorder
from perpixel.checks import check_integer, check_number, complain
from perpixel.outputs import check_labels, dense_logits, further_logits, logits_at


class FeatureTerm(Protocol):
    """`weight` times a scalar of features (N, D, h, w), logits on their grid (N, C, h, w), and labels (N, H, W)."""

    weight: float

    def __call__(self, features: Tensor, logits: Tensor, labels: Tensor, /) -> Tensor: ...


class MapTerm(Protocol):
    """`weight` times a scalar of the model, its images, the logits as it returned them, and labels.

    Its `weight_map` distinguishes it from a `FeatureTerm`. It may run the model again, and leaves it as it was.
    """

    weight: float

    def __call__(self, model: nn.Module, images: Tensor, logits: Tensor, labels: Tensor, /) -> Tensor: ...

    def weight_map(self, model: nn.Module, images: Tensor, logits: Tensor, labels: Tensor, /) -> Tensor: ...


Term = FeatureTerm | MapTerm


def attach(
    model: nn.Module,
    *terms: Term,
    base: Callable[[Tensor, Tensor], Tensor] | None = None,
    head: str | None = None,
    ignore_index: int = 255,
    aux: Aux = None,
) -> "Feedback":
    """A criterion that adds `terms` to `base`: loss = base(logits, labels) + Σ weight · base(aux logits, labels)
    + Σ weight · term(...).

    model: any segmentation network, bare or wrapped (DistributedDataParallel, torch.compile, Fabric); only hooks are
        put on it, and `remove()` takes them off.
    terms: losses called with the features (N, D, h, w), the logits (N, C, h, w) on their grid and the labels; those
        that have a `weight_map` with the model, the images of the pass, the logits as it returned them and the labels.
    base: called with the logits at label size (bilinear) and the labels; default cross-entropy, a mean over the pixels
        that are not `ignore_index`.
    head: dotted name of the classifier layer, whose input is the features. None finds it in the first forward pass,
        during which what every layer gave is kept; name it to spare that memory. Terms with a `weight_map` need none.
        Its grid must cover the extent of the model's output, since the labels are brought to it: looked at for every
        new size, by values, or where the output is not the grid resized by five more passes in evaluation mode.
    aux: weights of the output's further maps of logits (N, C, h, w), of auxiliary heads or deep supervision: one for
        all of them, or by name or place, {"aux": 0.4} or {1: 0.4, 2: 0.2}, the others left out. None counts "aux" at
        0.5, as torchvision does, and warns once of others; 0 leaves all out (DistributedDataParallel then needs
        find_unused_parameters=True). What a model does not return cannot be trained: transformers (UPerNet, BEiT,
        Data2Vec, DPT) keep their auxiliary head's logits to themselves.

    TypeError or ValueError, and a model left as it was, if an argument is not fit.
    """
    return Feedback(model, terms, base=base, head=head, ignore_index=ignore_index, aux=aux)


class Feedback(nn.Module):
    """The criterion that `attach` returns: `loss = criterion(model(images), labels)`.

    After a call, `terms` has every part by name ("base", that of the main map alone; "aux", or "aux_1" of a further map
    at place 1; "template_similarity", a second one "template_similarity_2"), unweighted and detached, and `total` their
    weighted sum. The module's own parameters and state are those of `base`
    and the terms, never the model's. Each call needs a forward pass of its own, just before; what the head was given
    and the model's inputs are held from that pass to the call, or to the next pass. A head that runs several times in a
    pass: its last run. Copies (deepcopy, pickle): of an object that owns both, model and criterion, an independent
    pair; of the model alone, one whose hooks do nothing and keep nothing. torch.jit.script takes no model with hooks:
    call `remove()` before it, and before the model is copied for it.
    """

    def __init__(
        self,
        model: nn.Module,
        terms: tuple[Term, ...],
        *,
        base: Callable[[Tensor, Tensor], Tensor] | None,
        head: str | None,
        ignore_index: int,
        aux: Aux = None,
    ) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise TypeError(complain("model", "a torch.nn.Module", model, "Pass the network itself."))
        if base is not None and (inspect.isclass(base) or not callable(base)):
            raise TypeError(complain("base", "a callable on (logits, labels)", base, "Pass nn.CrossEntropyLoss()."))
        self.ignore_index = check_integer("ignore_index", ignore_index)
        self.base = base
        self.aux = check_aux(aux)
        named = _named(terms)
        self.losses = nn.ModuleDict({name: term for name, term in named.items() if isinstance(term, nn.Module)})
        self.terms: dict[str, Tensor] = {}
        self.total: Tensor | None = None
        self._named_terms = named
        self._feature_terms = [name for name, term in named.items() if not _has_weight_map(term)]
        self._warned: set[str] = set()
        self._removed = False
        with_maps = len(self._feature_terms) < len(named)
        self._recorder = Recorder(model, head, features=bool(self._feature_terms), images=with_maps)
        self._recorder.open()

    def forward(self, output: object, labels: Tensor) -> Tensor:
        """The loss, a scalar, of what the model just returned; labels int (N, H, W).

        output: the model's own, or that resized as a whole; not cropped, flipped or of some images only. labels: at the
        size of the images if these are no smaller than the output, of the output, or of what that was resized to.

        With terms, RuntimeError without a forward pass of its own or with another pass' output; ValueError or TypeError
        if output or labels do not fit, a name in `aux` is not in the output, the head cannot be found, or its grid
        covers another extent than the output (a network that pads its input and crops its logits: pad images and, with
        `ignore_index`, labels before it).
        All-void labels: zero, attached to the graph. On a GPU labels' values are checked only where a term has
        `validate=True`.
        """
        if not self.attached:
            raise RuntimeError(complain("criterion", "an attached criterion", "a removed one", "Call attach again."))
        try:
            logits = dense_logits(output)
            on_cpu = logits.device.type == "cpu"
            check_values = on_cpu or any(getattr(term, "validate", False) for term in self._named_terms.values())
            labels = check_labels(labels, logits, self.ignore_index, values=check_values)
            last = self._recorder.last_pass(logits) if self._named_terms else ForwardPass(logits)
            seen = last if self._named_terms else self._recorder.sizes(logits)
            if seen is not None:
                _check_size(labels, logits, seen)
            further = further_logits(output, logits)
            weights = aux_weights(self.aux, further, training=self._recorder.model.training)
            self._warn_if_cut_off(last.features, logits)
            self._warn_if_left_out([key for key, each in further.items() if key not in weights and each.requires_grad])
            total = _scalar("base", self._base(logits, labels))
            terms = {"base": total.detach()}
            for key, weight in weights.items():
                name = self._aux_name(key)
                value = _scalar(name, self._base(further[key], labels))
                terms[name] = value.detach()
                total = total + weight * value
            for name, term in self._named_terms.items():
                value = _scalar(name, self._value(term, last, labels))
                terms[name] = value.detach()
                total = total + term.weight * value
        finally:
            self._recorder.finish()
        self.terms, self.total = terms, total.detach()
        return total

    def _base(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.base is not None:
            return self.base(logits_at(logits, labels.shape[-2:]), labels)
        return _cross_entropy(logits, labels, self.ignore_index)

    def _aux_name(self, key: Key) -> str:
        """Its key among the terms, none of which may have it."""
        name = key if isinstance(key, str) and key.startswith("aux") else f"aux_{key}"
        while name in self._named_terms:
            name = f"aux_{name}"
        return name

    def _value(self, term: Term, last: ForwardPass, labels: Tensor) -> object:
        """The term of the pass, with void marked as the term expects it."""
        void = getattr(term, "ignore_index", self.ignore_index)
        if void != self.ignore_index:
            labels = labels.masked_fill(labels == self.ignore_index, void)
        call: Callable[..., object] = term
        if _has_weight_map(term):
            return call(self._recorder.model, last.images, last.logits, labels)
        return call(last.features, last.grid, labels)

    def _warn_if_cut_off(self, features: Tensor | None, logits: Tensor) -> None:
        if features is None or features.requires_grad or not logits.requires_grad or "cut off" in self._warned:
            return
        self._warned.add("cut off")
        warnings.warn(
            f"The terms {self._feature_terms} train nothing: the input of head {self._recorder.head!r} carries no "
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


def _check_size(labels: Tensor, logits: Tensor, last: ForwardPass) -> None:
    """ValueError unless labels have the size of the images, or of the logits as given or as the model returned them.

    An output larger than the images may have been made of images that the model padded: then not that of the images.
    """
    images, output = last.size, last.logits.shape[-2:]
    if images is not None and any(of_output > of_images for of_output, of_images in zip(output, images, strict=True)):
        images = None
    allowed = {"the images'": images, "the output's": output, "the logits'": logits.shape[-2:]}
    if labels.shape[-2:] not in allowed.values():
        listed = " or ".join(f"{what} size {tuple(size)}" for what, size in allowed.items() if size is not None)
        remedy = (
            "Load labels at the size of their images, and resize or pad both alike (labels with ignore_index); or, if "
            "the output covers all of the labels and nothing else, resize it to their size."
        )
        raise ValueError(complain("labels", listed, str(tuple(labels.shape[-2:])), remedy))


def _cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """nn.CrossEntropyLoss at label size, summed in float32 or better; what lies at void, NaN too, has no say.

    Zero, not NaN, where every pixel is void. On the CPU void pixels are replaced only where there is need: that would
    take as long again as the rest.
    """
    logits = logits_at(logits, labels.shape[-2:])
    if torch.finfo(logits.dtype).bits < 32:
        logits = logits.float()
    valid = labels != ignore_index
    looks = logits.device.type == "cpu" and not torch.compiler.is_compiling()
    logs = F.log_softmax(logits, 1) if looks else logits
    if not looks or not bool(logs.detach()[:, 0].sum().isfinite()):  # NaN of one class is NaN of all
        logs = F.log_softmax(torch.where(valid[:, None], logits, 0.0), 1)
    total = F.nll_loss(logs, labels, ignore_index=ignore_index, reduction="sum")
    return total / valid.sum().clamp(min=1)


def _has_weight_map(term: Term) -> bool:
    """Whether a term asks for the model and its images."""
    return callable(getattr(term, "weight_map", None))


def _named(terms: tuple[Term, ...]) -> dict[str, Term]:
    """Terms by name, a number added to the second and later of one name; TypeError or ValueError if one is no term."""
    named: dict[str, Term] = {}
    count = {"base": 1}
    for place, term in enumerate(terms):
        argument = f"terms[{place}]"
        if inspect.isclass(term) or not callable(term) or not hasattr(term, "weight"):
            expected = "a loss module, or a callable on (features, logits, labels) with a .weight"
            raise TypeError(complain(argument, expected, term, "Pass perpixel.TemplateSimilarityLoss()."))
        check_number(f"{argument}.weight", term.weight, low=0.0)
        name = getattr(term, "name", None) or getattr(term, "__name__", None) or type(term).__name__
        count[name] = count.get(name, 0) + 1
        named[name if count[name] == 1 else f"{name}_{count[name]}"] = term
    return named


def _scalar(name: str, value: object) -> Tensor:
    if not isinstance(value, Tensor) or value.ndim > 0:
        raise TypeError(complain(f"{name} loss", "a scalar tensor", value, "Reduce it to one number per batch."))
    return value
