"""What reaches the disk: whole files or none, damage found, histories without doubled rows."""

import csv
import errno
import hashlib
import html
import io
import json
import os
import random
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from markdown_it import MarkdownIt
from model_state import assert_same

from recipes.kit.run_folder import DamagedCheckpoint, write_atomically
from recipes.kit.tables import format_cell, format_interval, markdown_table, markdown_text, save_csv, save_json
from recipes.kit.weights import read_weights
from recipes.training.checkpoints import (
    FORMAT,
    LAST,
    PREVIOUS,
    load_checkpoint,
    load_newest,
    load_or_compute,
    save_checkpoint,
)
from recipes.training.history import History, read_json_lines
from recipes.training.state import random_state, set_random_state

STATE = {"step": 3, "model": {"weight": torch.arange(1000.0)}, "note": "text"}


def flipped(data: bytes, bit: int) -> bytes:
    damaged = bytearray(data)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def directory_of(archive: bytes) -> int:
    """The bit at which the directory of a zip file begins."""
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        return 8 * opened.start_dir


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    save_checkpoint(path, STATE)
    sound = path.read_bytes()
    anywhere = random.Random(0).sample(range(8 * len(sound)), 400)
    attributes = range(directory_of(sound) + 8 * 38, 8 * len(sound), 17)
    for bit in (*anywhere, *attributes, *range(8 * len(sound) - 8 * 90, 8 * len(sound), 7)):  # the last: the seal
        path.write_bytes(flipped(sound, bit))
        for read in (load_checkpoint, read_weights):
            with pytest.raises(DamagedCheckpoint, match=r"c\.pt"):
                read(path)
    for length in (0, 10, len(sound) // 2, len(sound) - 80, len(sound) - 1):
        path.write_bytes(sound[:length])
        with pytest.raises(DamagedCheckpoint, match=r"c\.pt"):
            load_checkpoint(path)


def test_a_sealed_file_is_read_by_torch_and_checked_by_other_tools(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    save_checkpoint(path, STATE)
    for mapped in (False, True):
        content = torch.load(path, weights_only=True, mmap=mapped)
        assert content.pop("format") == FORMAT
        assert_same(content["model"], STATE["model"])
    assert zipfile.ZipFile(path).testzip() is None
    data = path.read_bytes()
    assert hashlib.sha256(data[:-64]).hexdigest().encode() == data[-64:]
    save_checkpoint(path, load_checkpoint(path))
    assert path.read_bytes()[:1000] == data[:1000]


def test_of_a_file_of_others_no_bit_of_the_directory_and_no_number_is_read_wrong(tmp_path: Path) -> None:
    path, weights = tmp_path / "w.pt", {"a": torch.arange(3.0), "b": torch.ones(()), "none": torch.zeros(0)}
    torch.save(weights, path)
    sound, found = path.read_bytes(), 0
    directory = directory_of(sound)
    numbers = range(8 * sound.index(weights["a"].numpy().tobytes()), directory, 11)
    marks_of_folders = [8 * (entry.start() + 38) + 4 for entry in re.finditer(b"PK\x01\x02", sound)]
    for bit in (*range(directory, 8 * len(sound), 5), *numbers, *marks_of_folders):
        path.write_bytes(flipped(sound, bit))
        try:
            read = read_weights(path)
        except DamagedCheckpoint:
            found += 1
        else:
            assert_same(read, weights)
    assert found > 300
    path.write_bytes(sound)
    assert_same(read_weights(path), weights)


def test_a_sound_checkpoint_is_not_replaced_by_a_damaged_one(tmp_path: Path) -> None:
    last, previous = tmp_path / LAST, tmp_path / PREVIOUS
    for step in (1, 2):
        save_checkpoint(last, {"step": step}, keep_as=previous)
    last.write_bytes(flipped(last.read_bytes(), 9000))
    save_checkpoint(last, {"step": 3}, keep_as=previous)
    assert [load_checkpoint(path)["step"] for path in (previous, last)] == [1, 3]


def test_newest_sound_checkpoint(tmp_path: Path) -> None:
    told: list[str] = []
    assert load_newest(tmp_path, told.append) is None
    for step in (1, 2):
        save_checkpoint(tmp_path / LAST, {"step": step}, keep_as=tmp_path / PREVIOUS)
    newest = load_newest(tmp_path, told.append)
    assert newest == {"step": 2}
    assert not told
    (tmp_path / LAST).write_bytes(b"PK damaged")
    assert load_newest(tmp_path, told.append) == {"step": 1}
    assert "the one before it is used" in told[0]
    (tmp_path / PREVIOUS).write_bytes(b"")
    assert load_newest(tmp_path, told.append) is None
    assert "starts again" in told[-1]


def test_a_result_is_computed_once_and_again_if_damaged(tmp_path: Path) -> None:
    path, reported = tmp_path / "measured/r.pt", list[str]()
    assert load_or_compute(path, lambda: {"value": 1}, reported.append) == {"value": 1}
    assert load_or_compute(path, lambda: {"value": 2}, reported.append) == {"value": 1}
    assert not reported
    path.write_bytes(b"PK damaged")
    assert load_or_compute(path, lambda: {"value": 3}, reported.append) == {"value": 3}
    assert "damaged result" in reported[0]
    assert load_checkpoint(path) == {"value": 3}


@pytest.mark.parametrize("written", [{}, {"format": "perpixel.training 2"}])
def test_what_another_version_measured_is_refused_and_its_weights_are_not(
    written: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "r.pt"
    torch.save({**written, "value": 1}, path)
    with pytest.raises(ValueError, match=rf"^resume: expected files of .*in {path}\. Finish the run with[^\n]*$"):
        load_or_compute(path, lambda: {"value": 2}, print)
    assert load_checkpoint(path, any_format=True) == {"value": 1}


def test_tables_as_files_and_as_text(tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    save_csv(tmp_path / "t.csv", [{"a": 1, "b": nan}, {"a": inf, "c": "x, y"}])
    assert (tmp_path / "t.csv").read_text().splitlines() == ["a,b,c", "1,,", 'inf,,"x, y"']
    save_csv(tmp_path / "d.csv", [{"a": 1 / 3, "b": -0.0, "c": 1234567.0, "d": 12345678.9, "e": 1e-7 / 3, "f": True}])
    assert (tmp_path / "d.csv").read_text().splitlines()[1] == "0.333333,0,1234567,1.23457e+07,3.33333e-08,True"
    save_json(tmp_path / "t.json", {"a": [nan, (1.5, -inf)], "b": {"c": nan}})
    assert json.loads((tmp_path / "t.json").read_text()) == {"a": [None, [1.5, None]], "b": {"c": None}}
    assert markdown_table(("", "x"), [("a", "1")]) == ["|  | x |", "|---|---:|", "| a | 1 |"]
    assert format_interval(1.234, 1.0, 2.0) == "1.23 [1.00, 2.00]"
    assert format_interval(1.234, -1.0, 2.0, 1, sign=True, unit=" %") == "+1.2 % [-1.0, +2.0]"
    assert format_interval(1.234, nan, nan) == "1.23"
    assert format_interval(nan, nan, nan, missing="undefined") == "undefined"
    assert format_cell({"v": 2.0, "v_low": 1.0, "v_high": 3.0}, "v", 0) == "2 [1, 3]"


def test_names_are_shown_as_they_stand(tmp_path: Path) -> None:
    for plain in ("traffic_light", "sky", "12.50 [1.00, +2.00]", "–", "it's 5 % of the whole (1/2)"):
        assert markdown_text(plain) == plain
    assert markdown_text("a|b") == r"a\|b"
    assert markdown_text("*x* _y_ `z`\n<b>") == r"\*x\* \_y\_ \`z\` \<b\>"
    assert markdown_text("[x](http://y)") == r"[x\](http://y)"
    shown, draw = MarkdownIt("commonmark").enable(["table", "strikethrough"]), random.Random(0)
    for _ in range(300):
        name = "".join(draw.choices("ab1_*`<>|[]()!&;#~$\\\n -+=:/.\"'", k=8))
        drawn = shown.render("\n".join(markdown_table(("class", "IoU"), [(name, "1")])))
        cell, _ = re.findall(r"<td[^>]*>(.*?)</td>", drawn)
        assert html.unescape(cell) == " ".join(name.split())
    save_csv(tmp_path / "t.csv", [{"class": "=1+1", "v": -1.0}, {"class": 'a,"b"\udce9', "v": 2}])
    with (tmp_path / "t.csv").open() as file:
        assert list(csv.reader(file)) == [["class", "v"], ["'=1+1", "-1"], ['a,"b"\\udce9', "2"]]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_no_space_left_keeps_the_old_files(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path / LAST, {"step": 1})

    def full(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"no space left to write .*last.pt .*MB needed.*--resume") as caught:
        save_checkpoint(tmp_path / LAST, {"step": 2}, keep_as=tmp_path / PREVIOUS)
    assert caught.value.errno == code
    assert [p.name for p in tmp_path.iterdir()] == [LAST]
    assert load_checkpoint(tmp_path / LAST) == {"step": 1}


def test_a_write_that_fails_otherwise_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "no" / "file", b"")


def row(epoch: int) -> dict[str, float]:
    return {"epoch": epoch, "step": 2 * epoch, "miou": epoch / 10, "iou/rare": float("nan")}


def test_history_resumed_drops_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    history = History(tmp_path)
    for epoch in (1, 2):
        history.add_steps([{"step": 2 * epoch - 1, "base": 1.0}, {"step": 2 * epoch, "base": float("inf")}])
        history.add_epoch(row(epoch))
    history.close()
    with open(tmp_path / "steps.jsonl", "a") as file:
        file.write('{"step": 5, "ba')  # cut short by a kill
    assert [r["step"] for r in read_json_lines(tmp_path / "steps.jsonl")] == [1, 2, 3, 4]
    resumed = History(tmp_path, epochs=[row(1)], step=3)
    assert [r["step"] for r in read_json_lines(tmp_path / "steps.jsonl")] == [1, 2, 3]
    resumed.add_steps([{"step": 4, "base": 2.0}])
    resumed.add_epoch(row(2))
    resumed.close()
    steps = read_json_lines(tmp_path / "steps.jsonl")
    assert [(r["step"], r["base"]) for r in steps] == [(1, 1.0), (2, None), (3, 1.0), (4, 2.0)]
    assert (tmp_path / "metrics.csv").read_text().splitlines() == [
        "epoch,step,miou,iou/rare",
        "1,2,0.1,",
        "2,4,0.2,",
    ]
    assert [json.loads(line)["epoch"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2]


@pytest.mark.parametrize("damage", ["garbage", "flip", "cut", "no text"])
def test_a_damaged_log_is_mended_or_said(damage: str, tmp_path: Path) -> None:
    history = History(tmp_path)
    history.add_steps([{"step": step, "base": step / 8} for step in (1, 2, 3)])
    history.add_epoch(row(1))
    history.close()
    sound = {name: (tmp_path / name).read_bytes() for name in ("steps.jsonl", "metrics.jsonl", "metrics.csv")}
    for name, data in sound.items():
        first, rest = data.split(b"\n", 1)
        spoilt = {
            "garbage": first + b'\n7\n{"step": "x"}\n[[{\n' + rest,
            "flip": data.replace(b"0.125", b"0.135").replace(b"0.1", b"0.2"),
            "cut": data[:-12],
            "no text": b"\xff\xfe" + data,
        }
        (tmp_path / name).write_bytes(spoilt[damage])
    told: list[str] = []
    History(tmp_path, epochs=[row(1)], step=3, digest=history.steps_digest, report=told.append).close()
    assert {name: (tmp_path / name).read_bytes() for name in sound if name != "steps.jsonl"} == {
        name: data for name, data in sound.items() if name != "steps.jsonl"
    }
    mended = (tmp_path / "steps.jsonl").read_bytes() == sound["steps.jsonl"]
    assert mended == (damage == "garbage")
    assert (not told) == mended
    assert mended or re.search(
        r"steps\.jsonl: its rows up to step 3 are not .* the [23] that can be read are kept", told[0]
    )


def test_random_state_comes_back_through_a_file(tmp_path: Path) -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002

    draw()
    save_checkpoint(tmp_path / LAST, {"random": random_state()})
    expected = draw()
    set_random_state(load_checkpoint(tmp_path / LAST)["random"])
    assert draw() == expected
