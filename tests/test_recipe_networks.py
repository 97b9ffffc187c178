"""Starting weights, and which layers train at which rate."""

import re
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
import torchvision
from model_state import assert_same, snapshot
from safetensors.torch import save_file
from torch import nn

from perpixel.models import AtrousPyramid, build, small_fcn
from recipes.kit.networks import build_network, layers_to_logits, select_layers
from recipes.kit.run_folder import DamagedCheckpoint
from recipes.kit.settings import ModelSettings, Schedule
from recipes.kit.weights import load_weights, read_weights, starting_weights, unwrap_weights
from recipes.tracing.network import rival_logits
from recipes.training.optimizer import build_optimizer, set_training

DEEPLAB = "deeplabv3_mobilenet_v3_large"
UNFETCHED = [URLError("no route"), RuntimeError("invalid hash value"), TimeoutError("timed out")]


def trainable(network: nn.Module) -> set[str]:
    return {name for name, parameter in network.named_parameters() if parameter.requires_grad}


def test_layers_come_in_the_order_they_run_and_without_the_auxiliary_head() -> None:
    network = build_network(ModelSettings(DEEPLAB, aux_loss=True), 4)
    before = snapshot(network)
    path = layers_to_logits(network)
    assert path[-1] == "classifier.4"
    assert not [name for name in path if name.startswith("aux_classifier")]
    assert path.index("backbone.0.0") < path.index("classifier.0.convs.0.0") < path.index("classifier.0.project.0")
    assert_same(snapshot(network), before)


def test_order_is_that_of_running_not_of_registration() -> None:
    class Reversed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.norm, self.first = nn.Conv2d(5, 2, 1), nn.BatchNorm2d(5), nn.Conv2d(3, 5, 1)
            self.unused = nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.norm(self.first(x)))

    assert layers_to_logits(Reversed()) == ["first", "norm", "last"]


def test_last_three_layers_train_with_the_normalisation_behind_them() -> None:
    network = small_fcn(3, width=8)
    chosen, classifier = select_layers(network, "last-3")
    assert classifier == "classifier"
    assert chosen == ["context.2.0", "context.2.1", "context.3.0", "context.3.1", "classifier"]
    biased = {f"{name}.{kind}" for name in chosen if not name.endswith(".0") for kind in ("weight", "bias")}
    assert trainable(network) == {"context.2.0.weight", "context.3.0.weight"} | biased
    deeplab = build_network(ModelSettings(DEEPLAB, aux_loss=True), 4)
    projection = ["classifier.0.project.0", "classifier.0.project.1"]
    assert select_layers(deeplab, "last-3")[0] == [*projection, "classifier.1", "classifier.2", "classifier.4"]


def test_layers_are_counted_from_the_classifier_that_the_network_declares() -> None:
    network = build_network(ModelSettings("fcn8s_vgg16", options={"width": 1 / 32, "fc_channels": 8}), 3)
    chosen, classifier = select_layers(network, "last-3")
    assert classifier == "score"
    assert chosen[:3] == ["fc6", "fc7", "score"]
    assert {*chosen[3:]} == {"score_pool4", "score_pool3", "upscore2", "upscore_pool4", "upscore8"}
    assert not [name for name in trainable(network) if name.startswith("features")]
    head = select_layers(network, "head")[0]  # the scores of skips begin at zero: frozen, they would stay there
    assert head == chosen[2:]


def test_head_and_all() -> None:
    network = small_fcn(3, width=8)
    select_layers(network, "head")
    assert trainable(network) == {"classifier.weight", "classifier.bias"}
    select_layers(network, "all")
    assert trainable(network) == {name for name, _ in network.named_parameters()}
    with pytest.raises(ValueError, match=r"model.head: expected a layer the logits depend on.*classifier"):
        select_layers(network, "all", head="nowhere")


def test_a_classifier_or_pyramid_of_several_layers_is_one() -> None:
    tiny = {"width": 1 / 16, "fc_channels": 4}
    branches = [f"fc6.branches.{k}" for k in range(4)]
    chosen, classifier = select_layers(build("deeplab_v2_vgg16", 3, **tiny), "last-3")
    assert (chosen, classifier) == ([*branches, "fc7", "classifier"], "classifier")
    network = small_fcn(3, width=8)
    network.classifier = AtrousPyramid(8, 3)
    branches = [f"classifier.branches.{k}" for k in range(4)]
    assert select_layers(network, "head") == (branches, "classifier")
    assert trainable(network) == {f"{name}.{kind}" for name in branches for kind in ("weight", "bias")}
    chosen = select_layers(network, "last-3")[0]
    assert chosen == ["context.2.0", "context.2.1", "context.3.0", "context.3.1", *branches]
    rates = {group["lr"] for group in build_optimizer(network, "classifier", Schedule(lr=0.1)).param_groups}
    assert rates == {0.1, 0.2, 1.0, 2.0}


def test_frozen_normalisation_does_not_move() -> None:
    network = small_fcn(3, width=8)
    chosen, _ = select_layers(network, "last-3")
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    set_training(network, chosen)
    network(torch.randn(2, 3, 16, 16))
    moved = {name for name, buffer in network.named_buffers() if not torch.equal(buffer, before[name])}
    assert {name.rsplit(".", 1)[0] for name in moved} == {"context.2.1", "context.3.1"}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_rates_and_decay_of_the_groups(optimizer: Any) -> None:
    network = small_fcn(3, width=8)
    select_layers(network, "all")
    schedule = Schedule(lr=0.1, optimizer=optimizer, weight_decay=0.01, bias_multiplier=2.0, head_multiplier=10.0)
    found = {}
    for group in build_optimizer(network, "classifier", schedule).param_groups:
        for parameter in group["params"]:
            name = next(n for n, p in network.named_parameters() if p is parameter)
            found[name] = (pytest.approx(group["lr"]), group["weight_decay"])
    assert found.keys() == dict(network.named_parameters()).keys()
    assert found["stem.0.0.weight"] == (0.1, 0.01)
    assert found["stem.0.1.weight"] == (0.1, 0.0)  # normalisation: no decay
    assert found["stem.0.1.bias"] == (0.2, 0.0)
    assert found["classifier.weight"] == (1.0, 0.01)
    assert found["classifier.bias"] == (2.0, 0.0)


def test_learning_rate_policies() -> None:
    poly = Schedule(policy="poly", power=0.9)
    assert [poly.factor(s, 10) for s in (0, 5)] == [1.0, pytest.approx(0.5**0.9)]
    step = Schedule(policy="step", gamma=0.1)
    assert [step.factor(s, 6) for s in range(6)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    warm = Schedule(policy="constant", warmup=4)
    assert [warm.factor(s, 10) for s in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    with pytest.raises(ValueError, match="lr: expected a finite number in"):
        Schedule(lr=0.0)


@pytest.mark.parametrize("form", ["plain", "model", "state_dict", "ddp", "lightning", "ema", "safetensors"])
def test_checkpoints_of_many_makers_load(form: str, tmp_path: Path) -> None:
    source, network = small_fcn(3, width=8), small_fcn(3, width=8)
    state: dict[str, Any] = source.state_dict()
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pt")
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save(
            {
                "plain": state,
                "model": {"model": state, "optimizer": {"lr": 1.0}, "epoch": 3},
                "state_dict": {"state_dict": state},
                "ddp": {f"module.{k}": v for k, v in state.items()},
                "lightning": {"state_dict": {f"model.{k}": v for k, v in state.items()}},
                "ema": {
                    "model": network.state_dict(),
                    "ema": {"n_averaged": torch.tensor(1)} | {f"module.{k}": v for k, v in state.items()},
                },
            }[form],
            path,
        )
    assert load_weights(network, read_weights(path), str(path), replace_head=False, num_classes=3) == []
    assert_same(network.state_dict(), state)


def test_another_number_of_classes_needs_consent() -> None:
    source, network = small_fcn(5, width=8).state_dict(), small_fcn(3, width=8)
    with pytest.raises(
        ValueError, match=r"expected 3 classes.*classifier.weight of shape \(5, 8, 1, 1\).*replace_head"
    ):
        load_weights(network, source, "w.pt", replace_head=False, num_classes=3)
    own = network.classifier.weight.clone()
    new = load_weights(network, source, "w.pt", replace_head=True, num_classes=3)
    assert new == ["classifier.weight", "classifier.bias"]
    assert torch.equal(network.classifier.weight, own)
    assert torch.equal(network.stem[0][0].weight, source["stem.0.0.weight"])


def test_missing_unexpected_and_misshapen_entries_are_named() -> None:
    network, state = small_fcn(3, width=8), small_fcn(3, width=8).state_dict()
    before = snapshot(network)
    state["surplus"] = state.pop("stem.0.0.weight")
    state["context.0.0.weight"] = torch.zeros(8, 8, 1, 1)
    with pytest.raises(
        ValueError, match=r"1 missing \(stem.0.0.weight\).*1 unexpected \(surplus\).*1 of another shape"
    ):
        load_weights(network, state, "w.pt", replace_head=True, num_classes=3)
    assert_same(snapshot(network), before)


def test_integers_for_fractions_and_nan_are_refused() -> None:
    network, state = small_fcn(3, width=8), small_fcn(3, width=8).state_dict()
    before = snapshot(network)
    state["stem.0.0.weight"] = (100 * state["stem.0.0.weight"]).to(torch.int8)
    state["classifier.bias"][1] = torch.nan
    with pytest.raises(ValueError, match=r"1 of integers.*\(stem.0.0.weight\).*1 with NaN \(classifier.bias\)"):
        load_weights(network, state, "w.pt", replace_head=False, num_classes=3)
    assert_same(snapshot(network), before)


def test_a_damaged_file_of_torchvision_is_not_started_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    enum = torchvision.models.get_model_weights(DEEPLAB)
    monkeypatch.setattr(enum, "get_state_dict", lambda *_, **__: pytest.fail("was read"))
    file = tmp_path / "checkpoints" / enum["DEFAULT"].url.rpartition("/")[2]
    file.parent.mkdir()
    file.write_bytes(b"other weights")
    with pytest.raises(ValueError, match=r"SHA-256 begins with \w{8}, got another content in .*Remove it"):
        starting_weights(ModelSettings(DEEPLAB, weights="DEFAULT"))


@pytest.mark.parametrize(
    ("name", "setting", "error"),
    [
        *((DEEPLAB, setting, error) for setting in ("weights", "weights_backbone") for error in UNFETCHED),
        *((name, "weights_backbone", UNFETCHED[0]) for name in ("single_skip", "deconvolution_stack")),
    ],
)
def test_weights_that_cannot_be_fetched_are_told_with_where_to_put_them(
    name: str, setting: str, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    settings = ModelSettings(name, **{setting: "DEFAULT"})
    with pytest.raises(ConnectionError) as caught:
        build_network(settings, 3) if setting == "weights_backbone" else starting_weights(settings)
    file = r"https://download.pytorch.org/models/\w*(mobilenet_v3_large|vgg16|resnet18)-\w{8}.pth"
    remedy = rf"Fetch {file} by other means and put it into {tmp_path}/checkpoints\."
    assert re.match(rf"model.{setting}: expected the file .*, got {error.args[0]}. {remedy}$", str(caught.value))


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="not there"):
        read_weights(tmp_path / "none.pt")
    for name in ("text.pt", "text.safetensors"):
        (tmp_path / name).write_text("no weights at all")
        with pytest.raises(DamagedCheckpoint, match=name):
            read_weights(tmp_path / name)
    torch.save(small_fcn(2, width=8), tmp_path / "pickled.pt")  # a whole module: not loaded with weights_only=True
    with pytest.raises(DamagedCheckpoint, match=r"weights_only=True.*Save model.state_dict\(\) alone"):
        read_weights(tmp_path / "pickled.pt")
    with pytest.raises(ValueError, match="a mapping with keys"):
        unwrap_weights({"epoch": 3}, "w.pt")


def test_torchvision_weights_by_name_get_a_new_classifier(monkeypatch: pytest.MonkeyPatch) -> None:
    source = torchvision.models.get_model(DEEPLAB, weights=None, weights_backbone=None, aux_loss=True).state_dict()
    enum = torchvision.models.get_model_weights(DEEPLAB)
    monkeypatch.setattr(enum, "get_state_dict", lambda self, **_: source)
    settings = ModelSettings(DEEPLAB, weights="DEFAULT")
    chosen = starting_weights(settings)
    assert chosen is not None
    network = build_network(settings, 4)
    new = load_weights(network, *chosen, replace_head=True, num_classes=4)
    assert new == ["classifier.4.weight", "classifier.4.bias"]
    assert torch.equal(network.state_dict()["backbone.0.0.weight"], source["backbone.0.0.weight"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (ModelSettings("fcn_resnet5"), "model.name: expected one of small_fcn, .* or of torchvision's"),
        (ModelSettings("small_fcn", aux_loss=True), "model.aux_loss: expected nothing for small_fcn"),
        (ModelSettings("lraspp_mobilenet_v3_large", aux_loss=True), "but lraspp_mobilenet_v3_large has none"),
        (ModelSettings(DEEPLAB, weights_backbone="COCO"), "weights_backbone: expected one of IMAGENET1K_V1.*COCO"),
        (ModelSettings(DEEPLAB, weights="IMAGENET"), "one of COCO_WITH_VOC_LABELS_V1.*IMAGENET"),
        (ModelSettings(weights="DEFAULT"), "torchvision has no weights for this network"),
        (ModelSettings(DEEPLAB, weights="DEFAULT", checkpoint="w.pt"), "one of them"),
    ],
)
def test_networks_and_starts_that_cannot_be(settings: ModelSettings, message: str) -> None:
    def start() -> None:
        starting_weights(settings)
        build_network(settings, 3)

    with pytest.raises(ValueError, match=message):
        start()


def test_checkpoints_of_caffe_ask_by_the_setting_what_images_they_saw() -> None:
    network = build_network(ModelSettings("fcn32s_vgg16", options={"width": 1 / 32, "fc_channels": 8}), 3)
    names = {
        "score.weight": "score_fr.weight",
        "features.0.weight": "conv1_1.weight",
        "features.0.bias": "conv1_1.bias",
    }
    state = {names.get(name, name): value.clone() for name, value in network.state_dict().items()}
    given = {"source": "w.pt", "replace_head": False, "num_classes": 3}
    with pytest.raises(ValueError, match=r"^model.caffe_pixels: expected true or false, got None.* in w.pt"):
        load_weights(network, state, **given)
    load_weights(network, state, caffe_pixels=False, **given)
    assert torch.equal(network.get_parameter("features.0.weight"), state["conv1_1.weight"])
    load_weights(network, state, caffe_pixels=True, **given)
    blue = 255 * 0.225 * state["conv1_1.weight"][:, 0]  # the first channel of Caffe, the last here
    assert torch.allclose(network.get_parameter("features.0.weight")[:, 2], blue)


def test_rivals_are_asked_of_all_scores_of_a_network_with_skips() -> None:
    """The new logit is the difference of two old ones; where each class is upsampled in its own way, there is none."""
    torch.manual_seed(0)
    network = build("fcn8s_vgg16", 3, width=1 / 16, fc_channels=8).eval()
    for name in ("score_pool4", "score_pool3"):
        nn.init.normal_(network.get_parameter(f"{name}.weight"))
    images = torch.randn(1, 3, 40, 48)
    with torch.no_grad():
        logits, found = network(images), rival_logits(network, {0: 2})(images)
        expected = torch.stack([logits[:, 0] - logits[:, 2], logits[:, 1], logits[:, 2]], 1)
        assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max()))
        network.get_parameter("upscore8.weight")[0] *= 1.5
    with pytest.raises(ValueError, match=r"trace.question: .*not the same for all classes"):
        rival_logits(network, {0: 2})
