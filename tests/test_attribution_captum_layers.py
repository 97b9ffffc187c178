"""The layers of a network in `explain`: those that run several times, wrapped ones, and the one that is explained."""

import pytest
import torch
from attribution_cases import LABELS, Net, images, regions
from model_state import assert_same, snapshot
from torch import Tensor, nn
from torch.nn import functional as F

from perpixel.attribution import Attribution, explain

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is not valid for this network"),
    pytest.mark.filterwarnings(r"ignore:\s*(Input Tensor 0 did not|Setting (forward|backward))"),  # captum by hand
]


class Residual(nn.Module):
    """One ReLU for all, as in torchvision's residual blocks, or one for each use."""

    def __init__(self, shared: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.last, self.relu = nn.Conv2d(6, 4, 1), nn.ReLU(inplace=True)
        self.other = self.relu if shared else nn.ReLU()
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        assert self.other.inplace in (True, False)  # what stands in for a layer answers for it
        x = self.relu(self.first(x))
        return self.last(self.other(self.second(x) + x))


@pytest.mark.parametrize(
    "kind", ["DeepLift", "DeepLiftShap", "GuidedBackprop", "Deconvolution", "LRP", "LayerDeepLift"]
)
def test_a_reused_activation_counts_as_one_for_each_use(kind: str) -> None:
    shared, apart = Residual(shared=True), Residual(shared=False)
    apart.load_state_dict(shared.state_dict())
    before = snapshot(shared)
    options = {"layer": "first"} if kind.startswith("Layer") else {}
    with pytest.warns(UserWarning, match=r"reused layers \(1 ReLU, run up to 2 times"):
        found = explain(shared, images(), LABELS, region=regions(), method=kind, **options)
    expected = explain(apart, images(), LABELS, region=regions(), method=kind, **options)
    torch.testing.assert_close(found.values, expected.values)
    assert_same(snapshot(shared), before)
    if "DeepLift" in kind:
        assert found.delta is not None
        assert float(found.delta.abs().max()) < 1e-6


def test_a_layer_that_lrp_refuses_gets_a_rule_for_the_call() -> None:
    net = Net("out")
    net.features[4] = nn.LeakyReLU(0.0)
    plain = Net("out")
    plain.load_state_dict(net.state_dict())
    with pytest.warns(UserWarning, match="LeakyReLU"):
        found = explain(net, images(), LABELS, region=regions(), method="LRP")
    assert not hasattr(net.features[4], "rule")
    expected = explain(plain, images(), LABELS, region=regions(), method="LRP")
    torch.testing.assert_close(found.values, expected.values, rtol=1e-5, atol=1e-6)


def test_wrapped_networks_are_unwrapped() -> None:
    net = Net("out")
    wrapped = (net, nn.DataParallel(net), torch.compile(net, backend="eager"))
    expected, *found = (explain(n, images(), 1, region=regions(), method="LayerGradCam").values for n in wrapped)
    for values in found:
        torch.testing.assert_close(values, expected)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Conv2d(4, 8, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> list[Tensor]:
        first = self.stem(x)
        return [x, first, self.deep(first)]


class UNet(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.add_module(name, Encoder())
        self.up, self.head = nn.Conv2d(12, 8, 1), nn.Conv2d(8, 4, 1)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        _, first, deep = getattr(self, self.name)(x)
        up = F.interpolate(deep, size=first.shape[-2:], mode="nearest")
        return F.interpolate(self.head(self.up(torch.cat([up, first], 1))), size=x.shape[-2:], mode="bilinear")


def test_the_layer_is_the_last_of_the_backbone() -> None:
    for name in ("encoder", "backbone", "something"):
        found = explain(UNet(name), images(), 1, region=regions(), method="LayerGradCam")
        assert found.layer == f"{name}.deep"
    assert explain(Net("out"), images(), 1, region=regions(), method="LayerGradCam").layer == "features.4"
    plain = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Upsample(scale_factor=1)
    ).double()
    assert explain(plain, images(), 1, region=regions(), method="LayerGradCam").layer == "1"
    with pytest.raises(ValueError, match=r"Name a layer: layer='\.\.\.'\. Maps come from '0'; see"):
        explain(nn.Sequential(nn.Conv2d(3, 4, 1)).double(), images(), 1, region=regions(), method="LayerGradCam")


class SideMaps(nn.Module):
    """Coarser than its features: a layer that gives a size beside its map, and one that nothing depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pooled, self.unused = nn.Conv2d(3, 4, 3, padding=1), Pooled(), nn.AvgPool2d(4)
        self.head = nn.Conv2d(4, 4, 1)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        x -= 0.25
        made = self.stem(x)
        self.unused(made)
        small, size = self.pooled(made)
        return self.head(F.interpolate(small, size=size) + made)


class Pooled(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, torch.Size]:
        return F.avg_pool2d(x, 2), x.shape[-2:]


class Pools(nn.Module):
    """A backbone on tokens, of another name; a pyramid of pooled maps coarser than its grid."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep = nn.Conv2d(3, 8, 2, 2), nn.Conv2d(8, 8, 2, 2)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Conv2d(8, 8, 1))
        self.fine, self.head = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 4, 1)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        first = self.stem(x)
        deep = self.deep(first)
        deep, pooled = (F.interpolate(each, first.shape[-2:]) for each in (deep, self.pool(deep)))
        return F.interpolate(self.head(self.fine(torch.cat([deep, pooled], 1)) + first), size=x.shape[-2:])


def test_a_pyramid_of_pooled_maps_is_no_feature_map() -> None:
    assert explain(Pools(), images(), 1, region=regions(), method="LayerGradCam").layer == "deep"


def test_the_layer_is_one_that_can_be_explained() -> None:
    found = explain(SideMaps(), images(), 1, region=regions(), method="LayerGradCam")
    assert found.layer == "stem"


SPATIAL = {  # the last layer on the coarsest grid, not of pyramid pooling
    "Unet": "decoder.center",  # passes the encoder's last map on
    "FPN": "decoder.seg_blocks.0.block.0.block",
    "Segformer": "decoder.mlp_stage.0",
    "dpt": "neck.fusion_stage.layers.0.residual_layer2",
    "swin": "decode_head.bottleneck",
}


@pytest.mark.parametrize("name", SPATIAL)
def test_transformers_have_a_spatial_layer(name: str) -> None:
    if name[0].isupper():
        smp = pytest.importorskip("segmentation_models_pytorch")
        net = getattr(smp, name)("mit_b0", encoder_weights=None, classes=4)
    else:
        hf = pytest.importorskip("transformers")
        if name == "dpt":
            sizes: dict[str, object] = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
            sizes |= {"intermediate_size": 32, "image_size": 64, "patch_size": 16, "neck_hidden_sizes": [8] * 4}
            sizes |= {"backbone_out_indices": [0, 1, 2, 3], "fusion_hidden_size": 8, "num_labels": 4}
            net = hf.DPTForSemanticSegmentation(hf.DPTConfig(**sizes))
        else:
            swin = {"depths": [1] * 4, "embed_dim": 8, "num_heads": [1] * 4, "window_size": 4, "image_size": 64}
            stages = hf.SwinConfig(**swin, out_features=["stage1", "stage2", "stage3", "stage4"])
            head = {"num_labels": 4, "hidden_size": 16, "auxiliary_in_channels": 32}
            net = hf.UperNetForSemanticSegmentation(hf.UperNetConfig(backbone_config=stages, **head))
    region = torch.ones(64, 64, dtype=torch.bool)
    grids: list[torch.Size] = []
    hook = net.get_submodule(SPATIAL[name]).register_forward_hook(lambda *_: grids.append(_[2].shape[-2:]))
    found = explain(net, torch.randn(1, 3, 64, 64), 1, region=region, method="LayerGradCam")
    assert found.layer == SPATIAL[name]
    assert set(grids) == {(2, 2)}
    hook.remove()
    assert float(found.values.abs().max()) > 0


def integration(name: str) -> tuple[nn.Module, str]:
    if name == "torchvision":
        from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large

        return deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4), "backbone.16"
    if name == "smp":
        smp = pytest.importorskip("segmentation_models_pytorch")
        return smp.Unet("resnet18", encoder_weights=None, classes=4), "encoder.layer4"
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_sizes": [8, 16, 16, 16], "num_attention_heads": [1, 1, 2, 2], "depths": [1, 1, 1, 1]}
    config = transformers.SegformerConfig(num_labels=4, decoder_hidden_size=16, **sizes)
    return transformers.SegformerForSemanticSegmentation(config), ""


@pytest.mark.parametrize("name", ["torchvision", "smp", "transformers"])
def test_real_networks(name: str) -> None:
    net, layer = integration(name)
    x, region = torch.randn(2, 3, 32, 48), torch.zeros(32, 48, dtype=torch.bool)
    region[8:20, 10:30] = True
    before = snapshot(net)
    methods = ("IntegratedGradients", "Occlusion", "LayerGradCam", "DeepLift", "GuidedBackprop", "NoiseTunnel")
    few = {"IntegratedGradients": {"n_steps": 2}, "NoiseTunnel": {"nt_samples": 2}}
    few["Occlusion"] = {"sliding_window_shapes": (3, 16, 24), "strides": (3, 16, 24)}
    for kind in methods:
        found = explain(net, x, torch.tensor([0, 2]), region=region, method=kind, **few.get(kind, {}))
        assert isinstance(found, Attribution)
        assert found.values.shape == x.shape
        assert found.values.isfinite().all()
        if kind == "LayerGradCam":
            assert found.layer
            assert not layer or found.layer == layer
    assert_same(snapshot(net), before)
