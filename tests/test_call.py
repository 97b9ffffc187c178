"""`call=`: a model that wants more than the images is followed and explained as one that does not."""

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from attribution_cases import Net, images
from model_state import assert_same, snapshot
from torch import Tensor, nn

from perpixel.attach.criterion import attach
from perpixel.attribution import RegionTarget, explain, faithfulness, influence, object_alone, randomised_weights
from perpixel.borrow import borrowed, called
from perpixel.fixations import fixations
from perpixel.fixations.trace.graph import _TRACES

LABEL = 2


class Keywords(Net):
    """The same network for code that passes names, a scale and what it does not know."""

    def forward(self, *, pixel_values: Tensor, scale: float, **other: object) -> Any:
        return super().forward(pixel_values * scale)


def call(model: nn.Module, x: Tensor) -> Any:
    return model(pixel_values=x, scale=1.0, return_dict=True)


def nets() -> tuple[Net, Keywords]:
    net, other = Net("out"), Keywords("out")
    other.load_state_dict(net.state_dict())
    return net, other.train()


def test_every_entry_point_calls_the_model_as_told() -> None:
    (net, other), x = nets(), images(2)
    both: list[tuple[nn.Module, dict[str, Any]]] = [(other, {"call": call}), (net, {})]
    region = torch.ones(2, *x.shape[-2:], dtype=torch.bool)
    before = snapshot(other)
    for record in (False, True):
        fix, expected = fixations(other, x, call=call, record=record), fixations(net, x, record=record)
        assert torch.equal(fix.points, expected.points)
        assert torch.equal(fix.mass, expected.mass)
        assert fix.nodes == expected.nodes
    assert torch.equal(influence(other, x, patch=4, call=call).values, influence(net, x, patch=4).values)
    one, two = (RegionTarget(m, LABEL, region[0], **how)(x) for m, how in both)
    assert torch.equal(one, two)
    for way in ({"method": "Saliency"}, {"method": "LayerGradCam", "layer": "features.3"}, {"method": "LayerGradCam"}):
        found, wanted = (explain(m, x, LABEL, region=region, **way, **how) for m, how in both)
        assert torch.equal(found.values, wanted.values)
        assert found.layer == wanted.layer
    region[:, :6] = False
    explained = explain(net, x, LABEL, region=region, method="Saliency")
    one, two = (faithfulness(m, x, explained, steps=3, stages=2, **how).summary() for m, how in both)
    assert one == two
    one, two = (object_alone(m, x, LABEL, region, **how).kept for m, how in both)
    assert torch.equal(one, two)
    mean = lambda network, x: network(x)["out"].mean(1)  # noqa: E731
    one, two = (randomised_weights(m, x, mean, stages=2, **how).correlation for m, how in both)
    assert torch.equal(one, two)
    with pytest.raises(TypeError, match="call: expected a function"):
        fixations(other, x, call="pixel_values")  # type: ignore[arg-type]
    assert_same(snapshot(other), before)


def test_the_called_model_is_the_model() -> None:
    _, net = nets()
    seen: list[str] = []
    net.register_forward_hook(lambda *_: seen.append("root"))
    whole = called(net, call)
    assert called(net, None) is net
    assert {n: m for n, m in whole.named_modules() if n} == {n: m for n, m in net.named_modules() if n}
    assert [id(p) for p in whole.parameters()] == [id(p) for p in net.parameters()]
    assert whole.form == "out"
    with borrowed(whole):
        assert not any(layer.training for layer in net.modules())
        whole(images(1))
    assert seen == ["root"]
    assert net.training
    whole.eval()
    assert not net.training
    whole.note = nn.Identity()
    assert "note" in dict(net.named_modules())
    assert called(whole, lambda m, x: m(pixel_values=x, scale=2.0))(images(1))["out"].shape == (1, 4, 12, 16)


def test_copies_call_the_copy() -> None:
    _, net = nets()
    net._forward_hooks.clear()
    for copied in (copy.deepcopy(called(net, call)), pickle.loads(pickle.dumps(called(net, call)))):
        torch.testing.assert_close(copied(images(1)), call(net, images(1)))
        with torch.no_grad():
            copied.classifier.weight.zero_()
        assert not torch.equal(copied(images(1))["out"], call(net, images(1))["out"])


def test_graphs_are_kept_for_functions_made_anew_and_let_go_with_the_model() -> None:
    _, net = nets()
    for _ in range(3):
        fixations(net, images(1), call=lambda m, x: m(pixel_values=x, scale=1.0))
    assert len(_TRACES[net]) == 1
    fixations(net, images(1), call=lambda m, x: m(pixel_values=x, scale=-1.0))
    assert len(_TRACES[net]) == 2

    def use() -> weakref.ref[nn.Module]:
        _, net = nets()
        fixations(net, images(1), call=lambda m, x: net(pixel_values=x, scale=1.0))
        return weakref.ref(net)

    dropped = use()
    gc.collect()
    assert dropped() is None


class Queries(nn.Module):
    """Four queries, with three classes (and none) and a mask each, as MaskFormer gives them."""

    def __init__(self) -> None:
        super().__init__()
        self.pixels, self.queries = nn.Conv2d(3, 5, 3, padding=1), nn.Parameter(torch.randn(4, 5))
        self.classes = nn.Linear(5, 4)
        self.double()

    def forward(self, images: Tensor) -> SimpleNamespace:
        pixels = self.pixels(images)
        queries = self.queries * pixels.mean((2, 3))[:, None]
        masks = torch.einsum("nqd,ndhw->nqhw", queries, pixels)
        return SimpleNamespace(class_queries_logits=self.classes(queries), masks_queries_logits=masks)


def put_together(model: nn.Module, x: Tensor) -> Tensor:
    output = model(x)
    shares = output.class_queries_logits.softmax(-1)[..., :-1]
    return torch.einsum("nqc,nqhw->nchw", shares, output.masks_queries_logits.sigmoid())


def test_masks_of_queries_are_refused_until_call_puts_them_together() -> None:
    model, x = Queries(), images(2)
    region = torch.ones(2, *x.shape[-2:], dtype=torch.bool)
    whole = Around(model)
    entries: list[Callable[..., Any]] = [
        lambda **how: fixations(model, x, **how),
        lambda **how: influence(model, x, patch=4, **how),
        lambda **how: explain(model, x, 1, region=region, method="Saliency", **how),
        lambda **how: RegionTarget(model, 1, region[0], **how)(x),
    ]
    for entry in entries:
        with pytest.raises(TypeError, match=r"output: .*masks of queries.*torch\.einsum.*call="):
            entry()
        entry(call=put_together)
    with pytest.raises(TypeError, match="in the forward of a module around"):
        attach(model)(model(x), torch.zeros(2, *x.shape[-2:], dtype=torch.long))
    attach(whole)(whole(x), torch.zeros(2, *x.shape[-2:], dtype=torch.long)).backward()
    assert model.queries.grad is not None
    one, two = influence(model, x, patch=4, call=put_together), influence(whole, x, patch=4)
    assert torch.equal(one.values, two.values)
    fix = fixations(model, x, call=put_together, strict=True)
    assert float(fix.mass.sum()) + fix.dropped == fix.started == region.numel()


class Around(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return put_together(self.model, x)


def test_the_function_gets_the_network_without_its_wrapper() -> None:
    (_, other), x = nets(), images(1)

    def checked(model: nn.Module, x: Tensor) -> Any:
        assert model is other
        return call(model, x)

    for wrapped in (nn.DataParallel(other), torch.compile(other, backend="eager")):
        assert torch.equal(called(wrapped, checked)(x)["out"], call(other, x)["out"])  # type: ignore[arg-type]
