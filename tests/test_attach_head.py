"""Finding the classifier layer, and refusing to guess."""

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from attach_cases import CLASSES, Net, attached, batch, hooks
from torch import Tensor, nn
from torch.nn import functional as F

from perpixel import TemplateSimilarityLoss
from perpixel.attach.criterion import attach


class Custom(nn.Module):
    """body (stride 4) -> head -> `finish`; with a twin head that says exactly the same but is not used."""

    def __init__(self, finish: Callable[[Tensor], object], head: nn.Module | None = None) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 6, 5, 4, 2)
        self.mid = nn.Conv2d(6, CLASSES, 3, padding=1)
        self.mix = nn.Conv2d(CLASSES, 6, 3, padding=1)
        self.last = head or nn.Conv2d(6, CLASSES, 1)
        self.finish = finish

    def forward(self, images: Tensor) -> object:
        return self.finish(self.last(F.relu(self.mix(F.relu(self.mid(self.body(images)))))))


FINISHES: dict[str, Callable[[Tensor], object]] = {
    "as it is": lambda z: z,
    "bilinear": lambda z: F.interpolate(z, scale_factor=4, mode="bilinear"),
    "aligned": lambda z: F.interpolate(z, scale_factor=4, mode="bilinear", align_corners=True),
    "nearest": lambda z: (F.interpolate(z, scale_factor=4),),
    "bicubic": lambda z: {"logits": F.interpolate(z, scale_factor=4, mode="bicubic")},
    "cast": lambda z: z.double(),
    "half": lambda z: F.interpolate(z.to(torch.bfloat16), scale_factor=4, mode="bilinear"),
    "view": lambda z: z[:, :, :, :],
}


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("finish", FINISHES)
def test_found_whatever_brings_the_logits_to_size(finish: str, grad: bool) -> None:
    model, images, labels, criterion = attached(Custom(FINISHES[finish]), TemplateSimilarityLoss())
    assert criterion.head is None
    with torch.set_grad_enabled(grad):
        criterion(model(images), labels)
    assert criterion.head == "last"
    assert len(list(hooks(model))) == 4  # before and after the model, and how the first is called; one on the head
    criterion(model(images), labels)


@pytest.mark.parametrize(
    "head",
    [
        nn.ConvTranspose2d(6, CLASSES, 2, 2),
        nn.Conv2d(6, CLASSES, 3),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(6, CLASSES, 1)),
        nn.LazyConv2d(CLASSES, 1),
        nn.Sequential(nn.Dropout(0.1), nn.Conv2d(6, CLASSES, 1, bias=False)),
    ],
)
def test_kinds_of_heads(head: nn.Module) -> None:
    model = Custom(FINISHES["bilinear"], head)
    images, _ = batch(size=32)
    criterion = attach(model, TemplateSimilarityLoss())
    output: Any = model(images)
    criterion(output, torch.zeros(2, *output.shape[-2:], dtype=torch.int64)).backward()
    assert model.body.weight.grad is not None
    criterion.remove()
    assert not list(hooks(model))


def test_an_auxiliary_head_that_says_the_same_differs_by_the_graph() -> None:
    model = Net(aux=True)
    for head in (model.classifier, model.aux_classifier):
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
    criterion = attach(model, TemplateSimilarityLoss())
    images, labels = batch()
    criterion(model(images), labels)
    assert criterion.head == "classifier"


def test_two_layers_that_say_the_same_are_listed_and_the_model_is_freed() -> None:
    model = Net(aux=True)
    for head in (model.classifier, model.aux_classifier):
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
    criterion = attach(model, TemplateSimilarityLoss())
    images, labels = batch()
    with torch.no_grad(), pytest.raises(ValueError, match=r"got 2\.(?s:.*)'classifier': Conv2d(?s:.*)'aux_classifier'"):
        criterion(model(images), labels)
    assert not list(hooks(model))
    assert not criterion.attached
    with pytest.raises(RuntimeError, match="removed"):
        criterion(model(images), labels)


@pytest.mark.parametrize("finish", [lambda z: z.softmax(1), lambda z: z + z.mean(1, keepdim=True)])
def test_none_lists_the_layers_with_as_many_channels(finish: Callable[[Tensor], Tensor]) -> None:
    model, images, labels, criterion = attached(Custom(finish), TemplateSimilarityLoss())
    with pytest.raises(ValueError, match=r"got none\.(?s:.*)'mid': Conv2d -> \(2, 4, 4, 4\)(?s:.*)'last': Conv2d"):
        criterion(model(images), labels)
    assert not list(hooks(model))
    named = attach(model, TemplateSimilarityLoss(), head="last")
    assert torch.isfinite(named(model(images), labels))


def test_a_layer_that_does_not_run_is_refused() -> None:
    model = Net()
    model.spare = nn.Conv2d(8, CLASSES, 1)
    images, labels = batch()
    criterion = attach(model, TemplateSimilarityLoss(), head="spare")
    with pytest.raises(RuntimeError, match="'spare': expected a run in the last forward pass, got none"):
        criterion(model(images), labels)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("body.0", "4 output channels"),
        ("pool", "input is one 4-D"),
        ("pair", "input is one 4-D"),
        ("flat", "output is one"),
    ],
)
def test_layers_unfit_to_be_heads(head: str, message: str) -> None:
    class Odd(Net):
        def __init__(self) -> None:
            super().__init__()
            self.pool, self.pair, self.flat = nn.Linear(8, CLASSES), nn.Bilinear(8, 8, CLASSES), nn.Flatten()

        def forward(self, images: Tensor) -> dict[str, Tensor]:
            pooled = self.body(images).mean((2, 3))
            self.pair(pooled, pooled)
            self.flat(images)
            return {"out": super().forward(images)["out"] + self.pool(pooled)[:, :, None, None]}

    model = Odd()
    images, labels = batch()
    with pytest.raises(ValueError, match=message):
        attach(model, TemplateSimilarityLoss(), head=head)(model(images), labels)


def test_a_head_that_runs_twice_counts_with_its_last_run() -> None:
    class Twice(Net):
        def forward(self, images: Tensor) -> dict[str, Tensor]:
            super().forward(images[:, :, ::2, ::2])
            return super().forward(images)

    model, images, labels, criterion = attached(Twice(), TemplateSimilarityLoss())
    assert torch.isfinite(criterion(model(images), labels))


def test_names_are_those_inside_wrappers() -> None:
    model = Net()
    images, labels = batch()
    averaged = torch.optim.swa_utils.AveragedModel(model)
    for wrapped in (nn.DataParallel(model), averaged, torch.compile(model, backend="eager")):
        for head in ("classifier", None):
            with attach(wrapped, TemplateSimilarityLoss(), head=head) as criterion:
                criterion(wrapped(images), labels)
                assert criterion.head == "classifier"
            assert not list(hooks(wrapped))


class Deep(Net):
    """Two classifiers, both returned; the second is fed with what the first said."""

    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Conv2d(8 + CLASSES, CLASSES, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        x = self.body(images)
        first = self.classifier(x)
        return first, F.interpolate(self.second(torch.cat((x, first), 1)), scale_factor=2, mode="bilinear")


@pytest.mark.parametrize("grad", [True, False])
def test_the_output_that_is_passed_decides(grad: bool) -> None:
    model = Deep()
    images, labels = batch()
    with torch.set_grad_enabled(grad):
        for choose, head in (
            (lambda o: o, "classifier"),
            (lambda o: o[1], "second"),
            (lambda o: o[0] + 0, "classifier"),
        ):
            with attach(model, TemplateSimilarityLoss()) as criterion:
                criterion(choose(model(images)), labels)
                assert criterion.head == head


@pytest.mark.parametrize("grad", [True, False])
def test_an_empty_batch_counts_nothing_and_finds_nothing(grad: bool) -> None:
    model, images, labels, criterion = attached(Net().eval(), TemplateSimilarityLoss(), head="classifier")
    finding = attach(model, TemplateSimilarityLoss())
    with torch.set_grad_enabled(grad):
        output = model(images[:0])
        assert criterion(output, labels[:0]) == 0
        with pytest.raises(RuntimeError, match="head: expected a batch with images to find it in, got an empty one"):
            finding(output, labels[:0])
        assert criterion(model(images[:0])["out"].double(), labels[:0]).isfinite()
        output = model(images)
        criterion(output, labels)
        finding(output, labels)
    assert finding.head == "classifier"


def test_a_model_run_part_by_part() -> None:
    model, images, labels, criterion = attached(Net(), TemplateSimilarityLoss())
    for _ in range(2):
        logits = model.classifier(model.neck(model.body(images)))
        with pytest.raises(
            ValueError, match=r"labels: expected the output's size \(8, 8\)"
        ):  # nobody knows that of the images
            criterion(logits, labels)
        logits = model.classifier(model.neck(model.body(images)))
        assert torch.isfinite(criterion(F.interpolate(logits, size=(16, 16), mode="bilinear"), labels))
    assert criterion.head == "classifier"


@pytest.mark.parametrize("grad", [True, False])
def test_looking_for_the_head_holds_no_more_than_what_may_be_it(grad: bool) -> None:
    model = Net(aux=True)
    images, labels = batch()
    held: dict[nn.Module, Any] = {}

    def hold(layer: nn.Module, inputs: object, output: Tensor) -> None:
        held[layer] = weakref.ref(output)

    for layer in (*model.body, model.neck):
        layer.register_forward_hook(hold)
    criterion = attach(model, TemplateSimilarityLoss())
    with torch.set_grad_enabled(grad):
        output = model(images)
        alive = [ref() is not None for ref in held.values()]
        assert grad or alive == [False, False, True, False]  # the third is the auxiliary head's input
        records = criterion._recorder.kept.last.records
        assert [records[name].output.is_meta for name in ("body.0", "neck", "classifier")] == [True, True, False]
        criterion(output, labels)
    assert criterion.head == "classifier"
