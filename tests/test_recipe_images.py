"""Images of a recipe: mistakes in the data show before anything is trained, in a line with the file's name."""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from data_files import put_image, put_mask
from finetune_runs import finetune, tiny
from recipe_jobs import check_mistake, interrupted
from rich.console import Console

from recipes.finetuning.job import FinetuneJob
from recipes.kit.images import Images
from recipes.kit.progress import Progress
from recipes.kit.settings import DataSettings
from recipes.training.pretraining import train_network

SIZE = (16, 16)
VOID = np.full(SIZE, 255)
OPTIONS = {
    "data__name": "folder",
    "data__train_images": "null",
    "data__eval_images": "null",
    "data__size": "null",
}


def labels(high: int = 3) -> np.ndarray:
    return np.arange(SIZE[0] * SIZE[1]).reshape(SIZE) % high


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split, count in (("train", 4), ("val", 3)):
        for number in range(count):
            put_image(tmp_path / f"{split}/images/{number}.png", SIZE)
            put_mask(tmp_path / f"{split}/masks/{number}.png", labels())
    (tmp_path / "classes.txt").write_text("sky\nroad\ntree\n")
    return tmp_path


def images(root: Path, **settings: object) -> Images:
    return Images(DataSettings("folder", str(root), **settings))  # type: ignore[arg-type]


def all_void(root: Path, split: str) -> None:
    for path in (root / split / "masks").iterdir():
        put_mask(path, VOID)


def single(root: Path) -> None:
    for kind in ("images", "masks"):
        for number in (1, 2):
            (root / "val" / kind / f"{number}.png").unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (single, "data: expected at least two evaluation images, got 1"),
        (lambda root: all_void(root, "val"), "labelled pixels in the evaluation masks, got none in all 3 of them"),
        (lambda root: all_void(root, "train"), "labelled pixels in the training masks, got none in all 4 of them"),
        (
            lambda root: put_mask(root / "val/masks/2.png", labels(5)),
            "2.png: expected labels in [0, 3) or ignore_index",
        ),
        (lambda root: put_mask(root / "val/masks/2.png", labels()[1:]), "2.png: expected image and mask of one size"),
        (lambda root: (root / "val/images/1.png").write_bytes(b""), "1.png: expected a readable image file"),
    ],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_mistakes_in_the_data_show_before_training(
    spoil: Callable[[Path], object], message: str, workers: int, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(root)
    folder = root / "run"
    given = tiny(folder, data__root=str(root), data__workers=str(workers), **OPTIONS)
    check_mistake(FinetuneJob, given, message, folder, capsys)


def test_a_network_that_is_only_looked_at_is_not_trained_on_nothing_either(root: Path) -> None:
    all_void(root, "train")
    job = SimpleNamespace(images=images(root), progress=Progress(Console()), settings=SimpleNamespace(pretrain=None))
    with pytest.raises(ValueError, match="labelled pixels in the training masks"):
        train_network(job, root)  # type: ignore[arg-type]


def test_training_masks_that_are_all_void_are_counted(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (1, 3):
        put_mask(root / f"train/masks/{number}.png", VOID)
    monkeypatch.setattr("recipes.finetuning.job.train", interrupted)
    assert finetune(tiny(root / "run", data__root=str(root), **OPTIONS)) == 130
    assert f"warning: 2 of 4 training masks are all void, first {root}/train/masks/1.png\n" in capsys.readouterr().out


def test_what_else_is_wrong_without_an_error_is_said(root: Path) -> None:
    told: list[str] = []
    images(root).check_labels(told.append)
    assert told == []
    for path in (root / "train/masks").iterdir():
        put_mask(path, np.where(labels() == 1, 255, 0))
    images(root, eval_split="train").check_labels(told.append)
    (root / "classes.txt").unlink()
    put_mask(root / "train/masks/0.png", labels(2) * 99)
    images(root).check_labels(told.append)
    assert told.pop() == "warning: 2 of 100 classes occur (0, 99): are these class numbers?"
    assert len(told) == 2
    assert "training masks are 'sky'; 255 is void, so an object painted in 255 is not learned" in told[0]
    assert f"4 of 4 evaluation images are trained on, first {root}/train/images/0.png" in told[1]


@pytest.mark.parametrize(
    ("values", "said"),
    [((0, 1), "1 is foreground, 255 is void"), ((0, 255), "255 is foreground, there is no void")],
)
def test_binary_masks_are_two_classes_for_a_network_of_one_output(
    values: tuple[int, int], said: str, root: Path
) -> None:
    (root / "classes.txt").unlink()
    for path in root.rglob("masks/*.png"):
        put_mask(path, np.where(labels() == 1, values[1], values[0]))
    told: list[str] = []
    found = images(root, binary=True)
    found.check_labels(told.append)
    assert told == [f"masks: 0 is background, {said}"]
    assert (found.classes, found.num_classes, found.channels) == (("background", "foreground"), 2, 1)
    _, truth = next(found.training(seed=0, epoch=0, batch_size=2))
    assert truth.unique().tolist() == [0, 1]
    if values[1] == 1:
        assert images(root).channels == 2
    else:
        with pytest.raises(
            ValueError, match=r"^data: expected two classes or more .* got class 0 alone.*--data.binary true"
        ):
            images(root)


def test_binary_masks_that_contradict_each_other_are_refused_before_training(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "classes.txt").unlink()
    for path in root.rglob("masks/*.png"):
        put_mask(path, labels(2))
    put_mask(root / "val/masks/1.png", labels(2) * 255)
    given = tiny(root / "run", data__root=str(root), data__binary="true", **OPTIONS)
    message = "error: data.binary: expected 0 and one other value in the masks, or 0, 1 and 255 for void, got 1 in"
    check_mistake(FinetuneJob, given, message, root / "run", capsys)
    check_mistake(FinetuneJob, given, f"255 without 1 in {root}/val/masks/1.png", root / "run", capsys)
    with pytest.raises(ValueError, match=r"data.binary: expected data of two classes, got those of background, "):
        Images(DataSettings(binary=True))


def test_another_void_in_the_data_set_than_in_training_is_refused(root: Path) -> None:
    with pytest.raises(ValueError, match=r"data.ignore_index: expected 2, as the data set has, got int 255"):
        images(root, options={"ignore_index": 2})
    images(root, ignore_index=2)


def test_an_error_in_a_worker_is_one_line_with_the_file(root: Path) -> None:
    (root / "train/images/2.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"^[^\n]*2\.png: expected a readable image file[^\n]*$"):
        list(images(root, workers=1).training(seed=0, epoch=0, batch_size=2))


def test_a_worker_that_is_killed_is_said(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recipes.kit.images._transformed", lambda *_: os.kill(os.getpid(), 9))
    with pytest.raises(ChildProcessError, match=r"^data.workers: expected processes that live[^\n]*$"):
        list(images(root, workers=1).training(seed=0, epoch=0, batch_size=2))


def test_a_picture_to_look_at_is_read_as_carefully_as_the_data(root: Path) -> None:
    put_mask(root / "deep.png", np.full(SIZE, 300), "I;16")
    (root / "no.png").write_bytes(b"no picture")
    for name, message in (("deep.png", "8 bits per channel"), ("no.png", "a readable image file")):
        with pytest.raises(ValueError, match=rf"^picture.image: expected an image file, got [^\n]*{name}: .*{message}"):
            images(root).picture(str(root / name))
    put_image(root / "fine.png", (5, 7))
    picture, name = images(root, size=(10, 14)).picture(str(root / "fine.png"))
    assert (picture.shape, name) == ((1, 3, 10, 14), "fine.png")
