"""`borrowed`: how a network runs inside, and that nothing of it is left outside; hooks and random numbers likewise."""

import copy
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Any

import numpy as np
import pytest
import torch
from attribution_cases import Net, busy, images
from model_state import assert_same, snapshot
from torch import Tensor, nn

from perpixel.attribution import influence
from perpixel.borrow import borrowed, called, hooked, random_numbers, unwrap


def put_on(net: Net) -> None:
    """Some of what captum and others do to a network."""
    net.features[0].register_forward_hook(lambda *_: None)
    net.features[3]._forward_hooks.clear()
    net.features[0].other_rule = object()
    del net.features[1].inplace
    net.features[3] = nn.Identity()
    net.classifier.weight.requires_grad_(True)
    net.classifier.bias.grad = None
    net.classifier.bias.data = net.classifier.bias.data.clone() + 1


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("options", [{}, {"gradients": True}, {"restore_all": True}], ids=str)
def test_a_network_comes_back_as_it_was(options: dict[str, Any], fails: bool) -> None:
    net = busy()
    before, memory = snapshot(net), {name: p.data_ptr() for name, p in net.named_parameters()}
    with suppress(ZeroDivisionError), borrowed(net, **options) as evaluated:
        assert not evaluated
        assert not any(layer.training for layer in net.modules())
        assert torch.is_grad_enabled() == bool(options.get("gradients"))
        assert net.features[1].inplace is not options.get("gradients", False)
        net(images())
        if options.get("restore_all"):
            put_on(net)
        if fails:
            raise ZeroDivisionError
    assert_same(snapshot(net), before)
    assert memory == {name: p.data_ptr() for name, p in net.named_parameters()}
    with borrowed(net.eval()) as evaluated:
        assert evaluated


def test_hooks_that_only_record_are_off() -> None:
    seen: list[str] = []

    def hook(name: str) -> Callable[..., None]:
        def run(*_: object) -> None:
            seen.append(name)

        vars(run)["only_records"] = name == "records"
        return run

    net = Net()
    for name in ("records", "works"):
        net.classifier.register_forward_hook(hook(name))
        net.features.register_forward_pre_hook(hook(name))
    with borrowed(net):
        net(images())
    assert seen == ["works"] * 2
    seen.clear()
    net(images())
    assert seen == ["records", "works"] * 2


@pytest.mark.parametrize("processed", [False, True])
def test_post_processing_that_a_model_names_is_off_unless_asked_for(processed: bool) -> None:
    net = nn.Sequential(Net())
    net[0].post_processing, net[0].smooth = "smooth", abs
    net.smooth = net[0].other = abs  # not named
    before = snapshot(net)
    for model in (net, called(net, lambda model, images: model(images))):
        with borrowed(model, processed=processed):
            assert net[0].smooth is (abs if processed else None)
            assert net.smooth is net[0].other is abs
    assert net[0].smooth is abs
    assert_same(snapshot(net), before)


def test_random_numbers_are_put_back() -> None:
    def draw() -> tuple[float, float]:
        return float(torch.rand(())), float(np.random.rand())  # noqa: NPY002

    net = Net()
    contexts = [nullcontext(), borrowed(net), random_numbers(torch.device("cpu")), random_numbers(seed=2**32 + 3)]
    drawn = []
    for context in contexts:
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        with context:
            if drawn:
                torch.rand(5)
        drawn.append(draw())
    assert drawn == drawn[:1] * 4
    seeded = []
    for _ in range(2):
        with random_numbers(seed=2**32 + 3):
            seeded.append(draw())
    assert seeded[0] == seeded[1]
    with borrowed(net, gradients=True):
        first = torch.rand(())
    assert not torch.equal(first, torch.rand(()))


def test_compiled_layers_run_as_they_were_written() -> None:
    runs: list[int] = []

    def backend(module: Any, inputs: Any) -> Any:
        runs.append(1)
        return module.forward

    net = Net()
    expected = net(images())
    net.features = torch.compile(net.features, backend=backend)
    with borrowed(net):
        torch.testing.assert_close(net(images()), expected)
    assert not runs
    net(images())
    assert runs


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_scripted_layers_evaluate() -> None:
    net = torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Dropout(0.5)))
    x = torch.randn(1, 3, 4, 4)
    with borrowed(net):
        torch.testing.assert_close(net(x), net(x), rtol=0, atol=0)
    assert net.training
    assert not torch.equal(net(x), net(x))


def test_borrowing_is_cheap() -> None:
    net = nn.Sequential(*(nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU()) for _ in range(83)))  # 250 layers
    times = []
    for _ in range(50):
        start = time.perf_counter()
        with borrowed(net):
            pass
        times.append(time.perf_counter() - start)
    assert min(times) < 1e-3


@pytest.mark.parametrize("fails", [False, True])
def test_hooked_layers_say_what_they_run(fails: bool) -> None:
    net, runs = Net(), []
    layers = {name: layer for name, layer in net.named_modules() if not layer._modules}
    before = snapshot(net)

    def enter(name: str, layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        assert layer is layers[name]
        runs.append((name, given[0].shape[1]))

    def leave(name: str, layer: nn.Module, gave: Tensor | None) -> None:
        runs.append((name, None if gave is None else gave.shape[1]))

    given = images()[:, :2] if fails else images()
    with pytest.raises(RuntimeError) if fails else nullcontext(), hooked(layers, before=enter, after=leave):
        net(given)
    channels = [(3, 6), (6, 6), (6, 6), (6, 8), (8, 8), (8, 4)]
    expected = [(name, number) for name, both in zip(layers, channels) for number in both]
    assert runs == ([("features.0", 2), ("features.0", None)] if fails else expected)
    assert_same(snapshot(net), before)


def test_hooks_that_cannot_all_be_set_are_all_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net()
    before = snapshot(net)

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no")

    monkeypatch.setattr(net.classifier, "register_forward_hook", refuse)
    note = lambda *_: None  # noqa: E731
    with pytest.raises(OSError, match="no"), hooked(dict(net.named_modules()), before=note, after=note):
        pass
    monkeypatch.undo()
    assert_same(snapshot(net), before)
    assert copy.deepcopy(net) is not net


class Opposite(nn.Module):
    """Holds one layer, called `module`, and gives the opposite of what it gives."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return -self.module(x)


def test_only_known_wrappers_are_taken_off() -> None:
    model = Opposite()
    assert unwrap(model) is model
    wrapped = [nn.DataParallel(model), torch.optim.swa_utils.AveragedModel(model), torch.compile(model)]
    for wrapper in (*wrapped, torch.compile(nn.DataParallel(model))):
        assert type(unwrap(wrapper)) is Opposite
    images = torch.randn(1, 3, 4, 4)
    explained = influence(model, images, patch=2).of(1, torch.ones(1, 4, 4, dtype=torch.bool))
    inner = influence(model.module, images, patch=2).of(1, torch.ones(1, 4, 4, dtype=torch.bool))
    torch.testing.assert_close(explained, -inner)
