"""Tracing and running: the model stays as it was, overwriting operations mean what they meant, memory is let go."""

import copy
import gc
import itertools
import operator
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from perpixel.fixations import FixationRules, Fixations, Step, Units, fixations
from perpixel.fixations.trace import graph
from perpixel.fixations.trace.run import Run

IMAGES = torch.randn(2, 3, 8, 10, generator=torch.Generator().manual_seed(7))


class Base(nn.Module):
    def __init__(self, body: Callable[["Base", Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 3, 1)
        self.relu, self.norm, self.drop = nn.ReLU(inplace=True), nn.BatchNorm2d(4), nn.Dropout(0.5)
        self.same, self.body = nn.Identity(), body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


def before_activation(m: Base, x: Tensor) -> Tensor:
    """The sum reads what the activation wrote over its input."""
    y = m.a(x)
    z = m.b(m.relu(y))
    return m.c(z + y)


def through_identity(m: Base, x: Tensor) -> Tensor:
    y = m.a(x)
    z = m.drop(m.same(y))
    F.relu(z, inplace=True)
    return m.c(m.b(z) + y)


def through_view(m: Base, x: Tensor) -> Tensor:
    y = m.a(x)
    y.relu_()
    z = y.flatten(2).view_as(y)
    return m.c(m.b(y) + z)


def added_in_place(m: Base, x: Tensor) -> Tensor:
    y = m.a(x)
    z = m.b(y)
    z += y
    y = torch.relu_(y)
    return m.c(z.add_(y))


def image_overwritten(m: Base, x: Tensor) -> Tensor:
    return m.c(m.b(F.relu(m.a(m.relu(x)))))


@pytest.mark.parametrize("body", [before_activation, through_identity, through_view, added_in_place, image_overwritten])
def test_overwriting_operations_keep_their_meaning(body: Callable[[Base, Tensor], Tensor]) -> None:
    model, images = Base(body).eval(), IMAGES.clone()
    with torch.no_grad():
        expected = model(IMAGES.clone())
    for _ in range(3):  # the second and third run use what the first found out
        run = forward(model, images)
        assert torch.equal(run, expected)
        assert torch.equal(images, IMAGES)
    assert model.relu.inplace


STATEMENTS: list[Callable[[Base, Tensor, Tensor], Tensor]] = [
    lambda m, v, w: m.b(v),
    lambda m, v, w: m.relu(v),
    lambda m, v, w: F.relu(v, inplace=True),
    lambda m, v, w: F.relu(v, True),
    lambda m, v, w: v.mul_(-1),
    lambda m, v, w: torch.abs_(v),
    lambda m, v, w: operator.iadd(v, w),
    lambda m, v, w: operator.isub(v, 1),
    lambda m, v, w: v + w,
    lambda m, v, w: v.view(2, 4, -1).view_as(v),
    lambda m, v, w: v[:, :4],
    lambda m, v, w: m.drop(m.same(v)),
    lambda m, v, w: v.detach().contiguous(),
    lambda m, v, w: torch.cat([v, w], 1)[:, 2:6],
    lambda m, v, w: torch.cat(v.split(2, 1)[::-1], 1),
]


@given(st.lists(st.tuples(st.integers(0, 14), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=8))
@settings(max_examples=150, deadline=None)
def test_any_program_means_what_it_means_or_is_refused(program: list[tuple[int, int, int]]) -> None:
    def body(m: Base, x: Tensor) -> Tensor:
        variables = [m.a(x), m.a(-x)]
        for statement, one, other in program:
            v, w = variables[one % len(variables)], variables[other % len(variables)]
            variables.append(STATEMENTS[statement](m, v, w))
        return m.c(torch.cat(variables, 1).unflatten(1, (-1, 4)).mean(1))

    model = Base(body).eval()
    with torch.no_grad():
        expected = model(IMAGES.clone())
    try:
        for _ in range(3):
            assert torch.equal(forward(model, IMAGES, start=torch.full((2, 8, 10), 255)), expected)
    except TypeError as error:
        assert "overwrites a part" in str(error)  # noqa: PT017


def test_a_part_that_is_overwritten_is_refused() -> None:
    def body(m: Base, x: Tensor) -> Tensor:
        y = m.a(x)
        y[:, :2].relu_()
        return m.c(y)

    with pytest.raises(TypeError, match="node 'relu_', which overwrites a part"):
        fixations(Base(body), IMAGES)


def test_the_model_stays_as_it_was() -> None:
    model = Base(before_activation)
    model.norm.eval()
    model.b.weight.requires_grad_(False)
    model.a.weight.grad = torch.ones_like(model.a.weight)
    calls = []
    model.a.register_forward_hook(lambda *_: calls.append("forward"))
    model.register_forward_pre_hook(lambda *_: calls.append("before"))
    state, before = copy.deepcopy(model.state_dict()), description(model)
    fixations(model, IMAGES, record=True, k=2)
    assert description(model) == before
    assert calls == ["before", "forward"] * 2  # hooks are part of the model; the first run is made twice
    fixations(model, IMAGES)
    assert calls == ["before", "forward"] * 3
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_the_model_stays_as_it_was_after_an_error_midway() -> None:
    def fails(units: Units, step: Step) -> list:
        raise RuntimeError("midway")

    model = Base(before_activation)
    before = description(model)
    with pytest.raises(RuntimeError, match="midway"):
        fixations(model, IMAGES, rules=FixationRules(extra={nn.ReLU: fails}))
    with pytest.raises(RuntimeError, match="channels"):
        fixations(model, torch.randn(1, 5, 8, 8))
    assert description(model) == before


def test_batch_norm_and_dropout_run_as_in_evaluation() -> None:
    model = Base(lambda m, x: m.c(m.drop(m.norm(m.a(x)))))
    statistics = model.norm.running_mean.clone()
    one = fixations(model.train(), IMAGES)
    assert torch.equal(model.norm.running_mean, statistics)
    same(one, fixations(model.eval(), IMAGES))


def test_code_that_asks_for_sizes_is_traced_for_each_size() -> None:
    def body(m: Base, x: Tensor) -> Tensor:
        n, _, height, width = x.size()
        if height % 2 or width % 2:
            raise ValueError("sizes must be even")
        parts = torch.chunk(m.a(x), 2, dim=1)
        for part in parts:
            assert part.shape[0] == n
        y = torch.cat([part * len(parts) for part in parts], 1)
        return m.c(y if x.shape[2] > 9 else m.b(y))

    model = Base(body)
    for size in ((8, 10), (10, 8), (8, 10)):
        fix = fixations(model, torch.randn(1, 3, *size), record=True)
        assert ("b" in fix.layers) == (size[0] <= 9)
        assert float(fix.mass.sum()) == 80
    with pytest.raises(ValueError, match="sizes must be even"):
        fixations(model, torch.randn(1, 3, 7, 8))


def test_changed_weights_and_replaced_layers_are_seen() -> None:
    model = Base(before_activation)
    fixations(model, IMAGES)
    for change in (
        lambda: nn.init.normal_(model.b.weight),
        lambda: model.a.weight.data.neg_(),
        lambda: setattr(model, "b", nn.Conv2d(4, 4, 3, padding=1)),
        lambda: setattr(model, "relu", nn.Hardswish()),
        lambda: model.load_state_dict(Base(before_activation).state_dict()),
    ):
        change()
        fresh = Base(before_activation)
        fresh.relu = model.relu
        fresh.load_state_dict(model.state_dict())
        same(fixations(model, IMAGES), fixations(fresh, IMAGES))


def chain(m: Base, x: Tensor) -> Tensor:
    return m.c(m.b(m.relu(m.a(x))))


def without_activation(m: Base, x: Tensor) -> Tensor:
    return m.c(m.b(m.a(x)))


def by_value(m: Base, x: Tensor) -> Tensor:
    return chain(m, x) if float(x.sum()) > 0 else without_activation(m, x)


def by_attempt(m: Base, x: Tensor) -> Tensor:
    y = m.a(x)
    try:
        y = y.view(-1, 4, y.shape[2] * 8 // 8, 10).relu() if y.shape[3] % 2 == 0 else y
    except (RuntimeError, TypeError):
        return m.c(y)
    return m.c(m.b(y))


@pytest.mark.parametrize(
    ("body", "plain"),
    [
        (lambda m, x: chain(m, x) if isinstance(m.a(x), Tensor) else without_activation(m, x), chain),
        (lambda m, x: chain(m, x) if type(x) is Tensor else without_activation(m, x), chain),
        (lambda m, x: chain(m, x) if torch.jit.isinstance(x, Tensor) else without_activation(m, x), chain),
        (lambda m, x: m.c(m.b(m.a(x).relu() if callable(getattr(x, "numpy", None)) else m.a(x))), chain),
        (by_attempt, chain),
        (by_value, without_activation),
    ],
)
def test_the_branch_that_the_model_takes_is_followed(body: Callable, plain: Callable) -> None:
    images = -IMAGES.abs()
    model, other = Base(body), Base(plain)
    other.load_state_dict(model.state_dict())
    for batch in (images, images.flip(2), images):
        same(fixations(model, batch), fixations(other, batch))


def test_what_changes_outside_of_the_layers_is_seen() -> None:
    """An attribute, a global, a setting of a layer, a plain tensor that forward reads; a hook that changes outputs."""
    use = [True]

    def body(m: Base, x: Tensor) -> Tensor:
        y = m.a(x) * m.sign if m.scaled else m.a(x)
        return m.c(m.b(m.relu(y) if use[0] else y))

    model = Base(body)
    model.scaled, model.sign = False, torch.tensor(1.0)

    def fresh(change: Callable[[Tensor], Tensor] = lambda y: y) -> Fixations:
        other = copy.deepcopy(model)
        other.body = lambda m, x: m.c(m.b(change(m.a(x))))
        return fixations(other, IMAGES)

    same(fixations(model, IMAGES), fresh(torch.relu))
    use[0] = False
    same(fixations(model, IMAGES), fresh())
    model.scaled, model.sign = True, torch.tensor(-1.0)
    same(fixations(model, IMAGES), fresh(torch.neg))
    model.sign.fill_(1.0)
    same(fixations(model, IMAGES), fresh())
    handle = model.a.register_forward_hook(lambda layer, given, output: output.flip(1))
    expected = fresh()  # the copy has the hook too
    assert len(expected.nodes) == len(fixations(model, IMAGES).nodes)
    same(fixations(model, IMAGES), expected)
    handle.remove()
    other = copy.deepcopy(model)
    other.body = lambda m, x: m.c(m.b(m.a(x).flip(1)))
    same(expected, fixations(other, IMAGES))
    model.b.stride = (2, 2)
    same(fixations(model, IMAGES), fresh())


def test_a_setting_of_a_layer_and_an_end_that_change_are_seen() -> None:
    """The same operations on the same operands, of other sizes; and fewer operations than before."""

    def body(m: Base, x: Tensor) -> Tensor:
        y = m.c(m.b(F.pad(m.a(x), (0, 2, 0, 2))[..., 1:9, 1:11]))
        return -y if m.negative else y

    model = Base(body)
    model.negative = True
    for _ in range(3):
        same(fixations(model, IMAGES), fixations(copy.deepcopy(model), IMAGES))
    model.negative = False
    for _ in range(3):
        same(fixations(model, IMAGES), fixations(copy.deepcopy(model), IMAGES))
    model.b.stride = (2, 2)
    for _ in range(2):
        found = fixations(model, IMAGES)
        same(found, fixations(copy.deepcopy(model), IMAGES))
        assert found.started == 2 * 4 * 5


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_weights_made_by_hooks_are_those_of_the_run() -> None:
    model = Base(chain)
    torch.nn.utils.weight_norm(model.b)
    fixations(model, IMAGES)
    with torch.no_grad():
        model.b.weight_g[:2] *= -3.0
        plain = Base(chain)
        plain.a, plain.c = model.a, model.c
        plain.b.weight.copy_(torch._weight_norm(model.b.weight_v, model.b.weight_g, 0))
        plain.b.bias.copy_(model.b.bias)
    same(fixations(model, IMAGES), fixations(plain, IMAGES))


@pytest.mark.parametrize("edit", [(5, 17, 1, 2), (0, 0, 0, 0), (39, 63, 2, 2)])
def test_one_weight_that_is_edited_through_data_is_seen(edit: tuple[int, int, int, int]) -> None:
    """A single element, whose change no counter tells, decides where all points go."""
    first, second = nn.Conv2d(3, 64, 1), nn.Conv2d(64, 40, 3, padding=1)
    model = nn.Sequential(first, nn.Hardsigmoid(), second, nn.Conv2d(40, 2, 1))
    with torch.no_grad():
        model[3].weight.fill_(0.01)
        model[3].weight[:, edit[0]] = 1.0
    fixations(model, IMAGES)
    second.weight.data[edit] = 1000.0
    found = fixations(model, IMAGES, record=True)
    same(found, fixations(copy.deepcopy(model), IMAGES))
    on_channel = found.layers["_1"].points[:, 2] == edit[1]
    assert float(found.layers["_1"].mass[on_channel].sum()) > 100  # of 160; at the border the tap is outside


class Script(nn.Module):
    def __init__(self, script: bool) -> None:
        super().__init__()
        layer = nn.Conv2d(3, 3, 1)
        self.inner = torch.jit.trace(layer, IMAGES) if script else layer

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + x


@pytest.mark.parametrize(
    "model",
    [
        lambda: Script(script=True),
        lambda: Base(lambda m, x: m.c(m.a(x) + torch.from_numpy(m.a(x).abs().numpy()))),
        lambda: Base(lambda m, x: m.c(m.a(x) + torch.tensor(m.a(x).tolist()))),
        lambda: Base(lambda m, x: torch.from_numpy(m.c(m.a(x)).numpy())),
        lambda: torch.jit.trace(nn.Conv2d(3, 2, 1), IMAGES),
    ],
)
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore:`torch.jit:FutureWarning")
def test_code_that_torch_does_not_see_is_refused(model: Callable[[], nn.Module]) -> None:
    with pytest.raises(TypeError, match=r"cannot be followed|or an extension"):
        fixations(model(), IMAGES)


def test_constants_made_by_numpy_are_allowed() -> None:
    model = Base(lambda m, x: m.c(m.b(m.a(x) + torch.from_numpy(np.full((4, 1, 1), -100.0, np.float32)))))
    plain = Base(lambda m, x: m.c(m.b(m.a(x) + torch.full((4, 1, 1), -100.0))))
    plain.load_state_dict(model.state_dict())
    same(fixations(model, IMAGES), fixations(plain, IMAGES))


def test_a_model_that_does_not_repeat_itself_is_refused() -> None:
    model = Base(lambda m, x: chain(m, x) if next(m.turns) % 2 else without_activation(m, x))
    model.turns = itertools.count()
    with pytest.raises(TypeError, match="a network that repeats its operations"):
        fixations(model, IMAGES)


def test_graphs_are_kept_for_a_few_sizes_only() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
    for size in (*range(8, 24), 8):
        images = torch.randn(1, 3, size, size)
        same(fixations(model, images), fixations(copy.deepcopy(model), images))
    assert len(graph._TRACES[model]) == graph._SIZES


def test_strict_refuses_what_no_point_reaches_yet() -> None:
    """The sum goes to the larger branch; whether points ever reach the other depends on the images."""
    model = Base(lambda m, x: m.c(100 * m.a(x).abs() + 1e-3 * m.b(m.a(x)).cumsum(2)))
    fixations(Base(lambda m, x: m.c(m.a(x) + 1e-3 * m.b(m.a(x)))), IMAGES, strict=True)
    for _ in range(2):
        with pytest.raises(NotImplementedError, match=r"node '(abs_1|cumsum)'"):
            fixations(model, IMAGES, start=torch.full((2, 8, 10), 255), strict=True)
    assert fixations(model, IMAGES, start=torch.full((2, 8, 10), 255)).started == 0


def test_a_dropped_model_is_let_go() -> None:
    model = Base(before_activation)
    fixations(model, IMAGES)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_memory_format_and_wrappers_do_not_matter() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 3, 1)
    )
    model, images = model.double(), IMAGES.double()
    expected = fixations(model, images)
    same(fixations(torch.compile(model), images), expected)
    model.to(memory_format=torch.channels_last)
    same(fixations(model, images.contiguous(memory_format=torch.channels_last)), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_keep_the_mass(dtype: torch.dtype) -> None:
    fix = fixations(Base(before_activation).to(dtype), IMAGES.to(dtype))
    assert float(fix.mass.sum()) == fix.started == 160


def test_inference_mode_is_allowed() -> None:
    model = Base(before_activation)
    expected = fixations(model, IMAGES)
    with torch.inference_mode():
        same(fixations(copy.deepcopy(model), IMAGES.clone()), expected)


def test_autocast_is_allowed() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fix = fixations(Base(before_activation), IMAGES)
    assert float(fix.mass.sum()) == fix.started


def test_values_are_freed_when_nothing_reads_them_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of conv, norm, activation only what the next convolution reads is kept; on the way back even that goes."""
    layers = [layer for _ in range(6) for layer in (nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())]
    model = nn.Sequential(nn.Conv2d(3, 4, 1), *layers, nn.Conv2d(4, 3, 1))
    held: list[int] = []
    runs: list[Run] = []
    original = Run.start_from

    def watch(self: Run, node: object) -> None:
        original(self, node)
        runs.append(self)
        held.append(sum(value.numel() for value in self.values.values()))

    monkeypatch.setattr(Run, "start_from", watch)
    for _ in range(3):
        fixations(model, IMAGES)
        assert len(runs[-1].values) <= 1  # the image, which is the caller's
    assert held == [IMAGES.numel() + 7 * 2 * 4 * 8 * 10] * 3


def forward(model: nn.Module, images: Tensor, **options: Any) -> Tensor:
    """What the run behind `fixations` computes."""
    found: list[Tensor] = []
    original = Run.forward

    def keep(self: Run) -> object:
        output = original(self)
        found.append(output.clone())
        return output

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "forward", keep)
        fixations(model, images, **options)
    return found[0]


def description(model: nn.Module) -> list[object]:
    parameters = [(n, id(p), p.requires_grad, p._version, id(p.grad)) for n, p in model.named_parameters()]
    layers = [
        (n, id(m), m.training, getattr(m, "inplace", None), sorted(m.__dict__), len(m._forward_hooks))
        for n, m in model.named_modules()
    ]
    return [parameters, layers, [(n, id(b), b._version) for n, b in model.named_buffers()]]


def same(one: Fixations, other: Fixations) -> None:
    assert torch.equal(one.points, other.points)
    assert torch.equal(one.mass, other.mass)


def test_the_output_may_be_used_for_more_than_to_be_returned() -> None:
    class Net(nn.Sequential):
        def forward(self, x: Tensor) -> Any:
            logits = super().forward(x)
            return {"out": logits, "aux": logits * 0, "flat": logits.flatten()}

    layers = [nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 1)]
    for _ in range(2):
        fix, plain = (fixations(kind(*layers), torch.ones(1, 2, 6, 6)) for kind in (Net, nn.Sequential))
        assert torch.equal(fix.points, plain.points)


@pytest.mark.parametrize(
    ("by_name", "by_place"),
    [
        (lambda a, b: torch.sub(other=b, input=a), lambda a, b: torch.sub(a, b)),
        (lambda a, b: torch.add(other=b, alpha=-2, input=a), lambda a, b: torch.add(a, b, alpha=-2)),
        (lambda a, b: torch.div(other=b.sigmoid(), input=a), lambda a, b: a / b.sigmoid()),
        (lambda a, b: torch.matmul(other=b.mT, input=a.softmax(-1)), lambda a, b: a.softmax(-1) @ b.mT),
        (lambda a, b: torch.where(other=b, input=a, condition=a > 0), lambda a, b: torch.where(a > 0, a, b)),
        (lambda a, b: torch.masked_fill(mask=b > 0, value=0.0, input=a), lambda a, b: a.masked_fill(b > 0, 0.0)),
        (lambda a, b: a.sub(other=b), lambda a, b: a - b),
        (lambda a, b: a.where(b > 0, other=b), lambda a, b: torch.where(b > 0, a, b)),
        (lambda a, b: torch.cat(dim=1, tensors=[a, b]), lambda a, b: torch.cat([a, b], 1)),
    ],
)
def test_operands_given_by_name_are_told_apart(by_name: Callable, by_place: Callable) -> None:
    torch.manual_seed(0)
    model = Base(lambda m, x: by_place(m.a(x), m.b(m.a(x))))
    other = copy.deepcopy(model)
    other.body = lambda m, x: by_name(m.a(x), m.b(m.a(x)))
    found, expected = fixations(other.eval(), IMAGES), fixations(model.eval(), IMAGES)
    assert torch.equal(found.points, expected.points)
    assert torch.equal(found.mass, expected.mass)
