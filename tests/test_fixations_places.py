"""Operations that only move, cut, join or gate: the point goes where the gradient of the unit is."""

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d

from perpixel.fixations import Fixations, fixations

Body = Callable[[Tensor], Tensor]
MOVES: dict[str, Body] = {
    "crop": lambda x: x[:, :, 1:5, 2:-1],
    "stride": lambda x: x[..., ::2, 1::3],
    "channels": lambda x: x[:, 1:3],
    "pad": lambda x: F.pad(x, (1, 2, 0, 1)),
    "reflect": lambda x: F.pad(x, (1, 2, 2, 1), mode="reflect"),
    "flip": lambda x: torch.flip(x, (2, 3)),
    "roll": lambda x: x.roll(2, -1),
    "turn": lambda x: x.permute(0, 1, 3, 2),
    "shuffle channels": lambda x: x.view(x.size(0), 2, 2, 6, 7).transpose(1, 2).reshape(x.size(0), 4, 6, 7),
    "pixel unshuffle": lambda x: F.pixel_unshuffle(x[..., :6], 2),
    "pixel shuffle": lambda x: F.pixel_shuffle(x, 2),
    "flatten and back": lambda x: x.flatten(1).unflatten(1, (4, 6, 7)),
    "chunk": lambda x: torch.chunk(x, 2, 1)[1],
    "split": lambda x: torch.split(x, [1, 3], 1)[1],
    "cat": lambda x: torch.cat([x[:, 2:], 2 * x, x[:, :1]], 1),
    "cat rows": lambda x: torch.cat([x[:, :, 4:], x], dim=-2),
    "expand": lambda x: x[:, :, :1].expand(-1, -1, 6, -1),
    "scale": lambda x: x * 3 / 2,
    "negative": lambda x: -x,
    "gate of channels": lambda x: torch.sigmoid(x.mean((2, 3), keepdim=True)).detach() * x,
    "gate of places": lambda x: x * torch.sigmoid(x[:, :1]).detach(),
    "gate of units": lambda x: x * torch.sigmoid(x).detach(),
    "constants": lambda x: 1 + x + torch.ones(1, 4, 1, 1, dtype=torch.float64) - 2,
}
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "zero padding": lambda: nn.ZeroPad2d((1, 0, 2, 1)),
    "replication": lambda: nn.ReplicationPad2d(2),
    "channel shuffle": lambda: nn.ChannelShuffle(2),
    "response norm": lambda: nn.LocalResponseNorm(2),
    "frozen norm": lambda: FrozenBatchNorm2d(4),
}


class Only(nn.Module):
    def __init__(self, body: Body) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def by_gradient(model: nn.Module, images: Tensor) -> tuple[Counter, int]:
    images = images.clone().requires_grad_()
    output = model(images)
    found: Counter = Counter()
    dropped = 0
    for n, (y, x) in ((n, divmod(p, output.shape[3])) for n in range(len(output)) for p in range(output[0, 0].numel())):
        values = output[n, :, y, x]
        label = int(values.argmax()) if len(values) > 1 else int(values[0] > 0)
        (gradient,) = torch.autograd.grad(values.max(), images, retain_graph=True)
        if not gradient.any():
            dropped += 1
            continue
        place = int(gradient[n].abs().argmax())
        found[(n, label, place // 42, place % 42 // 7, place % 7)] += 1
    return found, dropped


@pytest.mark.parametrize("name", [*MOVES, *LAYERS])
def test_the_point_goes_where_the_gradient_is(name: str) -> None:
    model = Only(MOVES[name]) if name in MOVES else LAYERS[name]().double()
    images = torch.randn(2, 4, 6, 7, dtype=torch.float64)
    expected, dropped = by_gradient(model, images)
    fix = fixations(model, images)
    assert masses(fix) == expected
    assert fix.dropped == dropped


@pytest.mark.parametrize("norm", [nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True), nn.BatchNorm2d(4)])
@pytest.mark.parametrize("functional", [False, True])
def test_a_negative_scale_turns_the_sign_over(norm: nn.Module, functional: bool) -> None:
    norm.weight.data = torch.tensor([1.0, -1.0, 2.0, -3.0])
    if functional:
        frozen = FrozenBatchNorm2d(4)
        frozen.weight.copy_(norm.weight.data)
        norm = frozen
    fix = fixations(norm.eval(), torch.randn(2, 4, 6, 7))
    assert torch.equal(fix.sign, torch.tensor([1, -1, 1, -1])[fix.points[:, 2]])


def test_a_difference_asks_the_second_branch_for_the_opposite() -> None:
    image = torch.tensor([1.0, -5.0]).view(1, 2, 1, 1)
    fix = fixations(Only(lambda x: x[:, :1] - x[:, 1:]), image)
    assert fix.points.tolist() == [[0, 1, 1, 0, 0]]
    assert fix.sign.tolist() == [-1]


def test_a_linear_layer_over_channels_last_is_a_convolution() -> None:
    linear, conv = nn.Linear(4, 5).double(), nn.Conv2d(4, 5, 1).double()
    conv.weight.data, conv.bias.data = linear.weight.data[:, :, None, None], linear.bias.data
    images = torch.randn(2, 4, 6, 7, dtype=torch.float64)

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = linear

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    assert masses(fixations(Last(), images)) == masses(fixations(conv, images))


@pytest.mark.parametrize("body", [lambda x: x.flip(0), lambda x: x.flatten(0, 1)[:, None], lambda x: x * x.flip(2)])
def test_what_cannot_be_followed_is_refused(body: Body) -> None:
    with pytest.raises(NotImplementedError, match=r"node '.*FixationRules"):
        fixations(Only(body), torch.randn(2, 4, 6, 7))


def masses(fix: Fixations) -> Counter:
    return Counter({tuple(p): m for p, m in zip(fix.points.tolist(), fix.mass.tolist())})
