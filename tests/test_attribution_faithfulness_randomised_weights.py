"""The randomised-weights check: which layers are reset, in which order, and what it compares."""

import copy
import warnings
from typing import Any

import pytest
import torch
from attribution_nets import LABEL, Conv, GradientTimesInput, Linear, region_of
from model_state import assert_same, snapshot
from scipy.stats import spearmanr
from torch import Tensor, nn

from perpixel.attribution.faithfulness.randomised_weights import SALT, randomised_weights, rank_correlation


class Varied(nn.Module):
    """Layers of every kind: registered out of order, reused, unused, without a way to be reset, wrapped."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(4, 3, 1)
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.twice = nn.Conv2d(4, 4, 1)
        self.aux = nn.Conv2d(4, 3, 1)
        self.gain = Gain()
        self.tied = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1))
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = self.norm(self.stem(images))
        x = self.tied(self.twice(self.twice(x)).tanh())
        tokens = x.flatten(2).transpose(1, 2)
        mixed = self.attention(tokens, tokens, tokens)[0].transpose(1, 2).view_as(x)
        return {"out": self.head(self.gain(x + mixed)), "aux": self.aux(x)}


class Gain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def varied() -> tuple[Varied, Tensor, GradientTimesInput]:
    model, images = Varied(), torch.randn(2, 2, 6, 6)
    model.train()
    for _ in range(3):
        model(images)
    return model.eval(), images, GradientTimesInput(LABEL, region_of(images), steps=2)


def test_layers_are_reset_from_the_output_down_and_the_rest_is_named() -> None:
    model, images, explainer = varied()
    before = snapshot(model)
    found = randomised_weights(model, images, explainer)
    assert found.layers == ("head", "attention.out_proj", "attention", "twice", "norm", "stem")
    assert {"gain", "tied"} <= {name.split(".")[0] for name in found.kept}
    assert not any("aux" in name for name in (*found.layers, *found.kept))
    assert found.correlation.shape == found.magnitude.shape == (6, 2)
    assert_same(snapshot(model), before)


def test_correlations_are_those_of_copies_reset_by_hand() -> None:
    model, images = Conv().eval(), torch.randn(2, 2, 6, 6, dtype=torch.float64)
    model.norm.running_mean += 0.3
    model.norm.running_var *= 2
    explainer = GradientTimesInput(LABEL, region_of(images))
    found = randomised_weights(model, images, explainer, seed=5)
    assert found.layers == ("last", "norm", "first")
    copied = copy.deepcopy(model)
    start = explainer(copied, images).sum(1)
    torch.testing.assert_close(found.trained, start)
    for step, name in enumerate(found.layers):
        torch.manual_seed(SALT + 5 + step)
        copied.get_submodule(name).reset_parameters()
        if step > 0:  # the batch norm is reset: its statistics are those of what comes in
            with torch.no_grad():
                given = copied.first(images)
            copied.norm.running_mean.copy_(given.mean((0, 2, 3)))
            copied.norm.running_var.copy_(given.var((0, 2, 3)))
        now = explainer(copied, images).sum(1)
        for n in range(2):
            signed = spearmanr(start[n].flatten(), now[n].flatten()).statistic
            absolute = spearmanr(start[n].abs().flatten(), now[n].abs().flatten()).statistic
            assert float(found.correlation[step, n]) == pytest.approx(signed)
            assert float(found.magnitude[step, n]) == pytest.approx(absolute)
    torch.testing.assert_close(found.reset, now)
    torch.testing.assert_close(found.trained_mass, explainer(model, images).abs().sum(1))
    torch.testing.assert_close(found.reset_mass, explainer(copied, images).abs().sum(1))


def test_reset_batch_norms_keep_the_signal_of_deep_networks_alive() -> None:
    layers = [[nn.Conv2d(2 if n == 0 else 8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Hardswish()] for n in range(9)]
    model = nn.Sequential(*(layer for group in layers for layer in group), nn.Conv2d(8, 3, 1)).eval()
    images = torch.randn(1, 2, 8, 8)
    logits: list[Tensor] = []

    def explainer(network: nn.Module, x: Tensor) -> Tensor:
        logits.append(network(x).detach())
        return x

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        randomised_weights(model, images, explainer)
    assert logits[-1].std((2, 3)).mean() > 0.05
    assert logits[0].std((2, 3)).mean() < 0.01


def test_independent_resets_put_each_layer_back() -> None:
    model, images = Conv().eval(), torch.randn(2, 2, 6, 6, dtype=torch.float64)
    reference = copy.deepcopy(model)
    explainer = GradientTimesInput(LABEL, region_of(images))
    changed: list[list[str]] = []

    def watching(network: nn.Module, x: Tensor) -> Tensor:
        assert network is not model
        assert not network.training
        now = dict(network.named_parameters())
        changed.append([n for n, p in reference.named_parameters() if p.ndim > 1 and not torch.equal(p, now[n])])
        return explainer(network, x)

    found = randomised_weights(model, images, watching, mode="independent", layers=["first", "last"])
    assert changed == [[], ["first.weight"], ["last.weight"]]
    again = randomised_weights(model, images, explainer, mode="cascade", layers=["first"])
    torch.testing.assert_close(found.correlation[0], again.correlation[0])


def test_stages_pick_among_the_resets_and_seeds_repeat() -> None:
    model, images, explainer = varied()
    options: list[dict[str, Any]] = [{}, {"stages": 2}, {"seed": 9}]
    full, few, other = (randomised_weights(model, images, explainer, **each) for each in options)
    assert few.layers == (full.layers[2], full.layers[5])
    torch.testing.assert_close(few.correlation, full.correlation[[2, 5]])
    assert not torch.allclose(other.correlation, full.correlation)
    whole = randomised_weights(nn.Sequential(model, Out()), images, explainer, layers=["0"], stages=1)
    assert whole.layers == ("0",)


class Out(nn.Module):
    def forward(self, output: dict[str, Tensor]) -> Tensor:
        return output["out"]


def test_ranks_may_count_only_outside_the_object() -> None:
    model, images, explainer = varied()
    where = ~region_of(images)
    found = randomised_weights(model, images, explainer, where=where)
    for n in range(2):
        expected = spearmanr(found.trained[n][where[n]], found.reset[n][where[n]]).statistic
        assert float(found.correlation[-1, n]) == pytest.approx(expected)
    flat = torch.zeros(1, 2, 2)
    assert bool(rank_correlation(flat, torch.rand(1, 2, 2)).isnan().all())
    assert rank_correlation(torch.rand(1, 2, 2).cumsum(2), torch.ones(1, 2, 2).cumsum(2)).numel() == 1


def test_an_explainer_of_another_network_is_noticed() -> None:
    model, images, explainer = varied()
    with pytest.warns(UserWarning, match="explainer: resetting every layer leaves the map bitwise"):
        found = randomised_weights(model, images, lambda _, x: explainer(model, x))
    torch.testing.assert_close(found.correlation, torch.ones(6, 2, dtype=torch.float64))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        randomised_weights(model, images, explainer)


BAD: list[tuple[type[Exception], str, dict[str, Any]]] = [
    (ValueError, "layers: expected dotted names of layers with weights", {"layers": ["nowhere"]}),
    (ValueError, "layers: expected at least one name", {"layers": []}),
    (ValueError, "mode: expected one of 'cascade', 'independent'", {"mode": "both"}),
    (ValueError, "stages: expected an integer >= 1", {"stages": 0}),
    (ValueError, "explainer: expected shape", {"explainer": lambda _, x: x[:, :, :3]}),
    (ValueError, "explainer: expected finite values", {"explainer": lambda _, x: x / 0}),
    (ValueError, "where: expected a bool tensor", {"where": torch.ones(2, 5, 6, dtype=torch.bool)}),
    (TypeError, r"model: expected a torch\.nn\.Module", {"model": len}),
]


def test_what_cannot_be_reset_or_explained_is_refused() -> None:
    model, images, explainer = varied()
    before = snapshot(model)
    for error, message, changes in BAD:
        given: dict[str, Any] = {"model": model, "images": images, "explainer": explainer, **changes}
        with pytest.raises(error, match=message):
            randomised_weights(**given)
    message = r"model: expected layers that reset_parameters resets, got none \(weight|none"
    with pytest.raises(ValueError, match=message):
        randomised_weights(Linear(), torch.randn(1, 1, 6, 6, dtype=torch.float64), lambda _, x: x)
    model.cache = model(images)["out"]
    with pytest.raises(ValueError, match=r"model: expected a network that copy\.deepcopy can copy"):
        randomised_weights(model, images, explainer)
    del model.cache
    assert_same(snapshot(model), before)


def test_under_no_grad_and_inference_mode() -> None:
    model, images, explainer = varied()
    expected = randomised_weights(model, images, explainer, stages=1).correlation
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            found = randomised_weights(model, images.clone(), explainer, stages=1).correlation
            assert not torch.is_grad_enabled()
        torch.testing.assert_close(found, expected)


class NeedsArguments(nn.Conv2d):
    def reset_parameters(self, gain: float | None = None) -> None:
        if gain is None and hasattr(self, "built"):
            raise TypeError("gain")
        super().reset_parameters()


def test_a_reset_that_wants_arguments_is_left_alone() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 1), NeedsArguments(3, 3, 1))
    model[1].built = True
    images = torch.randn(1, 2, 6, 6)
    found = randomised_weights(model, images, GradientTimesInput(LABEL, region_of(images)))
    assert found.kept == ("1",)
    assert found.layers == ("0",)
