"""python -m recipes.explain at a tiny size: what is written, numbers against their definitions, mistakes, resuming."""

import json
import re
from copy import deepcopy
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from recipe_jobs import (
    CONFIGS,
    arguments,
    check_mistake,
    check_survives_its_file,
    draw_nothing,
    interrupted,
    settings_of,
    table,
)
from rich.console import Console
from torch import Tensor, nn

from perpixel.attribution import Influence, context_share, evidence_share, influence
from perpixel.evaluation import IMAGES
from perpixel.models import small_fcn
from recipes.explaining import explorer
from recipes.explaining.images import (
    ALL_OF_LABEL,
    ExplainedImage,
    ImageReader,
    count_predicted,
    evenly,
    select_images,
    with_distinct_names,
)
from recipes.explaining.job import ExplainJob
from recipes.explaining.maps import RANDOM, TRAINED, Explainer
from recipes.explaining.measurements import MEASUREMENTS, Rows
from recipes.explaining.measurements.class_matrix import PooledMatrix, matrix_rows
from recipes.explaining.measurements.signed_maps import CHANCE, OUTSIDE, REACH, SignedMaps, mean_rows
from recipes.explaining.settings import DataSetSettings, ExplainSettings
from recipes.explaining.statistics import Means
from recipes.kit.evidence import BLOSSOM
from recipes.kit.images import Images
from recipes.kit.job import Interrupt, run_recipe
from recipes.kit.progress import Progress
from recipes.kit.settings import ModelSettings

CPU = torch.device("cpu")
Loaded = tuple[ExplainSettings, Images, nn.Module]
TINY = {
    "data.train_images": "6",
    "data.eval_images": "6",
    "data.size": "[48,64]",
    "model.options": "{width: 12}",
    "ask.pictures": "1",
    "ask.least": "12",
    "ask.most": "1",
    "maps.methods": "[Influence, IntegratedGradients]",
    "maps.steps": "4",
    "curves.steps": "3",
    "curves.seeds": "2",
    "measure.images": "6",
    "measure.far": "6",
    "measure.bins": "4",
    "measure.resamples": "100",
}
TABLES = ["shares", "profiles", "alone", "means", "profile_means", "alone_means", "matrix", "faithfulness", "curves"]
TABLES += ["salient"]


def given(folder: Path | None = None, weights: Path | None = None, **changes: str) -> list[str]:
    places = {"folder": folder, "model.checkpoint": weights}
    return arguments({name: str(path) for name, path in places.items() if path is not None}, TINY, **changes)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that knows the six evaluation images by heart, so that there is something to explain."""
    torch.manual_seed(0)
    images = Images(settings_of(ExplainJob, given()).data)
    _, batch, labels, _ = next(iter(images.evaluation(batch_size=6, far=0.0)))
    network = small_fcn(images.num_classes, width=12)
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(batch), labels).backward()
        optimizer.step()
    path = tmp_path_factory.mktemp("weights") / "network.pt"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert run_recipe(ExplainJob, given(folder, weights)) == 0
    return folder


def rows(folder: Path, name: str) -> Rows:
    return table(folder / f"{name}.csv")


@pytest.fixture(scope="module")
def loaded(weights: Path) -> Loaded:
    settings = settings_of(ExplainJob, given(None, weights))
    images = Images(settings.data)
    network = small_fcn(images.num_classes, width=12)
    network.load_state_dict(torch.load(weights))
    return settings, images, network.eval()


@pytest.fixture(scope="module")
def effects(loaded: Loaded) -> list[tuple[Tensor, Influence]]:
    """What the network predicts on each evaluation image, and what its patches do there."""
    _, images, network = loaded
    batches = [batch for _, batch, _, _ in images.evaluation(batch_size=1, far=0.0)]
    return [(network(batch).argmax(1), influence(network, batch, patch=6)) for batch in batches]


def rows_of_influence(folder: Path, kind: str) -> Rows:
    """Those of shares.csv about the trained network on the measured images."""
    wanted = {"pixels_asked": kind, "network": TRAINED, "method": "Influence", "image_is": "measured"}
    return [row for row in rows(folder, "shares") if wanted.items() <= row.items()]


@pytest.mark.slow
def test_run_folder_holds_what_was_promised(whole: Path) -> None:
    for name in TABLES:
        assert rows(whole, name), name
    pictures = sorted(path.name for path in whole.glob("*.png"))
    drawn = json.loads((whole / "numbers.json").read_text())["drawn"]
    assert len(drawn) == 1
    for name in drawn:
        assert {f"{kind}-{name.replace(' ', '-')}.png" for kind in ("panels", "curves", "salient")} <= set(pictures)
        page = (whole / f"explorer-{name.replace(' ', '-')}.html").read_text()
        assert name in page
        assert "http://" not in page.replace("http://www.w3.org", "")
    assert {"matrix.png", "matrix_random.png", "evidence.png", "profiles-Influence.png"} <= set(pictures)
    for name in pictures:
        picture = matplotlib.image.imread(whole / name)
        assert min(picture.shape[:2]) > 200
        assert picture[..., :3].std() > 0.03, name  # not a blank sheet
    assert not list(whole.rglob(".*")), "something half-written was left"
    numbers = json.loads((whole / "numbers.json").read_text())
    assert [len(numbers[name]) for name in TABLES] == [len(rows(whole, name)) for name in TABLES]


@pytest.mark.slow
def test_summary_says_what_was_found_and_what_was_not(whole: Path) -> None:
    text = (whole / "summary.md").read_text()
    for title in ("Which context decides", "keep its label alone", "Do the maps find", "What this does not say"):
        assert title in text
    first = next(whole.glob("explorer-*.html")).name
    assert text.splitlines()[0] == f"**Begin here, with a click on any pixel:** [{first}]({first})"
    page = (whole / "index.html").read_text()
    files = set(re.findall(r"\]\(([^)]+)\)", text))
    assert {first, "matrix.csv", "matrix.png", "numbers.json", "profiles-Influence.png", "salient.csv"} <= files
    assert files == set(re.findall(r'(?:src|href)="([^"]+)"', page))
    for name in files:
        assert (whole / name).is_file(), name
    assert not re.search(r"\bnan\b", page)
    assert not re.search(r"\bnan\b", text)
    assert "random weights" in text


@pytest.mark.slow
def test_shares_are_those_of_the_maps(whole: Path, loaded: Loaded, effects: list[tuple[Tensor, Influence]]) -> None:
    found = rows_of_influence(whole, ALL_OF_LABEL)
    assert len(found) >= 6
    for row in found:
        label, (predicted, of_patches) = loaded[1].classes.index(row["label"]), effects[int(row["image"].split()[1])]
        region = predicted == label
        assert row["region_pixels"] == int(region.sum())
        values = of_patches.of(label, region, "margin", pixels=True)
        share = context_share(values, region, exclude_border=6)
        assert row["outside_percent"] == pytest.approx(100 * float(share), rel=1e-4)
        assert row["sum_for"] == pytest.approx(float(values.clamp(min=0).sum()), rel=1e-4)


@pytest.mark.slow
def test_evidence_is_that_of_the_data(whole: Path, loaded: Loaded, effects: list[tuple[Tensor, Influence]]) -> None:
    found, images = rows_of_influence(whole, BLOSSOM), loaded[1]
    assert found
    for row in found:
        index, label = int(row["image"].split()[1]), images.classes.index(row["label"])
        sample = images.evaluation_sample(index)
        blossoms = [sample.instances == n for n in sample.instances.unique() if n > 0]
        possible = []
        for region in (m for m in blossoms if int(sample.labels[m][0]) == label):
            values = effects[index][1].of(label, region[None], "margin", pixels=True)
            possible.append(100 * float(evidence_share(values, region[None], part="positive").share))
        assert any(row["on_evidence_percent"] == pytest.approx(value, rel=1e-4) for value in possible)
        assert row["on_evidence_percent_if_even"] == pytest.approx(100 * row["region_pixels"] / (48 * 64), rel=1e-5)


@pytest.mark.slow
def test_matrix_pools_the_images(whole: Path, loaded: Loaded) -> None:
    _, images, network = loaded
    measured = json.loads((whole / "numbers.json").read_text())["measured"]
    numbers = [int(name.split()[1]) for name in measured]
    _, batch, labels, _ = next(iter(images.evaluation(batch_size=6, far=0.0, only=numbers)))
    expected = influence(network, batch, patch=6).class_matrix(labels, least=0.25)
    found = [r for r in rows(whole, "matrix") if r["network"] == TRAINED]
    assert len(found) == int((expected.counts > 0).sum())
    for row in found:
        c, k = images.classes.index(row["class"]), images.classes.index(row["hidden"])
        assert row["pixels"] == int(expected.counts[c, k])
        assert row["logit_fall"] == pytest.approx(float(expected.values[c, k]), rel=1e-3, abs=1e-4)
        assert (row["excess_low"] != row["excess_low"]) == (row["images"] < IMAGES)


@pytest.mark.slow
def test_means_and_areas_follow_from_the_tables_beside_them(whole: Path) -> None:
    shares = [r for r in rows(whole, "shares") if r["image_is"] == "measured"]
    for row in rows(whole, "means"):
        mine = [
            r[row["quantity"]]
            for r in shares
            if (r["pixels_asked"], r["method"]) == (row["pixels_asked"], row["method"])
            and r["network"].startswith(row["network"])
            and row["label"] in ("all labels", r["label"])
        ]
        mine = [v for v in mine if v == v]
        assert row["value"] == pytest.approx(np.mean(mine) if mine else float("nan"), rel=1e-5, nan_ok=True)
    points = rows(whole, "curves")
    for row in rows(whole, "faithfulness"):
        keys = ("image", "label", "method", "curve", "score")
        line = [p for p in points if all(p[k] == row[k] for k in keys)]
        area = np.trapezoid([p["value"] for p in line], [p["fraction"] for p in line])
        random = np.trapezoid([p["random"] for p in line], [p["fraction"] for p in line])
        assert row["area"] == pytest.approx(area, rel=1e-4, abs=1e-5, nan_ok=True)
        gain = area - random if row["curve"] == "insertion" else random - area
        assert row["gain_over_random"] == pytest.approx(gain, rel=1e-3, abs=1e-4, nan_ok=True)


@pytest.mark.slow
def test_nothing_of_the_photograph_is_shown_where_it_must_not(
    whole: Path, loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, images, network = deepcopy(loaded[0]), *loaded[1:]
    shown: list[torch.Tensor] = []

    def written(path: Path, image: torch.Tensor, *rest: object, **more: object) -> None:
        shown.append(image)
        path.write_text("page")

    monkeypatch.setattr(explorer, "context_explorer", written)
    for backdrop, few in (("photograph", False), ("labels", True), ("outlines", True)):
        settings.backdrop = backdrop  # type: ignore[assignment]
        image = ImageReader(settings, images, network, CPU).with_labels(0, [0])
        explainer = Explainer(settings, {TRAINED: network}, CPU)
        (explanation,) = explainer.explain(image, [])
        explorer.write_explorer(tmp_path, explanation, settings, images, "a test")
        behind = torch.from_numpy(SignedMaps(explainer, images).backdrop(image))
        for picture in (behind.flatten(0, 1), shown[-1].flatten(1).T):
            assert (len(picture.unique(dim=0)) <= images.num_classes + 1) == few
    assert sorted(path.name for path in tmp_path.iterdir()) == ["explorer-image-0.html"]


def test_a_measured_image_is_not_measured_again_unless_its_file_is_damaged(
    loaded: Loaded, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, images, network = loaded
    networks = {TRAINED: network}
    explainer = Explainer(settings, networks, CPU)
    measurements = [kind(explainer, images) for kind in MEASUREMENTS]
    image = ImageReader(settings, images, network, CPU).evaluation(0, list(range(1, images.num_classes)))
    assert image.regions
    fabric = Fabric(accelerator="cpu", devices=1)
    job = ExplainJob(settings, tmp_path, fabric, images, Progress(Console()), Interrupt())
    first = job.measured(explainer, image, measurements)
    networks.clear()  # whatever is measured from now on is empty
    again = job.measured(explainer, image, measurements)
    assert first["shares"]
    assert str(again) == str(first)
    job.origin = {"weights": "others"}
    with pytest.raises(ValueError, match=r"weights: expected None, with which measured/image-0\.pt was computed"):
        job.measured(explainer, image, measurements)
    job.origin = {}
    (file,) = (tmp_path / "measured").iterdir()
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    file.write_bytes(damaged)
    assert job.measured(explainer, image, measurements)["shares"] == []
    assert "damaged result" in capsys.readouterr().out


@pytest.mark.slow
def test_an_image_file_is_explained_and_a_label_that_is_not_there_is_said_to_be_missing(
    loaded: Loaded, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_nothing(monkeypatch)
    _, images, network = loaded
    found, _ = count_predicted(network, CPU, images)
    label, folder, file = int(found[3, 1:].argmax()) + 1, tmp_path / "run", tmp_path / "my picture <1>.png"
    without = int(found[:, label].argmin())
    assert found[without, label] < 12 <= found[3, label]
    matplotlib.image.imsave(file, images.evaluation_sample(3).image.permute(1, 2, 0).numpy())
    changes = {"ask__images": f'["{file}",{without}]', "ask__labels": f"[{images.classes[label]}]"}
    changes |= {"curves__draw": "false", "measure__images": "0", "maps__methods": "[Influence]", "explorer": "false"}
    assert run_recipe(ExplainJob, given(folder, weights, **changes)) == 0
    assert [path.name for path in folder.glob("panels*")] == ["panels-my-picture-1-png.png"]
    assert [path.name for path in folder.glob("*.html")] == ["index.html"]
    assert not (folder / "curves.csv").exists()
    assert {row["image"] for row in rows(folder, "shares") if row["pixels_asked"] == ALL_OF_LABEL} == {file.name}
    text = (folder / "summary.md").read_text()
    assert "too few" in text
    assert f"image {without}: none of the labels asked about is predicted on 12 pixels" in text


@pytest.mark.slow
def test_without_weights_it_trains_first_and_continues_when_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_nothing(monkeypatch)
    folder = tmp_path / "run"
    changes = {"pretrain__epochs": "1", "pretrain__batch_size": "3", "ask__labels": "[background]", "ask__least": "1"}
    changes |= {"ask__images": "[0]", "measure__images": "0", "maps__methods": "[Influence]", "explorer": "false"}
    with monkeypatch.context() as patch:
        patch.setattr(Explainer, "explain", interrupted)
        assert run_recipe(ExplainJob, given(folder, None, **changes)) == 130
    assert f"--resume {folder}" in capsys.readouterr().out
    assert not (folder / "summary.md").exists()
    assert run_recipe(ExplainJob, ["--resume", str(folder)]) == 0
    assert "a training of 1 epochs" in (folder / "summary.md").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ask__labels": "[unicorn]"}, "ask.labels: expected names among background"),
        ({"ask__images": "[6]"}, "ask.images: expected numbers in [0, 6)"),
        ({"ask__images": "[/nowhere.png]"}, "ask.images: expected image files"),
        ({"ask__images": "[1, 1]"}, "ask.images: expected null, or one or more different ones"),
        ({"maps__methods": "[IntegratedGradient]"}, "Did you mean IntegratedGradients"),
        ({"maps__methods": "[]"}, "maps.methods: expected one or more different names"),
        ({"measure__methods": "[Occlusion]"}, "measure.methods: expected one of"),
        ({"ask__least": "9999"}, "ask.labels: expected labels right on 9999 pixels"),
        ({"maps__patch": "0"}, "maps.patch: expected an integer >= 1"),
    ],
)
def test_mistakes_are_reported_before_anything_is_written(
    changes: dict[str, str], message: str, tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    check_mistake(ExplainJob, given(folder, weights, **changes), message, folder, capsys)


def test_excess_is_loss_minus_control_over_images_with_both() -> None:
    generator = torch.Generator().manual_seed(1)
    parts, random = Rows(), Rows()
    for image in range(7):
        losses = torch.randn(2, 3, 3, generator=generator, dtype=torch.float64)
        counts = torch.randint(0, 4, (2, 3, 3), generator=generator).double()
        parts.append({"image": image, "network": TRAINED, "sums": losses * counts, "counts": counts})
        random.append({"image": image, "network": f"{RANDOM} 0", "sums": losses * 0, "counts": counts})
    matrix = PooledMatrix(parts + random, TRAINED)
    for c in range(3):
        for k in range(3):
            top, bottom = np.zeros(2), np.zeros(2)
            for part in parts:
                sums, counts = part["sums"], part["counts"]
                if counts[0, c, k] > 0 and counts[1, c, k] > 0:
                    top += sums[:, c, k].numpy()
                    bottom += counts[:, c, k].numpy()
            expected = top[0] / bottom[0] - top[1] / bottom[1]
            assert float(matrix.excess(c, k)(np.ones((1, 7)))[0]) == pytest.approx(expected)
    found = matrix_rows(parts + random, "abc", DataSetSettings(resamples=100))
    assert {row["network"] for row in found} == {TRAINED, RANDOM}
    for row in found:
        assert (row["excess_low"] != row["excess_low"]) == (row["images"] < IMAGES)
        if row["network"] == RANDOM:
            assert row["logit_fall"] == 0


def test_means_count_regions_not_images_and_skip_what_is_unknown() -> None:
    table = []
    for network, shift in ((TRAINED, 0.0), (f"{RANDOM} 0", 10.0), (f"{RANDOM} 1", 20.0)):
        for image, values in (("a", [1.0, 2.0]), ("b", [6.0]), ("c", [float("nan")])):
            for value in values:
                common = {"image": image, "network": network, "pixels_asked": ALL_OF_LABEL, "label": "x", "method": "M"}
                table.append(
                    {**common, OUTSIDE: value + shift, OUTSIDE + CHANCE: 50.0, REACH: 1.0, REACH + CHANCE: 2.0}
                )
    found = mean_rows(table, "abc", DataSetSettings(resamples=100))
    row = next(r for r in found if (r["network"], r["quantity"], r["label"]) == (TRAINED, OUTSIDE, "all labels"))
    assert (row["value"], row["chance"], row["minus_random_weights"]) == (3.0, 50.0, -15.0)
    assert row["value_low"] != row["value_low"]  # three images are too few
    assert float(Means(table, "abc").of(OUTSIDE, {"network": TRAINED})(np.array([[0.0, 2.0, 1.0]]))[0]) == 6.0


def test_each_label_is_drawn_where_most_of_it_is_right(loaded: Loaded) -> None:
    settings, images = deepcopy(loaded[0]), loaded[1]
    right = torch.zeros(6, images.num_classes, dtype=torch.long)
    first, second = images.pairs[0].first, images.pairs[1].first
    right[2, first], right[4, first], right[2, second] = 100, 90, 80
    settings.ask.pictures = 2
    chosen = select_images(settings, images, right + 20, right)
    assert list(chosen.drawn) == [2, 4]  # the image of `second` is taken: the next best of `first`
    assert chosen.drawn[2][0] == first or second in chosen.drawn[2]
    assert chosen.measured == [2, 4]
    assert evenly(list(range(10)), 4) == [0, 3, 6, 9]
    assert evenly([5, 7], 4) == [5, 7]


def test_images_that_would_share_files_are_numbered() -> None:
    nothing = torch.zeros(3, 4, 4)
    images = [
        ExplainedImage(name, nothing, nothing, None, nothing[0].long(), []) for name in ("a b", "a-b", "c", "a b")
    ]
    found = with_distinct_names(images)
    assert [image.name for image in found] == ["a b", "a-b 2", "c", "a b 3"]
    assert len({image.file_name for image in found}) == 4


def test_weights_come_from_one_place() -> None:
    with pytest.raises(ValueError, match=r"run, model.checkpoint, model.weights: expected one of them"):
        ExplainSettings(run="somewhere", model=ModelSettings(checkpoint="w.pt"))


def test_every_setting_survives_its_file_and_is_explained(tmp_path: Path) -> None:
    options = ["--ask.labels=[eel]", "--maps.patch=9", "--measure.view=null", "--backdrop=labels"]
    assert check_survives_its_file(ExplainJob, options, tmp_path / "config.yaml").measure.view is None
    text = ExplainJob.build_parser().format_help()
    for name in ("--ask.labels", "--maps.methods", "--backdrop", "--measure.random_seeds", "--explorer", "--resume"):
        assert name in text


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("explain*.yaml")), ids=lambda path: path.stem)
def test_configurations_that_come_along_are_valid(path: Path) -> None:
    assert settings_of(ExplainJob, ["--config", str(path)]).name == path.stem
