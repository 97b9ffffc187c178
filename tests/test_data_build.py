"""The one door: every name opens torchvision's real reader on a small tree laid out as the published data are."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import mask, put_image, put_mask
from scipy.io import savemat

from perpixel.data import FolderSegmentation, SyntheticEvidence, build, eval_transforms


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def voc_root(tmp_path: Path) -> Path:
    base = tmp_path / "VOCdevkit/VOC2012"
    write(base / "ImageSets/Segmentation/train.txt", "t1\nt2\n")
    write(base / "ImageSets/Segmentation/val.txt", "v1\n")
    for stem in ("t1", "t2", "v1"):
        put_image(base / f"JPEGImages/{stem}.jpg")
        put_mask(base / f"SegmentationClass/{stem}.png", mask(0, 15, 255), "P")
    return tmp_path


@pytest.fixture
def sbd_root(tmp_path: Path) -> Path:
    base = tmp_path / "sbd"
    for name, stems in (("train", ("t1", "s1")), ("val", ("v1", "s2"))):
        write(base / f"{name}.txt", "\n".join(stems) + "\n")
        for stem in stems:
            put_image(base / f"img/{stem}.jpg")
            (base / "cls").mkdir(exist_ok=True)
            record = np.zeros((1, 1), dtype=[("Segmentation", object)])
            record["Segmentation"][0, 0] = mask(0, 20)
            savemat(base / f"cls/{stem}.mat", {"GTcls": record})
    return base


def check(data: object, classes: int, values: set[int]) -> None:
    assert data.num_classes == len(data.classes) == len(data.colors) == classes
    image, labels = pickle.loads(pickle.dumps(data))[0]  # as a spawned worker receives it
    assert (image.shape, image.dtype) == ((3, 6, 8), torch.float32)
    assert (labels.shape, labels.dtype) == ((6, 8), torch.int64)
    assert set(labels.unique().tolist()) == values
    assert torch.equal(torch.from_numpy(data.read_labels(0)), labels)


def test_voc(voc_root: Path) -> None:
    data = build("voc", voc_root, "train")
    assert len(data) == 2
    check(data, 21, {0, 15, 255})
    assert data.classes[15] == "person"
    assert data.colors[15].tolist() == [192, 128, 128]
    moved = build("voc", voc_root, "val", transforms=eval_transforms((12, 16)))
    assert moved[0][1].shape == (12, 16)
    assert type(moved[0][0]) is torch.Tensor


def test_voc_with_sbd_takes_each_image_once_and_no_validation_image(voc_root: Path, sbd_root: Path) -> None:
    data = build("voc", voc_root, "train", sbd_root=sbd_root)
    assert [Path(source.images[i]).stem for source, i in data.items] == ["t1", "t2", "s1", "s2"]
    assert set(data[0][1].unique().tolist()) == {0, 15, 255}
    assert set(data[3][1].unique().tolist()) == {0, 20}
    with pytest.raises(ValueError, match="sbd_root"):
        build("voc", voc_root, "val", sbd_root=sbd_root)


def test_sbd(sbd_root: Path) -> None:
    check(build("sbd", sbd_root, "val"), 21, {0, 20})


def test_cityscapes(tmp_path: Path) -> None:
    put_image(tmp_path / "leftImg8bit/val/ulm/ulm_000000_000019_leftImg8bit.png")
    base = tmp_path / "gtFine/val/ulm/ulm_000000_000019_gtFine"
    put_mask(Path(f"{base}_labelIds.png"), mask(0, 7, 26, 33, 9))
    for name in ("instanceIds", "color"):
        put_mask(Path(f"{base}_{name}.png"), mask(0))
    Path(f"{base}_polygons.json").write_text(json.dumps({}))
    data = build("cityscapes", tmp_path, "val")
    check(data, 19, {0, 13, 18, 255})  # road, car, bicycle; unlabelled and parking are void
    assert data.classes[:2] == ("road", "sidewalk")
    assert data.classes[18] == "bicycle"
    with pytest.raises(ValueError, match="split"):
        build("cityscapes", tmp_path, "train_extra")


def test_oxford_pets(tmp_path: Path) -> None:
    base = tmp_path / "oxford-iiit-pet"
    write(base / "annotations/trainval.txt", "Bengal_1 1 1 1\nbeagle_2 2 2 1\n")
    write(base / "annotations/test.txt", "beagle_2 2 2 1\n")
    for stem in ("Bengal_1", "beagle_2"):
        put_image(base / f"images/{stem}.jpg")
        put_mask(base / f"annotations/trimaps/{stem}.png", mask(1, 2, 3))
    for border, values in (("void", {0, 1, 255}), ("pet", {0, 1}), ("background", {0, 1})):
        check(build("oxford-pets", tmp_path, "train", border=border), 2, values)
    data = build("oxford-pets", tmp_path, "train", labels="species")
    check(data, 3, {0, 1, 255})
    assert set(data[1][1].unique().tolist()) == {0, 2, 255}
    assert len(build("oxford-pets", tmp_path, "val")) == 1
    put_mask(base / "annotations/trimaps/Bengal_1.png", mask(0, 1))
    with pytest.raises(ValueError, match="trimap values"):
        build("oxford-pets", tmp_path, "train")[0]


def test_synthetic() -> None:
    data = build("synthetic", split="val", length=5, pairs=2, transforms=eval_transforms())
    assert isinstance(data, SyntheticEvidence)
    assert (len(data), data.split, len(data.pairs)) == (5, "val", 4)
    assert len(build("synthetic")) == 1000
    assert data[0].labels.shape == (96, 128)


def test_folder(tmp_path: Path) -> None:
    put_image(tmp_path / "train/images/a.png")
    put_mask(tmp_path / "train/masks/a.png", mask(0, 1))
    data = build("folder", tmp_path, classes=["no", "yes"])
    assert isinstance(data, FolderSegmentation)
    check(data, 2, {0, 1})
    assert build("camvid", tmp_path).classes[0] == "sky"


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        ({"name": "imagenet"}, ValueError, "'synthetic', 'folder'.*'oxford-pets'"),
        ({"name": "synthetic", "root": "x"}, ValueError, "root"),
        ({"name": "synthetic", "split": "test"}, ValueError, "split"),
        ({"name": "synthetic", "worms": 3}, TypeError, "hidden_head.*worms"),
        ({"name": "folder"}, TypeError, "root"),
        ({"name": "voc", "root": "x", "mode": "fine"}, TypeError, "year, sbd_root, download"),
        ({"name": "voc", "root": "x", "split": "test"}, ValueError, "split"),
        ({"name": "voc", "root": "/nowhere"}, FileNotFoundError, "PASCAL VOC 2012"),
        ({"name": "sbd", "root": "/nowhere"}, FileNotFoundError, "SBD"),
        ({"name": "cityscapes", "root": "/nowhere"}, FileNotFoundError, "Cityscapes"),
        ({"name": "cityscapes", "root": "/nowhere", "mode": "rough"}, ValueError, "'fine', 'coarse'"),
        ({"name": "oxford-pets", "root": "/nowhere"}, FileNotFoundError, "Oxford"),
        ({"name": "oxford-pets", "root": "/nowhere", "border": 3}, ValueError, "border"),
        ({"name": "camvid", "root": "x", "classes": ["a"]}, TypeError, "no options"),
    ],
)
def test_refusals(call: dict, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        build(**call)


def test_corrupt_and_coloured_files_are_named(voc_root: Path) -> None:
    base = voc_root / "VOCdevkit/VOC2012"
    put_image(base / "SegmentationClass/t1.png")
    (base / "JPEGImages/t2.jpg").write_bytes(b"no picture")
    data = build("voc", voc_root)
    with pytest.raises(ValueError, match=r"t1\.jpg.*palette"):
        data[0]
    with pytest.raises(ValueError, match=r"t2\.jpg"):
        data[1]
    put_mask(base / "SegmentationClass/t1.png", mask(0, 30), "P")
    with pytest.raises(ValueError, match=r"t1\.jpg.*30 at row 0, column 1"):
        data[0]


@pytest.mark.slow
def test_import_stays_light() -> None:
    code = (
        "import sys, perpixel.data as d; d.SyntheticEvidence(1)[0]; d.build('synthetic');"
        "heavy = {m.split('.')[0] for m in sys.modules} & {'torchvision', 'scipy', 'PIL', 'captum', 'matplotlib'};"
        "assert not heavy, heavy"
    )
    root = str(Path(__file__).parents[1])
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": root})
