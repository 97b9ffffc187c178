"""Attention and the placement around it, against loops from softmax(Q K^T) V."""

import math
from collections import Counter
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perpixel.fixations import FixationRules, Share, fixations

D = torch.float64
HEADS, WIDTH, CLASSES = 2, 3, 6
MASKED = torch.rand(20, 20, generator=torch.Generator().manual_seed(0)) > 0.4
MASKED[:, 3] = True


class Attention(nn.Module):
    """Images (N, 6, H, W) to softmax(Q K^T) V: two heads of three channels, one token per pixel."""

    how: ClassVar[dict[str, Any]] = {}

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.randn(2, HEADS * WIDTH, HEADS * WIDTH, dtype=D), requires_grad=False)

    def qkv(self, x: Tensor) -> list[Tensor]:
        tokens = x.flatten(2).transpose(1, 2)
        mixed = (tokens @ self.mix[0], tokens @ self.mix[1], tokens)
        return [t.view(*t.shape[:2], HEADS, WIDTH).transpose(1, 2) for t in mixed]

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        p = (q @ k.transpose(-2, -1) / math.sqrt(WIDTH)).softmax(-1)
        return F.dropout(p, 0.5, self.training) @ v

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(*self.qkv(x)).transpose(1, 2).flatten(2).transpose(1, 2).reshape(x.shape)


class Functional(Attention):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, **self.how)


class Masked(Functional):
    how: ClassVar = {"attn_mask": MASKED}


class Biased(Functional):
    how: ClassVar = {"attn_mask": torch.randn(1, HEADS, 20, 20, dtype=D).masked_fill(~MASKED, -math.inf), "scale": 0.3}


class Causal(Functional):
    how: ClassVar = {"is_causal": True}


class Einsum(Attention):
    """The tokens before the heads, as many write it; the scores with dots for what is common."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        p = (torch.einsum("...id,...jd", q, k) / math.sqrt(WIDTH)).softmax(-1)
        return torch.einsum("bhij, bjhd -> bihd", p, v.transpose(1, 2)).transpose(1, 2)


class EinsumOfOneImage(Attention):
    """Values on the left, channels in two parts, and operands in a list."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        p = torch.einsum("nhid,nhjd->nhij", q, k / math.sqrt(WIDTH)).softmax(3)
        parts = v.reshape(v.shape[0], HEADS, 4, 5, WIDTH)
        return torch.einsum("nhyxd,nhiyx->dinh", [parts, p.unflatten(3, (4, 5))]).permute(2, 3, 1, 0)


class HeadsInTheBatch(Attention):
    """bmm over (N * heads), with the values on the left, and a stack cut into queries, keys and values."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.flatten(0, 1) for t in torch.stack([q, k, v]).unbind(0))
        p = nn.functional.softmax(torch.bmm(q, k.transpose(1, 2)) * WIDTH**-0.5, dim=-1)
        return torch.bmm(v.transpose(1, 2), p.permute(0, 2, 1)).transpose(1, 2).unflatten(0, (-1, HEADS))


class TokensFirst(Functional):
    """(3, tokens, N, ...), as code that puts the sequence first has it; with parts cut out and joined again."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.permute(2, 0, 1, 3) for t in self.qkv(x))
        first, second = torch.cat([v, v * 1], 0).chunk(2, 0)
        v = torch.cat([first[:4], torch.split(second, [4, 16])[1]], dim=0)
        out = self.attend(*(t.permute(1, 2, 0, 3) for t in (q, k, v))).permute(2, 0, 1, 3)
        return out.flatten(2).permute(1, 2, 0).reshape(x.shape)


NETS = [Attention, Einsum, EinsumOfOneImage, Functional, Masked, Biased, Causal, HeadsInTheBatch, TokensFirst]


def slow(model: Attention, images: Tensor, start: Tensor) -> tuple[Counter, Counter]:
    """By loops over the points: mass and sign at (image, label, channel, y, x)."""
    q, k, v = model.qkv(images)
    width = images.shape[3]
    found: Counter = Counter()
    signs: Counter = Counter()
    allowed = getattr(model, "how", {}).get("attn_mask")
    scale = getattr(model, "how", {}).get("scale", WIDTH**-0.5)
    for n, y, x in torch.cartesian_prod(*(torch.arange(size) for size in start.shape)).tolist():
        label, i = int(start[n, y, x]), y * width + x
        head, d = divmod(label, WIDTH)
        scores = []
        for j in range(v.shape[2]):
            score = float(q[n, head, i] @ k[n, head, j]) * scale
            if allowed is not None and allowed.dtype == torch.bool:
                score = score if allowed[i, j] else -math.inf
            elif allowed is not None:
                score += float(allowed[0, head, i, j])
            scores.append(-math.inf if isinstance(model, Causal) and j > i else score)
        total = sum(math.exp(s) for s in scores)
        given = {j: math.exp(s) / total * float(v[n, head, j, d]) for j, s in enumerate(scores) if s > -math.inf}
        best = max(given, key=lambda j: given[j])
        found[n, label, label, best // width, best % width] += 1
        signs[n, label, label, best // width, best % width] = -1 if v[n, head, best, d] < 0 else 1
    return found, signs


@pytest.mark.parametrize("shift", [0, -4], ids=["signs", "negative"])
@pytest.mark.parametrize("kind", NETS)
def test_points_go_to_the_token_that_gives_most(kind: type[Attention], shift: float) -> None:
    model = kind().eval()
    images = torch.randn(3, HEADS * WIDTH, 4, 5, dtype=D) + shift
    start = torch.randint(0, CLASSES, (3, 4, 5))
    fix = fixations(model, images, start=start, strict=True)
    mass, signs = slow(model, images, start)
    points = [tuple(p) for p in fix.points.tolist()]
    assert dict(zip(points, fix.mass.tolist())) == mass
    assert dict(zip(points, fix.sign.tolist())) == signs
    assert fix.dropped == 0
    for n in range(3):
        single = fixations(model, images[n : n + 1], start=start[n : n + 1])
        assert torch.equal(single.points[:, 1:], fix.points[fix.points[:, 0] == n][:, 1:])
        assert torch.equal(single.mass, fix.mass[fix.points[:, 0] == n])


@pytest.mark.parametrize("kind", NETS)
def test_skipped_attention_leaves_points_at_their_token(kind: type[Attention]) -> None:
    images = torch.randn(2, HEADS * WIDTH, 4, 5, dtype=D)
    start = torch.randint(0, CLASSES, (2, 4, 5))
    model = kind().eval()
    for rules in (FixationRules(attention="skip"), FixationRules(), FixationRules(attention="skip")):
        fix = fixations(model, images, start=start, rules=rules)
        stays = {(n, int(start[n, y, x]), y, x) for n in range(2) for y in range(4) for x in range(5)}
        assert ({(n, c, y, x) for n, c, _, y, x in fix.points.tolist()} == stays) == (rules.attention == "skip")


@pytest.mark.parametrize("kind", [Attention, Functional, HeadsInTheBatch])
@pytest.mark.parametrize("k", [3, Share(0.7)])
def test_several_tokens_share_a_point(kind: type[Attention], k: Any) -> None:
    model, images = kind().eval(), torch.randn(2, HEADS * WIDTH, 4, 5, dtype=D)
    start = torch.full((2, 4, 5), 255)
    start[1, 2, 3] = 4
    q, keys, v = model.qkv(images)
    given = (q[1, 1, 13] @ keys[1, 1].T / math.sqrt(WIDTH)).softmax(0) * v[1, 1, :, 1]
    given, tokens = given.sort(descending=True)
    many = 3 if k == 3 else int(((given.cumsum(0) - given) < 0.7 * given.sum()).sum())
    given = given.clamp(min=0)[:many]
    fix = fixations(model, images, start=start, k=k)
    expected = {(int(t) // 5, int(t) % 5): float(g / given.sum()) for t, g in zip(tokens, given) if g > 0}
    assert {(y, x): m for (*_, y, x), m in zip(fix.points.tolist(), fix.mass.tolist())} == pytest.approx(expected)


class Net(nn.Module):
    def __init__(self, forward: Any) -> None:
        super().__init__()
        self.given, self.weight = forward, nn.Parameter(torch.randn(4, 4, dtype=D))

    def forward(self, x: Tensor) -> Tensor:
        return self.given(x, self.weight)


def test_a_constant_matrix_is_followed_as_a_linear_layer() -> None:
    images = torch.randn(2, 4, 3, 4, dtype=D)
    by_matrix = Net(lambda x, w: (x.permute(0, 2, 3, 1) @ w).permute(0, 3, 1, 2))
    by_layer = Net(lambda x, w: F.linear(x.permute(0, 2, 3, 1), w.t()).permute(0, 3, 1, 2))
    from_left = Net(lambda x, w: torch.matmul(w.t(), x.flatten(2)).view(x.shape))
    by_layer.weight = from_left.weight = by_matrix.weight
    expected = fixations(by_layer, images)
    for model in (by_matrix, from_left):
        fix = fixations(model, images, strict=True)
        assert torch.equal(fix.points, expected.points)
        assert torch.equal(fix.mass, expected.mass)
        assert torch.equal(fix.sign, expected.sign)


def test_a_choice_by_condition_goes_to_what_was_chosen() -> None:
    images = torch.randn(2, 4, 3, 4, dtype=D)
    model = Net(lambda x, w: torch.where(x > 0, x, x.roll(1, 3)) + torch.where(x > 9, 1.0, x))
    chosen = Net(lambda x, w: torch.where(x > 0, x, x.roll(1, 3)))
    start = images.argmin(1)
    fix = fixations(chosen, images, start=start, strict=True)
    expected: Counter = Counter()
    for n, y, x in torch.cartesian_prod(*(torch.arange(size) for size in start.shape)).tolist():
        c = int(start[n, y, x])
        expected[n, c, c, y, x if images[n, c, y, x] > 0 else (x - 1) % 4] += 1
    assert dict(zip(map(tuple, fix.points.tolist()), fix.mass.tolist())) == expected
    assert fixations(model, images).started == 24


def test_a_factor_that_was_expanded_is_the_gate_as_if_it_were_broadcast() -> None:
    images = torch.randn(2, 4, 3, 4, dtype=D)
    one, other = (Net(lambda x, w, how=how: x * how(x.mean((2, 3), keepdim=True), x)) for how in (_as_is, _expanded))
    expected, fix = (fixations(model, images, strict=True) for model in (one, other))
    assert torch.equal(fix.points, expected.points)
    assert torch.equal(fix.sign, expected.sign)


def test_what_is_followed_elsewhere_is_kept_when_a_gate_made_of_it_is_not() -> None:
    def forward(x: Tensor, w: Tensor) -> Tensor:
        value = F.conv2d(x, w[..., None, None])
        return value.relu() * value.mean((2, 3), keepdim=True).expand_as(value)

    assert fixations(Net(forward), torch.randn(2, 4, 3, 4, dtype=D), strict=True).dropped == 0


def _as_is(context: Tensor, x: Tensor) -> Tensor:
    return context


def _expanded(context: Tensor, x: Tensor) -> Tensor:
    return context.expand_as(x)


def test_values_may_be_broadcast_to_the_probabilities() -> None:
    images = torch.randn(2, 4, 3, 3, dtype=D)
    of_one = Net(lambda x, w: x.softmax(-1) @ x[:, :1])
    written_out = Net(lambda x, w: x.softmax(-1) @ (x[:, :1].expand_as(x) * 1))
    one, other = (fixations(model, images, strict=True) for model in (of_one, written_out))
    assert torch.equal(one.points, other.points)
    assert torch.equal(one.mass, other.mass)


def test_linear_attention_goes_through_the_state_to_its_values() -> None:
    """relu(q) (relu(k)^T v): to the channel of the state that gives most, and there to the token that gives most."""
    images = torch.randn(1, 3, 2, 4, dtype=D)
    model = Net(lambda x, w: (x.flatten(2).mT.relu() @ (x.flatten(2).relu() @ x.flatten(2).mT)).mT.view(x.shape))
    start = torch.randint(0, 3, (1, 2, 4))
    fix = fixations(model, images, start=start, strict=True)
    tokens = images[0].flatten(1)
    state = tokens.relu() @ tokens.T
    expected: Counter = Counter()
    for i, c in enumerate(start.flatten().tolist()):
        e = max(range(3), key=lambda e: float(tokens[e, i].relu() * state[e, c]) if tokens[e, i] > 0 else -math.inf)
        if tokens[:, i].max() <= 0:
            continue
        sign = -1 if state[e, c] < 0 else 1
        seen = [j for j in range(8) if tokens[e, j] > 0]
        j = max(seen, key=lambda j: sign * float(tokens[e, j] * tokens[c, j]))
        expected[0, c, c, j // 4, j % 4] += 1
    assert dict(zip(map(tuple, fix.points.tolist()), fix.mass.tolist())) == expected
    assert fix.dropped == 8 - sum(expected.values())


@pytest.mark.parametrize("kind", [Attention, Functional, HeadsInTheBatch])
def test_attention_does_not_change_the_resolution(kind: type[Attention]) -> None:
    model, images = kind().eval(), torch.randn(2, HEADS * WIDTH, 4, 5, dtype=D)
    one, other = fixations(model, images), fixations(model, images, k="resolution")
    assert torch.equal(one.points, other.points)
    assert torch.equal(one.mass, other.mass)


PLACED = {
    "windows and back": lambda x: F.fold(F.unfold(x, 2, stride=2), (4, 4), 2, stride=2),
    "layers": lambda x: nn.Fold((4, 4), (1, 2), stride=(1, 2))(nn.Unfold((1, 2), stride=(1, 2))(x)),
    "method": lambda x: x.unfold(2, 2, 2).transpose(3, 4).flatten(2, 3),
    "spread": lambda x: x[..., :1].expand_as(x).roll(1, 2),
}


@pytest.mark.parametrize("name", PLACED)
def test_rearranged_elements_are_found(name: str) -> None:
    numbers = torch.arange(1.0, 65, dtype=D).view(1, 4, 4, 4)
    place = PLACED[name]
    start = torch.randint(0, 4, (1, 4, 4))
    model = Net(lambda x, w: place(x))
    expected = Counter(place(numbers).gather(1, start[:, None]).flatten().tolist())
    fix = fixations(model, numbers, start=start, strict=True)
    found = {numbers[n, c, y, x].item(): m for (n, _, c, y, x), m in zip(fix.points.tolist(), fix.mass.tolist())}
    assert found == expected


REFUSED = {
    "overlapping windows": (lambda x, w: F.fold(F.unfold(x, 3, padding=1), (4, 4), 3, padding=1), "that overlap"),
    "places from the images": (lambda x, w: x[:, x.argmax(1)[0, 0]], "says where its elements go"),
    "two plain tensors": (lambda x, w: x @ x.transpose(2, 3), "comes out of a softmax"),
    "two softmaxes": (lambda x, w: x.softmax(-1) @ x.softmax(-1), "comes out of a softmax"),
    "places of the largest": (lambda x, w: x.sort(1)[0] + x, "there is no rule"),
    "diagonal": (lambda x, w: torch.einsum("nchh,cd->ndh", x, w)[..., None], "whose diagonal is taken"),
    "three factors": (lambda x, w: torch.einsum("nchw,cd,de->nehw", x, w, w), "two operands"),
    "largest of all images": (lambda x, w: x.amax(0, keepdim=True).expand_as(x) * 1, "over the images of a batch"),
    "images mixed": (lambda x, w: x.flip(0), "mixes the images of a batch"),
    "attention over images": (
        lambda x, w: (
            (x.flatten(1) @ x.flatten(1).t() * 0).softmax(-1) @ (x.flatten(1) * torch.tensor([[1.0], [9.0]], dtype=D))
        ).view(x.shape),
        "mixes the images of a batch",
    ),
    "grouped queries": (
        lambda x, w: F.scaled_dot_product_attention(x, x[:, :2], x[:, :2], enable_gqa=True),
        "differ in more than their length",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_followed_is_refused(name: str) -> None:
    forward, why = REFUSED[name]
    with pytest.raises(NotImplementedError, match=why):
        fixations(Net(forward), torch.randn(2, 4, 4, 4, dtype=D).abs(), strict=True)


def test_skipping_needs_as_many_values_as_queries() -> None:
    model = Net(lambda x, w: F.scaled_dot_product_attention(x, x[:, :, :2], x[:, :, :2]))
    images = torch.randn(1, 4, 4, 4, dtype=D)
    assert fixations(model, images, strict=True).dropped == 0
    with pytest.raises(NotImplementedError, match="as many values as queries"):
        fixations(model, images, rules=FixationRules(attention="skip"), strict=True)
    with pytest.raises(ValueError, match="attention"):
        FixationRules(attention="keys")  # type: ignore[arg-type]


def test_a_token_that_sees_nothing_drops_its_points() -> None:
    seen = torch.ones(4, 4, dtype=torch.bool)
    seen[2] = False
    model = Net(lambda x, w: F.scaled_dot_product_attention(x, x, x, attn_mask=seen).nan_to_num(0.0))
    with pytest.raises(NotImplementedError, match="nan_to_num"):
        fixations(model, torch.randn(1, 4, 4, 4, dtype=D))
    model = Net(lambda x, w: F.scaled_dot_product_attention(x, x, x, attn_mask=seen))
    fix = fixations(model, torch.randn(1, 4, 4, 4, dtype=D))
    assert fix.dropped == 4
