"""Image and mask must stay aligned, padding must be void, and randomness must hang on (seed, epoch, index) alone."""

import copy
import math
import pickle
import random
from collections.abc import Iterable
from fractions import Fraction

import numpy as np
import pytest
import torch
from data_files import Noisy
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, default_collate
from torchvision import tv_tensors

from perpixel.data import Deterministic, SyntheticEvidence, denormalize, eval_transforms, train_transforms
from perpixel.data.transforms import PadTo, RandomScaledCrop, ResizeTo, resize_ids

PLAIN = {"jitter": 0, "mean": (0, 0, 0), "std": (1, 1, 1)}


def ramp(height: int, width: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
    """An image whose first channels are its own y and x, and masks that say the same in whole pixels."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack([(y + 0.5) / height, (x + 0.5) / width, torch.ones(height, width)])
    return tv_tensors.Image(image), tv_tensors.Mask(torch.stack([y, x]))


@given(
    size=st.tuples(st.integers(20, 60), st.integers(20, 60)),
    crop=st.tuples(st.integers(8, 80), st.integers(8, 80)),
    scale=st.floats(0.5, 2.0),
    flip=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 1000),
)
def test_image_and_mask_stay_aligned(size, crop, scale, flip, seed) -> None:
    torch.manual_seed(seed)
    image, mask = ramp(*size)
    moved, ids = train_transforms(crop, scale=(scale, scale), flip=flip, ignore_index=1000, **PLAIN)(image, mask)
    assert moved.shape == (3, *crop)
    assert ids.shape == (2, *crop)
    padded = ids[0] == 1000
    assert torch.equal(padded, moved[2] == 0)  # the mean colour, here 0, exactly where the mask is void
    inside = ~padded
    filled = [min(c, max(1, round(n * scale))) for c, n in zip(crop, size)]
    assert int(inside.sum()) == filled[0] * filled[1]
    for axis in (0, 1):
        gap = moved[axis][inside] * size[axis] - (ids[axis][inside] + 0.5)
        assert gap.abs().max() <= 1.0 + 1.0 / scale  # the nearest pixel, and the clamped ramp at a crop's rim
        assert abs(float(gap.mean())) * scale < 0.3  # no shift by half a pixel; 0.25 is the tie of an even reduction


@given(old=st.integers(1, 40), new=st.integers(1, 40))
def test_resize_ids_takes_the_pixel_under_the_centre(old: int, new: int) -> None:
    ids = torch.arange(old).expand(3, old)
    expected = [math.floor(Fraction(2 * j + 1, 2) * Fraction(old, new)) for j in range(new)]
    assert resize_ids(ids, (3, new))[1].tolist() == expected


def test_scale_and_place_vary_within_the_range() -> None:
    image, mask = ramp(50, 50)
    crop = RandomScaledCrop(20, (0.5, 2.0))
    spans = [crop(image, mask)[1][0] for _ in range(200)]
    steps = np.array([(m.max() - m.min() + 1).item() / 20 for m in spans])
    assert 0.45 < steps.min() < 0.6
    assert 1.6 < steps.max() <= 2.05
    assert len({int(m.min()) for m in spans}) > 15


def test_normalisation_and_its_inverse() -> None:
    image = torch.rand(3, 8, 9)
    moved, mask = eval_transforms()(tv_tensors.Image(image), tv_tensors.Mask(torch.zeros(8, 9, dtype=torch.int64)))
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    assert torch.allclose(moved, (image - mean) / std)
    assert torch.allclose(denormalize(moved), image, atol=1e-6)
    assert torch.allclose(denormalize(moved[None])[0], image, atol=1e-6)
    assert mask.shape == (8, 9)


def test_jitter_moves_colours_and_nothing_else() -> None:
    image, mask = ramp(24, 24)
    moved, ids = train_transforms(24, scale=(1, 1), flip=0, jitter=(0.5, 0.5, 0.5, 0.1))(image, mask)
    assert torch.equal(ids, mask)
    assert not torch.allclose(denormalize(moved), image.as_subclass(torch.Tensor), atol=1e-3)


def test_eval_size_is_exact_or_the_shorter_side() -> None:
    image, mask = ramp(30, 40)
    assert eval_transforms((17, 19))(image, mask)[1].shape == (2, 17, 19)
    assert eval_transforms(15)(image, mask)[0].shape == (3, 15, 20)
    assert ResizeTo((30, 40))(image, mask)[0] is image


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: train_transforms(0), "crop|size"),
        (lambda: train_transforms(32, scale=(2, 1)), "scale"),
        (lambda: train_transforms(32, scale=(0, 1)), "scale"),
        (lambda: train_transforms(32, flip=2), "flip"),
        (lambda: train_transforms(32, jitter=-1), "jitter"),
        (lambda: train_transforms(32, jitter=(1, 1)), "jitter"),
        (lambda: train_transforms(32, std=(0, 1, 1)), "std"),
        (lambda: eval_transforms(mean=(0.5,)), "mean"),
        (lambda: denormalize(torch.zeros(4, 5)), "image"),
        (lambda: PadTo(4)(ramp(3, 3)[0], ramp(4, 4)[1]), "common size"),
    ],
)
def test_bad_options(make, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


@given(index=st.integers(0, 99), seed=st.integers(0, 50))
def test_evidence_and_instances_move_with_the_labels(index: int, seed: int) -> None:
    plain = SyntheticEvidence(100)
    moved = Deterministic(SyntheticEvidence(100, transforms=train_transforms(150)), seed)[index]
    assert moved.image.shape == (3, 150, 150)
    void = moved.labels == 255
    assert not moved.evidence[void].any()
    assert not moved.instances[void].any()
    assert torch.equal((moved.labels == 0) | void, moved.instances == 0)
    things = plain.scene(index).things
    ids = [i for i in moved.instances.unique().tolist() if i]
    assert set(ids) <= set(plain[index].instances.unique().tolist())
    assert all((moved.labels[moved.instances == i] == things[i - 1].label).all() for i in ids)
    assert type(moved.image) is type(moved.labels) is torch.Tensor


# ---- Deterministic


def draws(data: Deterministic, order: Iterable[int] = range(8)) -> torch.Tensor:
    return torch.stack([data[i][0] for i in order])


def test_samples_depend_on_seed_epoch_and_index_only() -> None:
    data = Deterministic(Noisy(), 3)
    first = draws(data)
    assert torch.equal(first, draws(data, reversed(range(8))).flip(0))
    assert torch.equal(data[-1][0], data[7][0])
    assert len(first.unique()) == 24
    data.set_epoch(1)
    assert not (first == draws(data)).any()
    data.set_epoch(0)
    assert torch.equal(data[5][0], first[5])
    assert not (draws(Deterministic(Noisy(), 4)) == first).any()


def test_the_callers_random_state_is_left_alone() -> None:
    def states() -> tuple:
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002

    before = states()
    Deterministic(Noisy())[0]
    assert states() == before

    class Broken(Noisy):
        def __getitem__(self, index: int) -> torch.Tensor:
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        Deterministic(Broken())[0]
    assert states() == before


@pytest.mark.slow
@pytest.mark.parametrize(("start", "workers"), [("fork", 2), ("spawn", 1)])
def test_workers_change_nothing_and_hear_of_epochs(start: str, workers: int) -> None:
    data = Deterministic(Noisy(), 1)
    alone = []
    for epoch in range(2):
        data.set_epoch(epoch)
        alone.append(default_collate([data[i] for i in range(8)]))
    options = {"num_workers": workers, "persistent_workers": True, "multiprocessing_context": start}
    loader = DataLoader(data, batch_size=3, **options)
    for epoch in (0, 1, 0):
        data.set_epoch(epoch)
        for part, expected in zip(zip(*loader), alone[epoch]):
            assert torch.equal(torch.cat(part), expected)


def test_wrapper_shows_the_data_sets_attributes_and_copies() -> None:
    data = Deterministic(Noisy(), 2)
    assert data.classes == ("a", "b")
    assert len(data) == 8
    with pytest.raises(AttributeError):
        _ = data.nothing_of_the_kind
    with pytest.raises(IndexError):
        data[8]
    data.set_epoch(4)
    for twin in (copy.deepcopy(data), pickle.loads(pickle.dumps(data))):
        assert twin.epoch == 4
        assert torch.equal(twin[2][0], data[2][0])
        twin.set_epoch(5)
        assert data.epoch == 4
    for bad in (-1, 1.5):
        with pytest.raises((ValueError, TypeError), match="epoch"):
            data.set_epoch(bad)
    with pytest.raises(TypeError, match="map-style"):
        Deterministic(iter([]))
