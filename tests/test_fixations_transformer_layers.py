"""torch.nn's attention and transformer layers, against the same written out in operations that have their oracles."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perpixel.fixations import FixationRules, Fixations, fixations

D = torch.float64
WIDTH, HEADS = 6, 2
SEEN = torch.rand(12, 12, generator=torch.Generator().manual_seed(0)) > 0.3
SEEN[:, 2] = True


class Tokens(nn.Module):
    """Images (N, 6, 3, 4), a token per pixel, through `layer`, which takes (N, tokens, 6)."""

    def __init__(self, layer: Any, written: bool = False, **how: Any) -> None:
        super().__init__()
        self.layer, self.written, self.how = layer, written, how
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        run = WRITTEN[type(self.layer)] if self.written else RUN[type(self.layer)]
        return run(self.layer, tokens, **self.how).transpose(1, 2).reshape(x.shape)


def attention(layer: nn.MultiheadAttention, x: Tensor, **how: Any) -> Tensor:
    x = x if layer.batch_first else x.transpose(0, 1)
    x = layer(x, x, x, **how)[0]
    return x if layer.batch_first else x.transpose(0, 1)


def written_attention(layer: nn.MultiheadAttention, x: Tensor, attn_mask: Any = None, **how: Any) -> Tensor:
    q, k, v = F.linear(x, layer.in_proj_weight, layer.in_proj_bias).chunk(3, -1)
    q, k, v = (t.unflatten(2, (HEADS, -1)).transpose(1, 2) for t in (q, k, v))
    mask = None if attn_mask is None else ~attn_mask
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return F.linear(out.transpose(1, 2).flatten(2), layer.out_proj.weight, layer.out_proj.bias)


def written_layer(layer: nn.TransformerEncoderLayer, x: Tensor, **how: Any) -> Tensor:
    def normed(norm: nn.LayerNorm, x: Tensor) -> Tensor:
        return F.layer_norm(x, (WIDTH,), norm.weight, norm.bias, norm.eps)

    def forward(x: Tensor) -> Tensor:
        x = layer.activation(F.linear(x, layer.linear1.weight, layer.linear1.bias))
        return F.linear(x, layer.linear2.weight, layer.linear2.bias)

    if layer.norm_first:
        x = x + written_attention(layer.self_attn, normed(layer.norm1, x), **how)
        return x + forward(normed(layer.norm2, x))
    x = normed(layer.norm1, x + written_attention(layer.self_attn, x, **how))
    return normed(layer.norm2, x + forward(x))


RUN = {
    nn.MultiheadAttention: attention,
    nn.TransformerEncoderLayer: lambda layer, x, **how: layer(x, **how),
    nn.TransformerEncoder: lambda layer, x: layer(x),
}
WRITTEN: dict[Any, Any] = {
    nn.MultiheadAttention: written_attention,
    nn.TransformerEncoderLayer: lambda layer, x, attn_mask=None, src_mask=None: written_layer(
        layer, x, attn_mask=src_mask
    ),
    nn.TransformerEncoder: lambda layer, x: written_layer(layer.layers[1], written_layer(layer.layers[0], x)),
}


def encoder_layer(**how: Any) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(WIDTH, HEADS, 8, batch_first=True, **how)


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "attention": (lambda: nn.MultiheadAttention(WIDTH, HEADS, batch_first=True), {}),
    "no weights": (lambda: nn.MultiheadAttention(WIDTH, HEADS, bias=False), {"need_weights": False}),
    "mask": (lambda: nn.MultiheadAttention(WIDTH, HEADS, dropout=0.5), {"attn_mask": ~SEEN}),
    "layer": (encoder_layer, {}),
    "norm first": (lambda: encoder_layer(norm_first=True, activation=F.gelu), {}),
    "masked layer": (encoder_layer, {"src_mask": ~SEEN}),
    "encoder": (lambda: nn.TransformerEncoder(encoder_layer(), 2), {}),
}


def same(one: Fixations, other: Fixations) -> None:
    assert one.dropped == other.dropped
    assert torch.equal(one.points, other.points)
    assert torch.equal(one.mass, other.mass)
    assert torch.equal(one.sign, other.sign)


@pytest.mark.parametrize("name", CASES)
def test_a_layer_of_torch_is_followed_as_what_it_computes(name: str) -> None:
    make, how = CASES[name]
    model = Tokens(make(), **how)
    written = Tokens(model.layer, written=True, **how)
    images = torch.randn(2, WIDTH, 3, 4, dtype=D)
    with torch.no_grad():  # in evaluation mode without gradients torch runs a fused operation, where it can
        torch.testing.assert_close(model(images), written(images))
    for rules in (FixationRules(), FixationRules(attention="skip")):
        fix = fixations(model, images, rules=rules, strict=True)
        same(fix, fixations(written, images, rules=rules))
        assert float(fix.mass.sum()) == fix.started
    model.train()
    same(fixations(model, images), fixations(written, images))
    assert model.layer.training


def test_tokens_that_are_padding_get_no_points() -> None:
    padding = torch.zeros(2, 12, dtype=torch.bool)
    padding[:, 5:] = True
    model = Tokens(nn.MultiheadAttention(WIDTH, HEADS, batch_first=True), key_padding_mask=padding)
    fix = fixations(model, torch.randn(2, WIDTH, 3, 4, dtype=D), strict=True)
    assert bool((fix.points[:, 3] * 4 + fix.points[:, 4] < 5).all())
    assert float(fix.mass.sum()) == 24


def test_keys_that_no_token_has_take_their_share_with_them() -> None:
    model = Tokens(nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, add_bias_kv=True))
    with torch.no_grad():
        model.layer.bias_v.fill_(1e6)
    images = torch.randn(2, WIDTH, 3, 4, dtype=D)
    fix = fixations(model, images, start=torch.zeros(2, 3, 4, dtype=torch.long), strict=True)
    assert float(fix.mass.sum()) + fix.dropped == fix.started
    assert fix.dropped > 0
