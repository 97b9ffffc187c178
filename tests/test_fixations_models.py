"""Networks people use: traced, followed to the image, all mass accounted for, and left as they were."""

import importlib.util
from collections.abc import Callable

import pytest
import torch
from attach_cases import segformer
from torch import nn
from torchvision import models as tv

from perpixel.fixations import fixations

PLAIN = {"weights": None, "weights_backbone": None}
SEGMENTATION: dict[str, Callable[[], nn.Module]] = {
    "fcn_resnet50": lambda: tv.segmentation.fcn_resnet50(**PLAIN, aux_loss=True, num_classes=5),
    "deeplabv3_resnet50": lambda: tv.segmentation.deeplabv3_resnet50(**PLAIN, num_classes=5),
    "deeplabv3_mobilenet_v3_large": lambda: tv.segmentation.deeplabv3_mobilenet_v3_large(**PLAIN, num_classes=5),
    "fcn_resnet101": lambda: tv.segmentation.fcn_resnet101(**PLAIN, num_classes=5),
    "deeplabv3_resnet101": lambda: tv.segmentation.deeplabv3_resnet101(**PLAIN, aux_loss=True, num_classes=5),
    "lraspp_mobilenet_v3_large": lambda: tv.segmentation.lraspp_mobilenet_v3_large(**PLAIN, num_classes=5),
    "vgg": lambda: nn.Sequential(tv.vgg11_bn(weights=None).features, nn.Conv2d(512, 5, 1), nn.Upsample(size=(48, 64))),
}
CLASSIFIERS: dict[str, Callable[[], nn.Module]] = {
    "vgg11": lambda: tv.vgg11(weights=None, num_classes=7),
    "resnet18": lambda: tv.resnet18(weights=None, num_classes=7),
    "mobilenet_v3_small": lambda: tv.mobilenet_v3_small(weights=None, num_classes=7),
    "densenet121": lambda: tv.densenet121(weights=None, num_classes=7),
    "googlenet": lambda: tv.googlenet(weights=None, num_classes=7, init_weights=False),
    "shufflenet": lambda: tv.shufflenet_v2_x0_5(weights=None, num_classes=7),
    "efficientnet_b0": lambda: tv.efficientnet_b0(weights=None, num_classes=7),
    "convnext_tiny": lambda: tv.convnext_tiny(weights=None, num_classes=7),
}


def check(model: nn.Module, size: tuple[int, int], pixels: int) -> None:
    images = torch.randn(2, 3, *size)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    fix = fixations(model, images, record=True)
    assert fix.started == 2 * pixels
    assert float(fix.mass.sum()) + fix.dropped == fix.started
    assert fix.dropped <= 0.1 * fix.started
    assert fix.points[:, 0].unique().tolist() == [0, 1]
    assert bool((fix.points[:, 2:] < torch.tensor([3, *size])).all())
    assert model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    again = fixations(model, images)
    assert torch.equal(again.points, fix.points)
    assert torch.equal(again.mass, fix.mass)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if "101" in name else ()) for name in SEGMENTATION]
)
def test_torchvision_segmentation(name: str) -> None:
    check(SEGMENTATION[name](), (48, 64), 48 * 64)


def test_global_pooling_is_reported() -> None:
    fix = fixations(SEGMENTATION["deeplabv3_mobilenet_v3_large"](), torch.randn(1, 3, 48, 64), k=2)
    assert list(fix.jumps) == ["classifier_0_convs_4_0"]
    assert 0 < fix.jumps["classifier_0_convs_4_0"] <= fix.started


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_torchvision_classifiers(name: str) -> None:
    check(CLASSIFIERS[name](), (64, 64), 1)


@pytest.mark.skipif(not importlib.util.find_spec("segmentation_models_pytorch"), reason="needs smp")
@pytest.mark.parametrize("decoder", ["Unet", "DeepLabV3Plus", "FPN"])
@pytest.mark.parametrize("encoder", ["resnet18", "mobilenet_v2", "timm-mobilenetv3_large_100"])
def test_segmentation_models_pytorch(decoder: str, encoder: str) -> None:
    import segmentation_models_pytorch as smp

    check(getattr(smp, decoder)(encoder, encoder_weights=None, classes=5), (32, 64), 32 * 64)


@pytest.mark.skipif(not importlib.util.find_spec("segmentation_models_pytorch"), reason="needs smp")
@pytest.mark.parametrize("decoder", ["Unet", "Segformer"])
def test_mix_transformers(decoder: str) -> None:
    import segmentation_models_pytorch as smp

    model = getattr(smp, decoder)("mit_b0", encoder_weights=None, classes=5)
    check(model, (32, 64), 32 * 64)
    assert fixations(model, torch.randn(1, 3, 32, 64), strict=True).dropped == 0


def test_transformers_segformer() -> None:
    check(segformer(), (32, 64), 8 * 16)
