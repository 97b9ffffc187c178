"""Folders of images and masks: both layouts, and an error that a person can act on for every way they go wrong."""

import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_files import put_image, put_mask
from PIL import Image

from perpixel.data import FolderSegmentation, build, palette

CAMVID = Path(__file__).parents[2] / "shared/data/camvid"


def ids(height: int = 6, width: int = 8, high: int = 3) -> np.ndarray:
    return np.arange(height * width).reshape(height, width) % high


def refused(root: Path, match: str, error: Any = ValueError, read: int | None = None, **options: Any) -> None:
    """Making the data set, or only reading this pair of it, fails with a message that matches."""
    data = None if read is None else FolderSegmentation(root, **options)
    with pytest.raises(error, match=match):
        _ = FolderSegmentation(root, **options) if data is None else data[read]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split, stems in (("train", "abc"), ("val", "de")):
        for stem in stems:
            put_image(tmp_path / split / "images" / f"{stem}.jpg")
            put_mask(tmp_path / split / "masks" / f"{stem}.png", ids())
    return tmp_path


def test_nested_layout(root: Path) -> None:
    (root / "train/images/.hidden.jpg").write_bytes(b"")
    (root / "train/images/notes.md").write_text("no picture")
    data = FolderSegmentation(root, "train", num_classes=3)
    assert len(data) == 3
    assert data.stems == ("a", "b", "c")
    image, labels = data[0]
    assert (image.dtype, image.shape) == (torch.float32, (3, 6, 8))
    assert image.mean() == pytest.approx(100 / 255, abs=1e-3)
    assert labels.dtype == torch.int64
    assert torch.equal(labels, torch.from_numpy(ids()))
    assert data.classes == ("class 0", "class 1", "class 2")
    assert torch.equal(data.colors, palette(3))
    data.verify()


@pytest.mark.parametrize("place", ["train.txt", "splits/train.txt", "given"])
def test_flat_layout_with_lists(tmp_path: Path, place: str) -> None:
    for stem in ("x/one", "x/two", "three.v2"):
        put_image(tmp_path / "images" / f"{stem}.png")
        put_mask(tmp_path / "masks" / f"{stem}.png", ids())
    put_image(tmp_path / "images" / "unlabelled.png")
    file = tmp_path / ("lists/mine.lst" if place == "given" else place)
    file.parent.mkdir(exist_ok=True)
    file.write_text("# a comment\nx/two\n\nthree.v2\nx/one.png\n")
    data = FolderSegmentation(tmp_path, num_classes=3, list_file="lists/mine.lst" if place == "given" else None)
    assert data.stems == ("x/two", "three.v2", "x/one")
    assert data[1][1].shape == (6, 8)


@pytest.mark.parametrize("mode", ["L", "P", "I;16"])
def test_every_way_to_store_ids(root: Path, mode: str) -> None:
    put_mask(root / "train/masks/a.png", ids(), mode)
    assert torch.equal(FolderSegmentation(root, num_classes=3)[0][1], torch.from_numpy(ids()))


def test_grey_images_become_rgb_and_exif_turns_them(root: Path) -> None:
    Image.fromarray(np.full((6, 8), 51, np.uint8)).save(root / "train/images/a.jpg", quality=100)
    assert torch.allclose(FolderSegmentation(root, num_classes=3)[0][0], torch.tensor(0.2), atol=0.01)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((8, 6, 3), np.uint8)).save(root / "train/images/a.jpg", exif=exif)
    assert FolderSegmentation(root, num_classes=3)[0][0].shape == (3, 6, 8)


def test_names_from_file_option_or_count(root: Path) -> None:
    put_mask(root / "val/masks/d.png", np.full((6, 8), 4))
    put_mask(root / "val/masks/e.png", np.full((6, 8), 255))
    assert FolderSegmentation(root, "train").num_classes == 5  # counted over all splits, void left out
    (root / "classes.txt").write_text("sky\nold road\n\nsea\n")
    assert FolderSegmentation(root).classes == ("sky", "old road", "sea")
    data = FolderSegmentation(root, classes=["x", "y", "z"], colors=[(1, 2, 3)] * 3)
    assert data.classes == ("x", "y", "z")
    assert data.colors.tolist() == [[1, 2, 3]] * 3


def test_names_as_json(root: Path) -> None:
    file = root / "classes.json"
    file.write_text('["sky", "stra\u00dfe", "sea"]')
    assert FolderSegmentation(root).classes == ("sky", "stra\u00dfe", "sea")
    for text, message in (('["sky", 3]', "a list of names, got list"), ('{"0": "sky"}', "got dict"), ("[sky", "JSON")):
        file.write_text(text)
        refused(root, rf"classes\.json: expected .*{message}")
    file.write_text('["sky", "road", "sea"]')
    (root / "classes.txt").write_text("sky\nroad\nsea\n")
    refused(root, "classes.txt or classes.json, got both")


def test_other_void_value(root: Path) -> None:
    put_mask(root / "train/masks/a.png", np.full((6, 8), 9))
    assert set(FolderSegmentation(root, num_classes=3, ignore_index=9)[0][1].unique().tolist()) == {9}


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"num_classes": 0}, ValueError, "num_classes"),
        ({"num_classes": 2, "classes": ["a", "b", "c"]}, ValueError, "2 beside 3"),
        ({"classes": ["a", "a"]}, ValueError, "different names"),
        ({"classes": "abc"}, TypeError, "sequence of names"),
        ({"num_classes": 3, "colors": [(0, 0, 0)]}, ValueError, "3 rows"),
        ({"num_classes": 3, "list_file": "none.txt"}, FileNotFoundError, "list_file"),
        ({"num_classes": 3, "ignore_index": "void"}, TypeError, "ignore_index"),
    ],
)
def test_bad_options(root: Path, options: dict, error: type[Exception], words: str) -> None:
    refused(root, words, error, **options)


def test_missing_places(root: Path) -> None:
    refused(root / "nowhere", "root", FileNotFoundError)
    refused(root, "splits found: train, val", FileNotFoundError, split="test")
    (root / "train/masks").rename(root / "train/labels")
    refused(root, "masks", FileNotFoundError, num_classes=3)


def test_unpaired_files(root: Path) -> None:
    put_mask(root / "train/masks/z.png", ids())
    refused(root, r"1 mask\(s\) without image: z")
    put_image(root / "train/images/z.jpg")
    put_image(root / "train/images/y.jpg")
    refused(root, r"1 image\(s\) without mask: y")
    put_mask(root / "train/masks/y.png", ids())
    put_image(root / "train/images/y.png")
    refused(root, r"y\.jpg and y\.png")


def test_empty_folder_and_lists(root: Path) -> None:
    for path in (root / "train/images").iterdir():
        path.unlink()
    refused(root, "image files")
    flat = root / "flat"
    put_image(flat / "images/a.png")
    put_mask(flat / "masks/a.png", ids())
    (flat / "train.txt").write_text("\n")
    refused(flat, "empty list")
    (flat / "train.txt").write_text("a\nb\n")
    refused(flat, "line 2", FileNotFoundError)


def test_sizes_that_differ(root: Path) -> None:
    put_mask(root / "train/masks/b.png", ids(6, 7))
    refused(root, r"b\.jpg and .*b\.png.*image 6 x 8, mask 6 x 7", read=1, num_classes=3)


def test_label_outside_the_classes_names_file_value_and_place(root: Path) -> None:
    bad = ids()
    bad[2, 5] = 7
    put_mask(root / "train/masks/b.png", bad)
    refused(root, r"b\.png.*7 at row 2, column 5", read=1, num_classes=3)
    data = FolderSegmentation(root, num_classes=3)
    data[0]
    with pytest.raises(ValueError, match=r"b\.png"):
        data.verify()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_coloured_mask(root: Path, mode: str) -> None:
    Image.new(mode, (8, 6)).save(root / "train/masks/a.png")
    refused(root, rf"a\.png.*one channel.*{mode}.*palette", read=0, num_classes=3)


def test_lossy_mask_and_deep_image(root: Path) -> None:
    (root / "train/masks/a.png").unlink()
    Image.fromarray(ids().astype(np.uint8)).save(root / "train/masks/a.jpg")
    put_mask(root / "train/images/b.tif", ids(), "I")
    (root / "train/images/b.jpg").unlink()
    refused(root, "JPEG", read=0, num_classes=3)
    refused(root, "8 bits", read=1, num_classes=3)


@pytest.mark.parametrize("place", ["images/a.jpg", "masks/a.png"])
def test_corrupt_file_is_named(root: Path, place: str) -> None:
    file = root / "train" / place
    for content in (b"not a picture", file.read_bytes()[:40], b""):
        file.write_bytes(content)
        refused(root, file.name, read=0, num_classes=3)


def test_no_program_is_started_for_a_picture(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PIL would give PostScript, whatever the file is called, to ghostscript."""
    started: list[object] = []
    monkeypatch.setattr("subprocess.Popen", lambda *given, **_: started.append(given))
    Image.new("RGB", (8, 6)).save(root / "train" / "images" / "a.jpg", format="EPS")
    with pytest.raises(ValueError, match="cannot identify image file"):
        FolderSegmentation(root)[0]
    assert started == []


def test_a_picture_too_large_to_open_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    refused(root, r"^[^\n]*a\.jpg: expected a readable image file, got DecompressionBomb[^\n]*$", read=0, num_classes=3)


def test_texts_in_other_encodings(root: Path) -> None:
    (root / "classes.txt").write_bytes("sky\nstra\u00dfe\nsea\n".encode("latin-1"))
    refused(root, r"classes\.txt: expected text in UTF-8, got a byte 0xdf in line 2")
    (root / "classes.txt").write_bytes("sky\r\nstra\u00dfe\r\nsea\r\n".encode("utf-8-sig"))
    assert FolderSegmentation(root).classes == ("sky", "stra\u00dfe", "sea")
    (root / "classes.txt").write_text("sky\nclear\x1b[2J\nsea\n")
    refused(root, "without control characters")


def test_file_names_that_are_not_text(root: Path) -> None:
    image, mask = (
        Path(os.fsdecode(os.fsencode(root / f"train/{kind}") + b"/\xe9.png")) for kind in ("images", "masks")
    )
    try:
        put_image(image)
    except OSError:
        pytest.skip("this file system takes only text")
    put_mask(mask, ids())
    data = FolderSegmentation(root, num_classes=3)
    assert torch.equal(data[3][1], torch.from_numpy(ids()))
    image.write_bytes(b"no picture")
    with pytest.raises(ValueError, match="udce9") as caught:
        data[3]
    str(caught.value).encode()


def test_a_stem_listed_twice_and_hidden_folders(tmp_path: Path) -> None:
    for stem in ("a", "b", ".checkpoints/a"):
        put_image(tmp_path / "images" / f"{stem}.png")
        put_mask(tmp_path / "masks" / f"{stem}.png", ids())
    (tmp_path / "train.txt").write_text("a\nb\n")
    assert FolderSegmentation(tmp_path, num_classes=3).stems == ("a", "b")
    (tmp_path / "train.txt").write_text("a\nb\na.png\n")
    refused(tmp_path, r"train\.txt: expected every stem once, got a again in line 3")
    (tmp_path / "images").rename(tmp_path / "both")
    for kind in ("images", "masks"):
        (tmp_path / "train" / kind / ".checkpoints").mkdir(parents=True)
        put_mask(tmp_path / "train" / kind / ".checkpoints/a.png", ids())
        put_mask(tmp_path / "train" / kind / "a.png", ids())
    assert FolderSegmentation(tmp_path, num_classes=3).stems == ("a",)


def test_a_lossy_mask_is_told_by_its_content(root: Path) -> None:
    Image.fromarray(ids().astype(np.uint8)).save(root / "train/masks/a.png", "JPEG")
    frames = [Image.fromarray((ids() + shift).astype(np.uint8)) for shift in (0, 1)]
    (root / "train/masks/b.png").unlink()
    frames[0].save(root / "train/masks/b.tif", save_all=True, append_images=frames[1:])
    refused(root, "JPEG that alters class ids", read=0, num_classes=3)
    refused(root, r"b\.tif: expected one picture, got 2", read=1, num_classes=3)


def test_ids_that_readers_would_scale_are_refused(root: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 8, 6, 2, 0, 0, 0, 0)  # 8 x 6 pixels, 2 bits, grey: id 3 is read as 255, void
    rows = zlib.compress((b"\0" + bytes([0b00000011] * 2)) * 6)
    grey = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    (root / "train/masks/a.png").write_bytes(grey)
    refused(root, r"a\.png: expected 8 or 16 bits per label, got grey of 2 or 4 bits", read=0, num_classes=4)
    palette_of_four = Image.fromarray(ids(high=4).astype(np.uint8), "P")
    palette_of_four.putpalette([0, 0, 0, 9, 9, 9, 20, 20, 20, 30, 30, 30])
    palette_of_four.save(root / "train/masks/a.png", bits=2)
    assert torch.equal(FolderSegmentation(root, num_classes=4)[0][1], torch.from_numpy(ids(high=4)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_image_and_mask_are_turned_alike(root: Path, orientation: int) -> None:
    exif, upright = Image.Exif(), ids()
    exif[0x0112] = orientation
    for kind in ("images", "masks"):
        Image.fromarray(upright.astype(np.uint8)).save(root / "train" / kind / "a.png", exif=exif)
    (root / "train/images/a.jpg").unlink()
    data = FolderSegmentation(root, num_classes=3)
    image, labels = data[0]
    assert torch.equal((255 * image[0]).round().long(), labels)
    assert (labels.shape == (8, 6)) == (orientation > 4)
    assert np.array_equal(data.read_labels(0), labels.numpy())
    assert not data.is_turned_in_place(0)
    put_mask(root / "train/masks/a.png", ids())
    assert data.is_turned_in_place(0) == (orientation in (2, 3, 4))
    if orientation > 4:
        with pytest.raises(ValueError, match="image 8 x 6, mask 6 x 8"):
            data.read_labels(0)


def test_labels_alone_meet_the_errors_of_whole_pairs(root: Path) -> None:
    put_mask(root / "train/masks/a.png", ids() + 3)
    put_mask(root / "train/masks/b.png", ids(6, 7))
    (root / "train/images/c.jpg").write_bytes(b"no picture")
    data = FolderSegmentation(root, num_classes=3)
    for index, words in enumerate((r"a\.png.*values 3, 4, 5", "one size", r"c\.jpg.*readable image")):
        with pytest.raises(ValueError, match=words):
            data.read_labels(index)


@pytest.mark.skipif(not CAMVID.is_dir(), reason="CamVid is not here")
def put_binary(root: Path, **masks: object) -> None:
    """Masks a, b, c, d, e with these values, 0 and 1 where none are given."""
    for split, stems in (("train", "abc"), ("val", "de")):
        for stem in stems:
            values = np.asarray(masks.get(stem, (0, 1)))
            put_mask(root / split / "masks" / f"{stem}.png", np.resize(values, (6, 8)))


@pytest.mark.parametrize(
    ("values", "foreground", "labels"),
    [
        ((0, 1), 1, (0, 1)),
        ((0, 255), 255, (0, 1)),
        ((0, 1, 255), 1, (0, 1, 255)),
        ((0, 38), 38, (0, 1)),
    ],
)
def test_the_foreground_of_binary_masks_is_found(
    root: Path, values: tuple[int, ...], foreground: int, labels: tuple[int, ...]
) -> None:
    put_binary(root, **dict.fromkeys("abde", values), c=(0,))
    for split in ("train", "val"):
        data = FolderSegmentation(root, split, foreground="found")
        assert (data.foreground, data.classes) == (foreground, ("background", "foreground"))
        expected = torch.from_numpy(np.resize(np.array(labels), (6, 8)))
        assert torch.equal(data[0][1], expected)
        assert np.array_equal(data.read_labels(0), expected.numpy())
    assert torch.equal(FolderSegmentation(root, foreground=foreground)[2][1], torch.zeros(6, 8).long())


def test_masks_stored_as_bits_are_binary(root: Path) -> None:
    for path in root.rglob("masks/*.png"):
        Image.fromarray(ids(high=2).astype(bool)).save(path)
    data = FolderSegmentation(root, foreground="found")
    assert torch.equal(data[0][1], torch.from_numpy(ids(high=2)))


@pytest.mark.parametrize(
    ("masks", "words"),
    [
        ({"b": (0, 255)}, r"^foreground: .*1 in .*a\.png, and 255 without 1 in .*b\.png.* foreground: 1 \(255 is void"),
        ({"d": (255,)}, r"255 without 1 in .*val/masks/d\.png"),
        ({"b": (0, 2)}, r"got 1 in .*a\.png, 2 in .*b\.png"),
        (dict.fromkeys("abcde", (0, 128, 255)), r"got 128 in .*a\.png, 255 in .*a\.png.*by the option foreground"),
        (dict.fromkeys("abcde", (0,)), "a value besides 0 in some mask, got 0 in all"),
    ],
)
def test_masks_whose_foreground_is_not_clear_are_refused_by_name(root: Path, masks: dict, words: str) -> None:
    put_binary(root, **masks)
    refused(root, words, foreground="found")


def test_a_named_foreground_is_held_to(root: Path) -> None:
    put_binary(root, b=(0, 255), c=(0, 7))
    assert FolderSegmentation(root, foreground=1)[1][1].unique().tolist() == [0, 255]
    refused(
        root, r"a\.png: expected 0 \(background\), 255 \(foreground\), got 1 at row 0, column 1", foreground=255, read=0
    )
    refused(root, r"c\.png: expected 0 .*, 1 \(foreground\) or ignore_index=255, got 7", foreground=1, read=2)
    for options, words in (
        ({"foreground": 0}, "foreground: expected another value than 0"),
        ({"foreground": "255"}, "foreground: expected one of 'found'"),
        ({"foreground": 255, "ignore_index": 1}, "ignore_index: expected neither 0 nor 1 beside foreground"),
        ({"foreground": 1, "num_classes": 3}, "classes: expected two beside foreground, got 3 classes"),
        ({"foreground": 1, "classes": ["a", "b", "c"]}, "classes: expected two"),
    ):
        refused(root, words, **options)
    assert FolderSegmentation(root, foreground=1, classes=["no", "yes"]).classes == ("no", "yes")


def test_camvid() -> None:
    for split in ("train", "val"):
        data = build("camvid", CAMVID, split)
        assert data.num_classes == 11
        assert data.classes[3] == "road"
        image, labels = data[len(data) // 2]
        assert image.shape[1:] == labels.shape
        assert (labels == 3).float().mean() > 0.05
