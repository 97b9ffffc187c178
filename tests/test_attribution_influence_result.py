"""What is read off an influence: evidence and context; where it is kept, and in which precision."""

import gc
import itertools
from pathlib import Path

import pytest
import torch
from influence_cases import SIZE, images_of, small, small_case
from torch import Tensor, nn

from perpixel.attribution.influence import storage
from perpixel.attribution.influence.influence import influence
from perpixel.attribution.influence.result import Influence


@pytest.fixture
def found() -> Influence:
    return influence(*small_case(), patch=8, baselines="mean")


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 1.0])
def test_evidence_is_the_smallest_set(share: float) -> None:
    images = images_of(2, SIZE).double()
    found = influence(small(double=True), images, patch=10, baselines="mean")
    region = torch.rand(2, *SIZE) > 0.5
    effect = found.of(1, region).flatten(1)
    evidence = found.evidence(1, region, share)
    assert evidence.units.shape == (2, *found.grid)
    for n in range(2):
        positive = effect[n].clamp(min=0)
        chosen = evidence.units[n].flatten()
        held = float(positive[chosen].sum() / positive.sum())
        assert held == pytest.approx(float(evidence.reached[n]))
        assert held >= share - 1e-12
        assert list(evidence.order[n]) == sorted(chosen.nonzero().flatten().tolist(), key=lambda i: -positive[i])
        count = int(evidence.counts[n])
        assert count == int(chosen.sum()) > 0
        for fewer in itertools.combinations(range(len(positive)), count - 1):
            assert float(positive[list(fewer)].sum()) < share * float(positive.sum()) + 1e-12


def test_no_positive_influence_no_evidence() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.zeros(len(x), 2, *x.shape[-2:], dtype=x.dtype)

    found = influence(Fixed(), images_of(2, SIZE), patch=10)
    evidence = found.evidence(0)
    assert not evidence.units.any()
    assert evidence.order == ((), ())
    assert evidence.reached.isnan().all()
    assert found.context_share(0).isnan().all()


def test_context_leaves_out_what_touches_the_region(found: Influence) -> None:
    region = torch.zeros(2, *SIZE, dtype=torch.bool)
    region[0, 5:9, 5] = True
    region[1, 20, 25] = True
    whole, outside = found.of(1, region), found.context_only(1, region)
    for n in range(2):
        for number, (top, left, bottom, right) in enumerate(found.boxes.tolist()):
            touches = bool(region[n, top:bottom, left:right].any())
            assert bool(found.touching(region)[n].flatten()[number]) == touches
            assert float(outside[n].flatten()[number]) == (0.0 if touches else float(whole[n].flatten()[number]))
    share = outside.abs().sum((1, 2)) / whole.abs().sum((1, 2))
    torch.testing.assert_close(found.context_share(1, region), share, rtol=1e-6, atol=0)
    left_out = found.context_only(1, region, fill=torch.nan)
    assert torch.equal(left_out.isnan(), found.touching(region))
    assert torch.equal(found.touching(region[0])[1], found.touching(region)[0])


def test_what_is_over_the_cap_goes_to_a_file_that_goes_with_it(tmp_path: Path) -> None:
    model, images = small_case(dtype=torch.float32)
    kept = influence(model, images, patch=8)
    size = kept.values.numel() * 4
    assert influence(model, images, patch=8, memory_cap=size, storage=tmp_path).file is None
    found = influence(model, images, patch=8, memory_cap=size - 1, storage=tmp_path)
    assert found.file is not None
    assert [found.file] == list(tmp_path.iterdir())
    assert found.file.stat().st_size == size
    assert torch.equal(found.values, kept.values)
    region = torch.rand(2, *SIZE) > 0.5
    for score in ("logit", "margin"):
        assert torch.equal(found.of(1, region, score), kept.of(1, region, score))
    torch.testing.assert_close(found.class_matrix().values, kept.class_matrix().values, equal_nan=True)
    view = found.values[0, 3]
    del found
    gc.collect()
    assert list(tmp_path.iterdir())
    assert torch.equal(view, kept.values[0, 3])
    del view
    gc.collect()
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_an_error_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.os, "posix_fallocate", no_room, raising=False)
    with pytest.raises(OSError, match="No space left"):
        influence(small(), images_of(1, SIZE), patch=8, memory_cap=0, storage=tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(OSError, match="storage: expected room for"):
        storage.Storage(memory_cap=0, storage=tmp_path).allocate((1 << 60,), torch.zeros(()))
    with pytest.raises(FileNotFoundError):
        influence(small(), images_of(1, SIZE), patch=8, memory_cap=0, storage=tmp_path / "none")


@pytest.mark.parametrize(("dtype", "slack"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2), (torch.float64, 1e-6)])
def test_other_types_to_keep(dtype: torch.dtype, slack: float) -> None:
    model, images = small_case(dtype=torch.float32)
    exact, found = influence(model, images, patch=8), influence(model, images, patch=8, dtype=dtype, device="cpu")
    assert found.values.dtype == dtype
    region = torch.rand(2, *SIZE) > 0.5
    for score in ("logit", "margin"):
        expected = exact.of(1, region, score)
        atol = slack * float(expected.abs().max())
        torch.testing.assert_close(found.of(1, region, score), expected, rtol=slack, atol=atol)


def test_progress_is_shown_where_asked(capsys: pytest.CaptureFixture[str]) -> None:
    influence(small(), images_of(1, SIZE), patch=8, show_progress=True)
    assert "influence: 100%" in capsys.readouterr().err
    influence(small(), images_of(1, SIZE), patch=8)
    assert capsys.readouterr().err == ""


def test_inside_inference_mode_under_autocast_and_channels_last() -> None:
    model, images = small_case(dtype=torch.float32)
    expected = influence(model, images, patch=8)
    region = torch.rand(2, *SIZE) > 0.5
    with torch.inference_mode():
        inside = influence(model, images * 1.0, patch=8)
        torch.testing.assert_close(inside.values, expected.values)
        torch.testing.assert_close(inside.of(1, region), expected.of(1, region))
        torch.testing.assert_close(inside.on_pixel(3, 4, 1, "margin"), expected.on_pixel(3, 4, 1, "margin"))
    last = influence(model, images.to(memory_format=torch.channels_last), patch=8)
    torch.testing.assert_close(last.values, expected.values)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = influence(model, images, patch=8)
    assert half.logits.dtype == torch.float32
    assert half.values.dtype == torch.float32
    assert half.of(1, region, "margin").dtype == torch.float32
    torch.testing.assert_close(half.of(1, region), expected.of(1, region), rtol=0.1, atol=3.0)
