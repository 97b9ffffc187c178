"""`SyntheticEvidence` promises that evidence is what decides a label; these tests hold it to that."""

import pickle
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import default_collate

from perpixel.data import EvidenceSample, SyntheticEvidence, evidence_distance
from perpixel.data.synthetic import scene, shapes

ALL = SyntheticEvidence(10_000, pairs=6, creatures=(3, 4), hidden_head=0.3)
indices = st.integers(0, 9_999)


def same(a: EvidenceSample, b: EvidenceSample) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b))


@given(index=indices, pairs=st.integers(0, 6), size=st.sampled_from([(96, 128), (64, 64), (70, 51), (48, 160)]))
def test_sample_is_well_formed(index: int, pairs: int, size: tuple[int, int]) -> None:
    data = SyntheticEvidence(10_000, size=size, pairs=pairs)
    image, labels, evidence, instances = sample = data[index]
    assert [part.dtype for part in sample] == [torch.float32, torch.int64, torch.bool, torch.int64]
    assert image.shape == (3, *size)
    assert labels.shape == evidence.shape == instances.shape == size
    assert 0 <= image.min() <= image.max() <= 1
    assert 0 <= labels.min() <= labels.max() < data.num_classes == len(data.classes) == len(data.colors)
    assert torch.equal(labels == 0, instances == 0)
    things = data.scene(index).things
    for number in instances.unique().tolist()[1:]:
        assert set(labels[instances == number].tolist()) == {things[number - 1].label}


@given(index=indices)
def test_sample_is_a_pure_function_of_seed_split_and_index(index: int) -> None:
    sample = SyntheticEvidence(10_000)[index]
    assert same(sample, SyntheticEvidence(20_000)[index])
    assert same(sample, SyntheticEvidence(10_000)[index - 10_000])
    for other in (SyntheticEvidence(10_000, seed=1), SyntheticEvidence(10_000, split="val")):
        assert not torch.equal(sample.image, other[index].image)


def test_drawing_leaves_global_random_state_alone() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    ALL[3]
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()  # noqa: NPY002


@given(index=indices)
def test_evidence_lies_where_it_should(index: int) -> None:
    sample, things = ALL[index], ALL.scene(index).things
    for number, thing in enumerate(things, start=1):
        mine = sample.instances == number
        if thing.kind == "creature" and thing.hidden:
            assert not (sample.evidence & mine).any()
        elif thing.kind == "creature":
            y, x = np.nonzero((sample.evidence & mine).numpy())
            away = np.hypot(y + 0.5 - thing.spine[0, 0], x + 0.5 - thing.spine[0, 1])
            assert len(y) > 60  # of about 110: no head is covered
            assert away.max() < 2 * scene.HEAD_RADIUS
        elif thing.kind == "flower":
            assert (sample.evidence[mine]).all()
        elif thing.kind == "turtle":
            assert not sample.evidence[mine].any()
    assert (sample.evidence & (sample.instances == 0)).any() == any(t.kind == "turtle" for t in things)


@given(index=indices)
def test_changing_a_class_changes_only_the_evidence(index: int) -> None:
    sample, things = ALL[index], ALL.scene(index).things
    for number, thing in enumerate(things, start=1):
        if thing.kind not in ("creature", "flower"):
            continue
        other = ALL.counterfactual(index, number)
        change = (sample.image - other.image).abs().amax(0)
        decides = (sample.evidence & (sample.instances == number)) | (other.evidence & (other.instances == number))
        for reach, most in ((1, 0.02), (2, 1e-6)):  # the anti-aliased rim
            around = torch.nn.functional.max_pool2d(decides[None].float(), 2 * reach + 1, 1, reach)[0] > 0
            assert change[~around].max() <= most
        if thing.hidden:
            assert not change.any()
        else:
            assert (change[decides] > 0).float().mean() > 0.8
        mine = (sample.instances == number) & (other.instances == number)
        assert (sample.labels[mine] != other.labels[mine]).all()
        rest = (sample.instances != number) & (other.instances != number)
        assert torch.equal(sample.labels[rest], other.labels[rest])


def test_counterfactual_refuses_what_only_the_ground_decides() -> None:
    turtle = next(i + 1 for i, thing in enumerate(ALL.scene(0).things) if thing.kind == "turtle")
    for instance in (0, turtle, 99):
        with pytest.raises(ValueError, match="creature or blossom"):
            ALL.counterfactual(0, instance)


def test_tortoise_and_turtle_are_one_picture_and_the_ground_names_them() -> None:
    y, x = np.arange(96, dtype=np.float32)[:, None], np.arange(128, dtype=np.float32)[None]
    seen = set()
    for index in range(40):
        landscape = ALL.scene(index)
        for thing in landscape.things:
            if thing.kind != "turtle":
                continue
            seen.add(ALL.classes[thing.label])
            sea = landscape.ground.level(thing.spine[:, 0], thing.spine[:, 1])[0] > 0
            assert ALL.classes[thing.label] == ("turtle" if sea else "tortoise")
            one, two = (shapes.turtle(replace(thing, side=side), y, x) for side in (0, 1))
            assert all((a == b).all() for a, b in zip(one, two))
    assert seen == {"tortoise", "turtle"}


def test_every_pixel_of_a_blossom_shows_its_colour() -> None:
    """But for the rim, where anti-aliasing mixes in what lies behind."""
    data = SyntheticEvidence(30, noise=0.0)
    names = {"poppy": 0, "cornflower": 0}
    for image, labels, _, _ in (data[i] for i in range(30)):
        for name, sign in (("poppy", 1), ("cornflower", -1)):
            other = (labels != data.classes.index(name)).float()
            pixels = image[:, torch.nn.functional.max_pool2d(other[None], 3, 1, 1)[0] == 0]
            names[name] += pixels.shape[1]
            assert (sign * (pixels[0] - pixels[2]) > 0.05).all()
    assert min(names.values()) > 500


def test_classes_are_fair_coins() -> None:
    """Neither the pose, nor the place, nor being hidden tells the class: all 95 % bands of a fair coin, widened."""
    things = [thing for index in range(600) for thing in ALL.scene(index).things]
    creatures = [(thing.side, thing.hidden, thing.spine[0, 1]) for thing in things if thing.kind == "creature"]
    side, hidden, first_x = np.array(creatures, float).T
    band = 3 * 0.5 / np.sqrt(len(side))
    assert abs(side.mean() - 0.5) < band
    assert abs(hidden.mean() - 0.3) < 2 * band
    for property_ in (hidden, first_x):
        assert abs(np.corrcoef(side, property_)[0, 1]) < 2 * band
    grounds = Counter(thing.label for thing in things if thing.kind == "turtle")
    assert min(grounds.values()) / sum(grounds.values()) > 0.4


def test_size_only_scales_the_picture() -> None:
    small, large = SyntheticEvidence(5)[2], SyntheticEvidence(5, size=(288, 384))[2]
    agree = small.labels == large.labels[1::3, 1::3]
    assert agree.float().mean() > 0.995


def test_hidden_labels_can_be_void() -> None:
    data = SyntheticEvidence(10, hidden_head=1.0, hidden_labels="void", context_pair=False, local_pair=False)
    for image, labels, evidence, instances in (data[i] for i in range(5)):
        assert not evidence.any()
        assert set(labels[instances > 0].tolist()) == {255}
        assert image.isfinite().all()


def test_optional_pairs_and_their_names() -> None:
    data = SyntheticEvidence(20, pairs=1, context_pair=False, local_pair=False)
    assert data.classes == ("background", "viper", "cobra")
    assert data.pairs == ((1, 2, "confusable"),)
    assert {label for i in range(20) for label in data[i].labels.unique().tolist()} == {0, 1, 2}
    absurd = SyntheticEvidence(10, body_length=(3, 4), pairs=1, context_pair=False, local_pair=False)
    assert all((absurd[i].labels > 0).any() for i in range(10))
    assert [pair.kind for pair in SyntheticEvidence(1).pairs] == ["confusable"] * 3 + ["context", "local"]
    assert len(set(map(tuple, ALL.colors.tolist()))) == ALL.num_classes == 17


def test_ends_collates_and_pickles() -> None:
    data = SyntheticEvidence(4)
    assert len(list(data)) == 4
    with pytest.raises(IndexError, match="index"):
        data[4]
    batch = default_collate([data[0], data[1]])
    assert isinstance(batch, EvidenceSample)
    assert batch.image.shape == (2, 3, 96, 128)
    assert batch.labels.shape == batch.evidence.shape == (2, 96, 128)
    assert same(pickle.loads(pickle.dumps(data))[1], data[1])


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"length": -1}, ValueError, "length"),
        ({"size": 96}, TypeError, "size"),
        ({"size": (96, 16)}, ValueError, "size"),
        ({"pairs": 7}, ValueError, "pairs"),
        ({"pairs": 0, "context_pair": False, "local_pair": False}, ValueError, "at least one pair"),
        ({"body_length": (2, 1)}, ValueError, "low <= high"),
        ({"creatures": (0, 2)}, ValueError, "creatures"),
        ({"noise": -0.1}, ValueError, "noise"),
        ({"noise": float("nan")}, ValueError, "noise"),
        ({"hidden_head": 1.5}, ValueError, "hidden_head"),
        ({"hidden_labels": "zero"}, ValueError, "'true', 'void'"),
        ({"context_pair": 1}, TypeError, "context_pair"),
        ({"split": "test"}, ValueError, "'train', 'val'"),
        ({"seed": -1}, ValueError, "seed"),
    ],
)
def test_bad_options(options: dict, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        SyntheticEvidence(**{"length": 3, **options})


# ---- evidence_distance


def slow_distance(instances: torch.Tensor, evidence: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    result = torch.full(instances.shape, float("nan"))
    behind = {int(i) for i in instances[context].unique()}
    for y, x in (instances > 0).nonzero().tolist():
        number = int(instances[y, x])
        goals = (evidence & (instances == (0 if number in behind else number))).nonzero().tolist()
        result[y, x] = min((((y - v) ** 2 + (x - u) ** 2) ** 0.5 for v, u in goals), default=float("inf"))
    return result


@given(seed=st.integers(0, 10_000))
def test_evidence_distance_equals_the_slow_loop(seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    instances = torch.randint(0, 4, (7, 9), generator=rng) * 2  # ids with gaps
    evidence = torch.rand(7, 9, generator=rng) < 0.15
    context = instances == 4
    expected = slow_distance(instances, evidence, context)
    assert torch.allclose(evidence_distance(instances, evidence, context=context), expected, equal_nan=True)
    plain = evidence_distance(instances, evidence)
    assert torch.allclose(plain, slow_distance(instances, evidence, context & False), equal_nan=True)
    assert plain.dtype == torch.float32


def test_evidence_distance_on_scenes() -> None:
    data = SyntheticEvidence(20, hidden_head=0.5)
    turtles = torch.tensor([data.classes.index("tortoise"), data.classes.index("turtle")])
    for index in range(20):
        _, labels, evidence, instances = data[index]
        far = evidence_distance(instances, evidence, context=torch.isin(labels, turtles))
        assert torch.equal(far.isnan(), instances == 0)
        assert torch.equal(far == 0, evidence & (instances > 0))
        hidden = [i + 1 for i, t in enumerate(data.scene(index).things) if t.hidden]
        assert torch.equal(far.isinf(), torch.isin(instances, torch.tensor(hidden, dtype=torch.int64)))


def test_evidence_distance_refuses_batches_and_wrong_types() -> None:
    ids = torch.zeros(4, 5, dtype=torch.int64)
    with pytest.raises(ValueError, match="instances"):
        evidence_distance(ids[None], ids[None] > 0)
    with pytest.raises(ValueError, match="evidence"):
        evidence_distance(ids, ids[:2] > 0)
    with pytest.raises(TypeError, match="bool"):
        evidence_distance(ids, ids)
