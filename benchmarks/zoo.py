"""Which segmentation networks of which libraries work with what: the table in docs/models.md, row by row.

    python -m benchmarks.zoo [--only TEXT] [--dry]

Networks have three classes, random weights and small sizes; images have 64 pixels a side, or what the network asks
for. A tick: a training step with the template term whose gradient is finite and reaches the network; fixations with
`strict=True` whose masses add up to the pixels started; influence and explain with finite values. Otherwise what was
said instead. `--only` does the networks whose name has this text in it, `--dry` leaves the page as it is.
"""

import argparse
import re
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import perpixel
from perpixel import TemplateSimilarityLoss, attach, explain, fixations, influence

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
START, END = "<!-- zoo: start -->", "<!-- zoo: end -->"
WORDS = {  # what errors say, shorter
    "masks of queries": "masks of queries",
    "classifier layer": "no one head",
    "a product is followed where": "a product without a gate",
}
FEATURES = ("attach", "fixations", "influence", "explain")
CLASSES = 3
STAGES = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
DECODERS = "Unet UnetPlusPlus MAnet Linknet FPN PSPNet PAN DeepLabV3 DeepLabV3Plus UPerNet Segformer"
NOT_MIT = ("UnetPlusPlus", "Linknet")  # smp does not build these with mit_b0
ENCODERS = (
    "efficientnet-b0 mobilenet_v2 densenet121 vgg11_bn resnext50_32x4d se_resnet50 timm-res2net50_26w_4s dpn68 "
    "xception mobileone_s0 inceptionv4 timm-mobilenetv3_small_100 tu-convnext_atto tu-convnextv2_atto tu-resnet10t "
    "tu-mambaout_femto tu-mobilenetv4_conv_small tu-pvt_v2_b0 tu-hrnet_w18_small tu-regnety_002 tu-edgenext_xx_small "
    "tu-fastvit_t8 tu-nextvit_small tu-repvit_m0_9 tu-starnet_s1 tu-ghostnet_050 tu-davit_tiny tu-efficientvit_b0 "
    "tu-caformer_s18 tu-poolformerv2_s12 tu-focalnet_tiny_srf tu-swin_tiny_patch4_window7_224 tu-hiera_tiny_224"
)


@dataclass(frozen=True)
class Network:
    """How to build it, the side of its images, and how it is called where not as model(images)."""

    make: Callable[[], nn.Module]
    size: int = 64
    call: Callable[[nn.Module, Tensor], Any] | None = None


def networks(only: str = "") -> dict[str, Network]:
    """The networks with this text in their name in the table; a library is imported if it starts with one's name."""
    named = [of for library, of in LIBRARIES.items() if only.split(" ")[0] == library] or LIBRARIES.values()
    return {name: network for of in named for name, network in of().items() if only in name}


def row(name: str, network: Network) -> list[str]:
    """The cells of a network's row: its name, and a tick or a few words for every feature."""
    torch.manual_seed(0)
    model, images = network.make(), torch.rand(2, 3, network.size, network.size)
    found = [name]
    for check in (_attached, _traced, _influenced, _explained):
        try:
            check(model, images, network.call)
            found.append("✓")
        except Exception as error:  # what is said is what is asked
            found.append(_words(error))
    return found


def rows_of(text: str) -> dict[str, list[str]]:
    """The rows of a page's table, by the name of the network."""
    lines = text.split(START)[1].split(END)[0].strip().splitlines()[2:]
    return {cells[0]: cells for cells in (line.strip("| ").split(" | ") for line in lines)}


def with_rows(text: str, rows: dict[str, list[str]]) -> str:
    """The page with these rows as its table, library by library."""
    order = sorted(rows, key=lambda name: [*LIBRARIES].index(name.split(" ")[0]))
    header = [["network", *FEATURES], ["---", *[":-:"] * len(FEATURES)]]
    lines = [f"| {' | '.join(cells)} |" for cells in [*header, *(rows[name] for name in order)]]
    return text.split(START)[0] + "\n".join([START, "", *lines, "", END]) + text.split(END)[1]


def _attached(model: nn.Module, images: Tensor, call: Any) -> None:
    labels = torch.randint(0, 2, (len(images), *images.shape[2:]))
    with attach(model.train(), TemplateSimilarityLoss(weight=0.1), call=call) as criterion:
        loss = criterion(model(images), labels)
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    if not gradients or not all(bool(g.isfinite().all()) for g in (loss, *gradients)):
        raise ValueError("loss: expected finite gradients, got none. Look for an overflow.")
    model.zero_grad()


def _traced(model: nn.Module, images: Tensor, call: Any) -> None:
    fix = fixations(model, images, strict=True, call=call)
    if abs(float(fix.mass.sum()) + fix.dropped - fix.started) > 1e-6 * fix.started:
        raise ValueError(f"mass: expected {fix.started}, got {float(fix.mass.sum())}. Look for what it loses.")


def _influenced(model: nn.Module, images: Tensor, call: Any) -> None:
    if not bool(influence(model, images, patch=images.shape[-1] // 2, call=call).values.isfinite().all()):
        raise ValueError("influence: expected finite values, got others. Look for an overflow.")


def _explained(model: nn.Module, images: Tensor, call: Any) -> None:
    region = torch.ones(len(images), *images.shape[2:], dtype=torch.bool)
    explain(model, images, 1, region=region, n_steps=2, call=call)


def _words(error: Exception) -> str:
    """An error in a few words."""
    text = " ".join(str(error).split()).replace("|", "/")
    text = re.sub(r"^node .*? got call_\w+ (.*)\. Give it a rule.*$", r"\1", text)
    known = next((words for said, words in WORDS.items() if said in text), None)
    return known or (text if len(text) <= 40 else f"{text[:37]}...")


def _torchvision() -> dict[str, Network]:
    from torchvision.models import get_model, list_models, segmentation

    how: dict[str, Any] = {"weights": None, "weights_backbone": None, "num_classes": CLASSES}
    names = list_models(module=segmentation)
    return {f"torchvision {name}": Network(lambda name=name: get_model(name, **how)) for name in names}


def _smp() -> dict[str, Network]:
    import segmentation_models_pytorch as smp

    def make(decoder: str, encoder: str, classes: int = CLASSES, **how: Any) -> nn.Module:
        return getattr(smp, decoder)(encoder, encoder_weights=None, classes=classes, **how)

    pairs = [(decoder, encoder) for decoder in DECODERS.split() for encoder in ("resnet18", "mit_b0")]
    pairs = [pair for pair in pairs if pair[1] != "mit_b0" or pair[0] not in NOT_MIT]
    pairs += [("Unet", encoder) for encoder in ENCODERS.split()]
    found = {
        f"smp {decoder}, {encoder}": Network(
            lambda pair=(decoder, encoder): make(*pair), 128 if decoder == "PAN" else 224 if "_224" in encoder else 64
        )
        for decoder, encoder in pairs
    }
    vit = "tu-vit_tiny_patch16_224"
    found[f"smp DPT, {vit}"] = Network(lambda: make("DPT", vit, dynamic_img_size=True))
    found["smp Unet, resnet18, one channel"] = Network(lambda: make("Unet", "resnet18", 1))
    return found


def _transformers() -> dict[str, Network]:
    import transformers as t

    t.logging.set_verbosity_error()
    vit = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
    beit = {**vit, "image_size": 64, "use_relative_position_bias": True, "pool_scales": [1, 2]}
    upernet = {"hidden_size": 16, "auxiliary_channels": 8, "pool_scales": [1, 2]}
    four: dict[str, Any] = {"depths": [1] * 4, "out_features": ["stage1", "stage2", "stage3", "stage4"]}
    heads = [1, 2, 2, 2]
    swin = t.SwinConfig(embed_dim=8, num_heads=heads, window_size=4, image_size=64, **{**four, "depths": [2] * 4})
    convnext = t.ConvNextConfig(hidden_sizes=[8, 8, 16, 16], **four)
    resnet = t.ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 16, 16], **four)
    detr = t.DetrConfig(d_model=16, num_queries=5, encoder_layers=1, decoder_layers=1, num_attention_heads=2)
    neck = {"neck_hidden_sizes": [8, 8, 8, 16, 16, 16, 32], "aspp_out_channels": 16}
    masks = {"feature_size": 32, "mask_feature_size": 16, "hidden_dim": 32, "num_queries": 5, "num_attention_heads": 2}
    configs: dict[str, tuple[str, dict[str, Any]]] = {
        "Segformer": (
            "Segformer",
            {
                "hidden_sizes": [8, 16, 16, 16],
                "depths": [1] * 4,
                "num_attention_heads": heads,
                "decoder_hidden_size": 16,
            },
        ),
        "UperNet, ConvNeXt": ("UperNet", {"backbone_config": convnext, "auxiliary_in_channels": 16, **upernet}),
        "UperNet, Swin": ("UperNet", {"backbone_config": swin, "auxiliary_in_channels": 32, **upernet}),
        "MobileViT": ("MobileViT", {"hidden_sizes": [16] * 3, "num_attention_heads": 2, **neck}),
        "MobileViT 2": ("MobileViTV2", {"base_attn_unit_dims": [16] * 3, "width_multiplier": 0.5, **neck}),
        "DPT": (
            "DPT",
            {**vit, "image_size": 64, "neck_hidden_sizes": [8, 8, 16, 16], "backbone_out_indices": [0, 1, 2, 3]},
        ),
        "BEiT": ("Beit", {**beit, "out_indices": [1, 2, 3, 4]}),
        "Data2Vec": ("Data2VecVision", {**beit, "out_indices": [0, 1, 2, 3]}),
        "MobileNetV2": ("MobileNetV2", {"depth_multiplier": 0.35}),
        "MaskFormer": ("MaskFormer", {"backbone_config": resnet, "decoder_config": detr, "fpn_feature_size": 32}),
        "Mask2Former": ("Mask2Former", {"backbone_config": swin, "encoder_layers": 1, "decoder_layers": 2, **masks}),
    }

    def make(kind: str, settings: dict[str, Any]) -> nn.Module:
        config = getattr(t, f"{kind}Config")(**settings, num_labels=CLASSES)
        kinds = [f"{kind}For{task}Segmentation" for task in ("Semantic", "Instance", "Universal")]
        return next(getattr(t, name) for name in kinds if hasattr(t, name))(config)

    found = {f"transformers {name}": Network(lambda of=of: make(*of)) for name, of in configs.items()}
    asked = {f"{name}, call=": Network(of.make, call=put_together) for name, of in found.items() if "Mask" in name}
    return {**found, **asked}


def put_together(model: nn.Module, images: Tensor) -> Tensor:
    """MaskFormer's masks of queries and their classes as a map per class, as `call=`."""
    output = model(images)
    shares = output.class_queries_logits.softmax(-1)[..., :-1]
    return torch.einsum("nqc,nqhw->nchw", shares, output.masks_queries_logits.sigmoid())


def _monai() -> dict[str, Network]:
    from monai.networks import nets

    wide, plane = {"features": (8, 8, 16, 16, 32, 8)}, {"spatial_dims": 2}
    how: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
        "UNet": ((2, 3, CLASSES, (8, 16, 32), (2, 2)), {"num_res_units": 2}),
        "BasicUNet": ((2, 3, CLASSES), wide),
        "BasicUNetPlusPlus": ((2, 3, CLASSES), wide),
        "AttentionUnet": ((2, 3, CLASSES, (8, 16, 32), (2, 2)), {}),
        "SegResNet": ((2, 8, 3, CLASSES), {"blocks_down": (1, 1, 1), "blocks_up": (1, 1)}),
        "DynUNet": ((2, 3, CLASSES, [3, 3, 3], [1, 2, 2], [2, 2]), {"filters": [8, 16, 16]}),
        "UNETR": ((3, CLASSES, (64, 64), 8, 24, 32, 2), plane),
        "SwinUNETR": ((3, CLASSES), {"feature_size": 12, "depths": (1,) * 4, "num_heads": (1, 2, 2, 2), **plane}),
        "HighResNet": ((2, 3, CLASSES), {}),
        "FlexibleUNet": ((3, CLASSES, "efficientnet-b0"), plane),
    }
    return {
        f"MONAI {name}": Network(lambda of=(name, *of): getattr(nets, of[0])(*of[1], **of[2]))
        for name, of in how.items()
    }


def _own() -> dict[str, Network]:
    vgg = {"width": 1 / 16, "fc_channels": 16}
    how: dict[str, tuple[str, dict[str, Any]]] = {name: (name, vgg) for name in perpixel.models.NETWORKS}
    how |= {name: (name, {}) for name in ("small_fcn", "fcn32s_googlenet", "deeplab_v2_resnet101")}
    how["deconvolution_stack"] = ("deconvolution_stack", {"width": 1 / 16})
    how["single_skip"] = ("single_skip", {"layer": "layer1"})
    how["single_skip, convnext_tiny"] = ("single_skip", {"backbone": "convnext_tiny", "layer": "features.1"})
    how["fcn8s_vgg16, padding=100"] = ("fcn8s_vgg16", {**vgg, "padding": 100})
    how["deeplab_largefov_vgg16, multi_scale"] = ("deeplab_largefov_vgg16", {**vgg, "multi_scale": True})
    found = {
        f"perpixel {row}": Network(lambda of=of: perpixel.models.build(of[0], CLASSES, **of[1]))
        for row, of in how.items()
    }
    found["perpixel small_fcn, one channel"] = Network(lambda: perpixel.models.small_fcn(1))
    return found


LIBRARIES: dict[str, Callable[[], dict[str, Network]]] = {
    "torchvision": _torchvision,
    "smp": _smp,
    "transformers": _transformers,
    "MONAI": _monai,
    "perpixel": _own,
}


def main() -> None:
    """Do the networks asked for, one after the other, and write their rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="networks with this text in their name")
    parser.add_argument("--dry", action="store_true", help="leave the page as it is")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    page = PAGE.read_text(encoding="utf-8")
    rows = rows_of(page) if given.only else {}
    for name, network in networks(given.only).items():
        start = time.perf_counter()
        rows[name] = row(name, network)
        print(" | ".join([*rows[name], f"{time.perf_counter() - start:.1f} s"]), flush=True)
    if not given.dry:
        PAGE.write_text(with_rows(page, rows), encoding="utf-8")


if __name__ == "__main__":
    main()
