"""Checkpoints of other makers: Caffe's names and images, prefixes, new names; loaded whole or not at all."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from model_state import assert_same, snapshot
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from perpixel.data import IMAGENET_MEAN, IMAGENET_STD
from perpixel.models import (
    CheckpointMismatch,
    build,
    deeplab_largefov_vgg16,
    find_state_dict,
    load_checkpoint,
    read_checkpoint,
    small_fcn,
)

BLOCKS = (2, 2, 3, 3, 3)
TINY = {"width": 1 / 16, "fc_channels": 12}
PIXELS = (IMAGENET_MEAN, IMAGENET_STD)


def random_state(**shapes: tuple[int, ...]) -> dict[str, Tensor]:
    """A weight of this shape and a bias for each layer, but for upsampling."""
    torch.manual_seed(0)
    state = {}
    for name, shape in shapes.items():
        fan = torch.Size(shape[1:]).numel()
        state[f"{name}.weight"] = torch.randn(shape) * (2 / fan) ** 0.5
        state[f"{name}.bias"] = torch.randn(shape[0]) / 10
    return state


def caffe_vgg(channels: tuple[int, ...] = (4, 8, 16, 32, 32)) -> dict[str, tuple[int, ...]]:
    before, shapes = 3, {}
    for block, (count, after) in enumerate(zip(BLOCKS, channels), 1):
        for number in range(1, count + 1):
            shapes[f"conv{block}_{number}"] = (after, before, 3, 3)
            before = after
    return shapes


def caffe_fcn8s(classes: int = 5) -> dict[str, Tensor]:
    scores = {"fc6": (12, 32, 7, 7), "fc7": (12, 12, 1, 1), "score_fr": (classes, 12, 1, 1)}
    scores |= {"score_pool4": (classes, 32, 1, 1), "score_pool3": (classes, 16, 1, 1)}
    state = random_state(**caffe_vgg(), **scores)
    for name, size in {"upscore2": 4, "upscore_pool4": 4, "upscore8": 16}.items():
        row = 1 - (torch.arange(size) - (size - 1) / 2).abs() / (size // 2)
        state[f"{name}.weight"] = torch.zeros(classes, classes, size, size)
        for c in range(classes):
            state[f"{name}.weight"][c, c] = row[:, None] * row
    return state


def layer(state: dict[str, Tensor], name: str, x: Tensor, **options: Any) -> Tensor:
    return F.conv2d(x, state[f"{name}.weight"], state.get(f"{name}.bias"), **options)


def run_fcn8s(state: dict[str, Tensor], images: Tensor) -> Tensor:
    """As its prototxt has it: 100 pixels around the image, crops of 5, 9 and 31."""
    x, pooled = images, {}
    for block, count in enumerate(BLOCKS, 1):
        for number in range(1, count + 1):
            x = layer(state, f"conv{block}_{number}", x, padding=100 if block == number == 1 else 1).relu()
        x = pooled[block] = F.max_pool2d(x, 2, ceil_mode=True)
    x = layer(state, "score_fr", layer(state, "fc7", layer(state, "fc6", x).relu()).relu())
    for name, skip, block, crop in (("upscore2", "score_pool4", 4, 5), ("upscore_pool4", "score_pool3", 3, 9)):
        x = F.conv_transpose2d(x, state[f"{name}.weight"], stride=2)
        x = x + layer(state, skip, pooled[block])[..., crop : crop + x.shape[2], crop : crop + x.shape[3]]
    x = F.conv_transpose2d(x, state["upscore8.weight"], stride=8)
    return x[..., 31 : 31 + images.shape[2], 31 : 31 + images.shape[3]]


def run_largefov(state: dict[str, Tensor], images: Tensor, rates: tuple[int, ...] = (12,)) -> Tensor:
    """The scores on the grid, as the prototxt has them; of version 2 for several rates."""
    x = images
    for block, count in enumerate(BLOCKS, 1):
        for number in range(1, count + 1):
            dilation = 2 if block == 5 else 1
            x = layer(state, f"conv{block}_{number}", x, padding=dilation, dilation=dilation).relu()
        x = F.max_pool2d(x, 3, stride=2 if block < 4 else 1, padding=1)
    if rates == (12,):
        x = F.avg_pool2d(x, 3, stride=1, padding=1)
        x = layer(state, "fc7", layer(state, "fc6", x, padding=12, dilation=12).relu()).relu()
        return layer(state, "fc8_voc12", x)
    total = torch.zeros(())
    for number, rate in enumerate(rates, 1):
        branch = layer(state, f"fc6_{number}", x, padding=rate, dilation=rate).relu()
        total = total + layer(state, f"fc8_voc12_{number}", layer(state, f"fc7_{number}", branch).relu())
    return total


def grid_of(model: nn.Module, images: Tensor) -> Tensor:
    found: list[Tensor] = []
    with model.get_submodule("classifier").register_forward_hook(lambda *given: found.append(given[2])):
        model(images)
    return found[0]


@pytest.mark.parametrize("prefix", ["", "module.", "net.model."])
def test_fcn8s_of_caffe_says_what_it_said(prefix: str) -> None:
    state = caffe_fcn8s()
    model = build("fcn8s_vgg16", 5, padding=100, **TINY).eval()
    report = load_checkpoint(model, {prefix + name: value for name, value in state.items()}, caffe_pixels=False)
    assert str(report) == "nothing that does not fit"
    assert report.loaded["score.weight"] == f"{prefix}score_fr.weight"
    assert report.loaded.keys() == model.state_dict().keys()
    images = torch.randn(1, 3, 96, 101)
    with torch.no_grad():
        expected, found = (logits[..., 37:80, 37:80] for logits in (run_fcn8s(state, images), model(images)))
    # nearer to the border Caffe's scores fade to zero, since coarse ones begin at pixel 12; ours keep their value there
    assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max()))


def test_names_of_other_depths_and_of_the_classifier_itself() -> None:
    state = {name: value for name, value in caffe_fcn8s().items() if "pool" not in name and "upscore" not in name}
    for name, upscore, size in (("fcn32s_vgg16", "upscore", 64), ("fcn16s_vgg16", "upscore16", 32)):
        given = {**state, f"{upscore}.weight": torch.zeros(5, 5, size, size)}
        model = build(name, 5, **TINY)
        report = load_checkpoint(model, given, strict=False, caffe_pixels=False)
        assert report.missing == [k for k in model.state_dict() if "pool4" in k or "upscore2" in k]
        assert not report.unexpected
    whole = random_state(**caffe_vgg(), fc6=(12, 32 * 49), fc7=(12, 12), fc8=(1000, 12))
    report = load_checkpoint(model, whole, keep=["score", "score_pool4", "upscore2", "upscore16"], caffe_pixels=False)
    assert not report.unexpected
    assert torch.equal(model.get_submodule("fc6").weight.flatten(1), whole["fc6.weight"])


def test_deeplab_largefov_and_version_2_of_caffe_say_what_they_said() -> None:
    shapes, images = caffe_vgg(), torch.randn(1, 3, 33, 41)
    first = random_state(**shapes, fc6=(12, 32, 3, 3), fc7=(12, 12, 1, 1), fc8_voc12=(5, 12, 1, 1))
    for number in range(1, 5):
        shapes |= {
            f"fc6_{number}": (12, 32, 3, 3),
            f"fc7_{number}": (12, 12, 1, 1),
            f"fc8_voc12_{number}": (5, 12, 1, 1),
        }
    second = random_state(**shapes)
    for name, state, rates in (
        ("deeplab_largefov_vgg16", first, (12,)),
        ("deeplab_v2_vgg16", second, (6, 12, 18, 24)),
    ):
        model = build(name, 5, **TINY).eval()
        load_checkpoint(model, state, caffe_pixels=False)
        with torch.no_grad():
            assert torch.allclose(grid_of(model, images), run_largefov(state, images, rates), rtol=1e-3, atol=1e-4)


def test_caffes_images_are_made_of_those_that_come() -> None:
    """The oracle: BGR, 0 to 255, less the mean colour; the same where the mean colours agree, else off the border."""
    state = random_state(**caffe_vgg(), fc6=(12, 32, 3, 3), fc7=(12, 12, 1, 1), fc8_voc12=(5, 12, 1, 1))
    rgb, mean = torch.rand(2, 3, 33, 33), torch.tensor([122.679, 116.669, 104.007])
    model = deeplab_largefov_vgg16(5, **TINY).eval()
    with torch.no_grad():
        expected = run_largefov(state, 255 * rgb.flip(1) - mean.flip(0)[:, None, None])
        same = (mean / 255).tolist(), [0.2, 0.3, 0.4]
        load_checkpoint(model, state, caffe_pixels=same)
        given = (rgb - torch.tensor(same[0])[:, None, None]) / torch.tensor(same[1])[:, None, None]
        assert torch.allclose(grid_of(model, given), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
        load_checkpoint(model, state, caffe_pixels=PIXELS)
        mean_in, std_in = (torch.tensor(one)[:, None, None] for one in PIXELS)
        first = model.get_submodule("features.0")((rgb - mean_in) / std_in)
        own = layer(state, "conv1_1", 255 * rgb.flip(1) - mean.flip(0)[:, None, None], padding=1)
        assert torch.allclose(first[..., 1:-1, 1:-1], own[..., 1:-1, 1:-1], rtol=1e-3, atol=1e-2)
        assert not torch.allclose(first, own, rtol=1e-3, atol=1e-2)


def test_caffes_names_ask_what_the_images_will_be() -> None:
    state = random_state(**caffe_vgg(), fc6=(12, 32, 3, 3), fc7=(12, 12, 1, 1), fc8_pascal=(5, 12, 1, 1))
    model = deeplab_largefov_vgg16(5, **TINY)
    before = snapshot(model)
    for given in (
        {},
        {"caffe_pixels": True},
        {"caffe_pixels": ((0, 0), (1, 1, 1))},
        {"caffe_pixels": ((0, 0, 0), (1, 0, 1))},
    ):
        with pytest.raises(ValueError, match=r"^caffe_pixels: expected"):
            load_checkpoint(model, state, **given)
    assert_same(snapshot(model), before)
    with pytest.raises(ValueError, match="a first convolution with a bias"):
        load_checkpoint(small_fcn(3), small_fcn(3).state_dict(), caffe_pixels=PIXELS)


def test_kernels_that_mix_classes_are_not_taken_for_others() -> None:
    state, model = caffe_fcn8s(), build("fcn8s_vgg16", 5, **TINY)
    state["upscore2.weight"][0, 1, 2, 2] = 0.1
    with pytest.raises(
        CheckpointMismatch, match=r"1 of another shape \(upscore2.weight \(5, 1, 4, 4\) here, \(5, 5, 4, 4\)"
    ):
        load_checkpoint(model, state, caffe_pixels=False)


def test_linear_layers_fill_convolutions() -> None:
    """A window of the convolution is a row of the linear layer: channels, then rows, then columns."""
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 5, 7), nn.Linear(7, 2))
    model = nn.Sequential(nn.Identity(), nn.Conv2d(3, 7, (4, 5)), nn.Conv2d(7, 2, 1))
    load_checkpoint(model, linear.state_dict())
    images = torch.randn(2, 3, 4, 5)
    assert torch.allclose(model(images)[..., 0, 0], linear(images), atol=1e-5)


@pytest.mark.parametrize(
    "wrap", [lambda model: model, nn.DataParallel, lambda model: nn.ModuleDict({"_orig_mod": model})]
)
def test_new_names_by_module_entry_or_function(wrap: Callable[[nn.Module], nn.Module]) -> None:
    source, model = small_fcn(3, width=8), small_fcn(3, width=8)
    state = {f"student.{name}".replace("context.0", "first"): value for name, value in source.state_dict().items()}
    state |= {f"teacher.{name}": value for name, value in model.state_dict().items()}
    state["student.extra.weight"] = torch.zeros(3)
    network = wrap(model)
    names = {"first": "context.0", "extra": None}
    load_checkpoint(network, state, prefix="student.", rename=names)
    assert_same(model.state_dict(), source.state_dict())
    again = small_fcn(3, width=8)
    load_checkpoint(
        again, state, prefix="student.", rename=lambda name: name.replace("first", "context.0"), strict=False
    )
    assert_same(again.state_dict(), source.state_dict())
    for given, message in (
        ({"prefix": "other."}, r"^prefix: expected .* got 'other.'.*student"),
        ({"prefix": "student.", "rename": {"frist": "context.0"}}, r"^rename: .*'frist'.*first"),
        ({"prefix": "student.", "rename": lambda _: "stem.0.0.weight"}, r"^rename: .*both to 'stem.0.0.weight'"),
        ({"prefix": "student.", "keep": ["clasifier"]}, r"^keep: .*'clasifier'.*classifier"),
    ):
        with pytest.raises(ValueError, match=message):
            load_checkpoint(network, state, **given)


def test_what_is_kept_and_what_is_only_reported() -> None:
    source, model = small_fcn(5, width=8), small_fcn(3, width=8)
    own = model.classifier.weight.clone()
    with pytest.raises(
        CheckpointMismatch, match=r"classifier.weight \(3, 8, 1, 1\) here, \(5, 8, 1, 1\) there"
    ) as caught:
        load_checkpoint(model, source.state_dict(), strict=False)
    assert caught.value.report.clashes["classifier.bias"] == ((3,), (5,))
    report = load_checkpoint(model, source.state_dict(), keep=["classifier"])
    assert report.kept == ["classifier.weight", "classifier.bias"]
    assert torch.equal(model.classifier.weight, own)
    assert torch.equal(model.stem[0][0].weight, source.stem[0][0].weight)
    part = {name: value + 1 for name, value in source.state_dict().items() if name.startswith("stem")}
    report = load_checkpoint(model, {**part, "surplus": torch.zeros(1)}, strict=False)
    assert report.unexpected == ["surplus"]
    assert "context.0.0.weight" in report.missing
    assert torch.equal(model.stem[0][0].weight, source.stem[0][0].weight + 1)
    with pytest.raises(CheckpointMismatch, match="1 unexpected"):
        load_checkpoint(model, {"surplus": torch.zeros(1)}, strict=False)


def test_a_checkpoint_of_another_network_changes_nothing() -> None:
    model = small_fcn(3, width=8)
    state = {name: value + 1 for name, value in small_fcn(3, width=8).state_dict().items()}
    before = snapshot(model)
    state["surplus"] = state.pop("stem.0.0.weight")
    state["context.0.0.weight"] = torch.zeros(8, 8, 1, 1)
    state["context.1.0.weight"] = (100 * state["context.1.0.weight"]).to(torch.int8)
    state["classifier.bias"][1] = torch.nan
    with pytest.raises(CheckpointMismatch) as caught:
        load_checkpoint(model, state)
    for words in (
        "1 missing (stem.0.0.weight)",
        "1 unexpected (surplus)",
        "context.0.0.weight (8, 8, 3, 3) here",
        "1 of integers, where the network has fractions (context.1.0.weight)",
        "1 with NaN (classifier.bias)",
    ):
        assert words in str(caught.value)
    with pytest.raises(CheckpointMismatch, match=r"expected the entries of SmallFCN.* missing \(stem"):
        load_checkpoint(model, build("fcn32s_vgg16", 3, **TINY).state_dict())
    assert_same(snapshot(model), before)


def test_files_are_read_without_running_code(tmp_path: Path) -> None:
    state = small_fcn(2, width=4).state_dict()
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "w.pt")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "w.bin")  # told by its content
    for name in ("w.pt", "old.pth", "w.bin"):
        assert_same(find_state_dict(read_checkpoint(tmp_path / name)), dict(state))
    torch.save(small_fcn(2, width=4), tmp_path / "module.pt")
    (tmp_path / "text.safetensors").write_text("no weights")
    damaged = bytearray((tmp_path / "w.pt").read_bytes())
    damaged[damaged.index(state["stem.0.0.weight"].numpy().tobytes()) + 5] ^= 1
    (tmp_path / "damaged.pt").write_bytes(damaged)
    model = small_fcn(2, width=4)
    for name in ("module.pt", "text.safetensors", "damaged.pt"):
        with pytest.raises(ValueError, match=rf"^source: .*weights_only=True.*{name}"):
            load_checkpoint(model, tmp_path / name)
    with pytest.raises(FileNotFoundError, match="not there"):
        load_checkpoint(model, tmp_path / "none.pt")


def test_state_dicts_are_found_inside_training_checkpoints() -> None:
    state, other = {"a.weight": torch.ones(1)}, {"a.weight": torch.zeros(1)}
    for content in (
        state,
        {"net": state, "epoch": 3},
        {"model": state, "optimizer": {"state": {}, "lr": 0.1}, "teacher": other},
        {"state_dict": {"model": state}},
        {"ema": {**state, "n_averaged": torch.ones(())}, "model": other},
        {"ema": {}, "model": state},
    ):
        assert_same(find_state_dict(content), state)
    for content in ({}, {"epoch": 3}, {"student": state, "teacher": other}, [state], nn.Linear(1, 1)):
        with pytest.raises(ValueError, match="source: expected a state dict"):
            find_state_dict(content)
