"""`SyntheticEvidence`: procedural scenes in which it is known which pixels decide each label."""

from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from perpixel.checks import check_flag, check_integer, check_number, check_option, complain
from perpixel.data.files.samples import VOID, Transform, check_index, transformed
from perpixel.data.ranges import check_pair, check_range
from perpixel.data.synthetic.classes import BACKGROUND, BODIES, CONTEXT, LOCAL, Pair
from perpixel.data.synthetic.layout import random_scene
from perpixel.data.synthetic.render import render
from perpixel.data.synthetic.scene import Scene


class EvidenceSample(NamedTuple):
    """One picture: what it shows, what each pixel is, which pixels decide that, and which object each belongs to.

    image float32 (3, H, W) in [0, 1] (before normalisation); labels int64 (H, W), void = 255; evidence bool (H, W);
    instances int64 (H, W), 0 = background. `default_collate` batches these into the same tuple.
    """

    image: Tensor
    labels: Tensor
    evidence: Tensor
    instances: Tensor


class SyntheticEvidence(Dataset[EvidenceSample]):
    """Creatures, tortoises and blossoms on land and sea, drawn from (seed, split, index) alone: no files, no state.

    - "confusable" pairs: bodies look alike, only the head (the evidence) tells which of the two it is; a body pixel far
      from the head can be labelled only through context.
    - "context" pair: a tortoise on the meadow and a turtle in the sea are the same picture; the evidence is the ground
      around the animal (after the toy data of Grid Saliency, Hoyer et al. 2019).
    - "local" pair: every pixel of a blossom shows its class by its colour; the evidence is the blossom.

    Args:
        length: number of samples.
        size: (H, W) of the pictures; everything scales with the shorter side.
        pairs: number of confusable pairs, 0 to 6.
        body_length: range of the creatures' lengths, in shorter image sides; shorter where that finds no room.
        creatures: range of the number of creatures in a picture (fewer where there is no room).
        noise: standard deviation of the Gaussian noise on every pixel value.
        hidden_head: probability that a creature's head lies under a stone. Its class cannot be known then: a coin.
        hidden_labels: what the body of such a creature is labelled: "true" (its class; no method can do better than
            chance there) or "void".
        context_pair, local_pair: whether these pairs occur.
        split: "train" and "val" are independent random streams of the same seed.
        transforms: called as `transforms(image, mask)` with tv_tensors; see `perpixel.data.transforms`.

    Heads are never covered by other things (only by their own stone), so evidence is empty exactly for hidden heads.
    Stones and landscape are class 0. Without transforms no pixel is void unless `hidden_labels="void"`.
    """

    def __init__(
        self,
        length: int,
        *,
        size: tuple[int, int] = (96, 128),
        pairs: int = 3,
        body_length: tuple[float, float] = (0.6, 1.1),
        creatures: tuple[int, int] = (2, 4),
        noise: float = 0.03,
        hidden_head: float = 0.1,
        hidden_labels: Literal["true", "void"] = "true",
        context_pair: bool = True,
        local_pair: bool = True,
        split: Literal["train", "val"] = "train",
        seed: int = 0,
        transforms: Transform | None = None,
    ) -> None:
        self.length = check_integer("length", length, low=0)
        self.size = check_pair("size", size, check_integer, low=32)
        self.num_pairs = check_integer("pairs", pairs, low=0, high=len(BODIES))
        self.body_length = check_range("body_length", body_length, check_number, low=0.3)
        self.creatures = check_range("creatures", creatures, check_integer, low=1)
        self.noise = check_number("noise", noise, low=0)
        self.hidden_head = check_number("hidden_head", hidden_head, low=0, high=1)
        self.hidden_labels: str = check_option("hidden_labels", hidden_labels, ("true", "void"))
        self.context_pair = check_flag("context_pair", context_pair)
        self.local_pair = check_flag("local_pair", local_pair)
        self.split: str = check_option("split", split, ("train", "val"))
        self.seed = check_integer("seed", seed, low=0)
        self.transforms = transforms
        if not (pairs or context_pair or local_pair):
            raise ValueError(complain("pairs", "at least one pair of classes", "none", "Set pairs to 1 or more."))
        heads = [head for body in BODIES[: self.num_pairs] for head in (body.first, body.second)]
        names = [BACKGROUND, *((head.name, head.label_colour) for head in heads)]
        names += [*(CONTEXT if context_pair else ()), *(LOCAL if local_pair else ())]
        self.classes = tuple(name for name, _ in names)
        self.colors = torch.tensor([colour for _, colour in names], dtype=torch.uint8)
        kinds = ["confusable"] * self.num_pairs + ["context"] * context_pair + ["local"] * local_pair
        self.pairs = tuple(Pair(1 + 2 * i, 2 + 2 * i, kind) for i, kind in enumerate(kinds))

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def __len__(self) -> int:
        return self.length

    def scene(self, index: int) -> Scene:
        """The plain description that sample `index` is drawn from."""
        index = check_index(index, self.length)
        stream = np.random.SeedSequence(self.seed, spawn_key=(("train", "val").index(self.split), index))
        scale = min(self.size) / 96
        size = self.size[0] / scale, self.size[1] / scale
        thing = {"context": "turtle", "local": "flower"}
        first_class = {thing[pair.kind]: pair.first for pair in self.pairs if pair.kind in thing}
        lengths = self.body_length[0] * 96, self.body_length[1] * 96
        rng = np.random.default_rng(stream)
        return random_scene(rng, size, self.num_pairs, first_class, self.creatures, lengths, self.hidden_head)

    def __getitem__(self, index: int) -> EvidenceSample:
        return self._finish(self.scene(index))

    def counterfactual(self, index: int, instance: int) -> EvidenceSample:
        """Sample `index` with one creature or blossom turned into its pair's other class; noise and all else stay.

        What the picture changes by is the evidence. Tortoises and turtles cannot be turned: only the ground makes them.
        """
        scene = self.scene(index)
        things = scene.things
        able = [number for number, thing in enumerate(things, 1) if thing.kind in ("creature", "flower")]
        if instance not in able:
            expected = f"a creature or blossom of the sample, one of {able}"
            raise ValueError(complain("instance", expected, instance, "Choose one."))
        label = things[instance - 1].label
        other = next(p.second if label == p.first else p.first for p in self.pairs if label in p[:2])
        return self._finish(scene.swapped(instance - 1, other))

    def _finish(self, scene: Scene) -> EvidenceSample:
        image, owner, evidence = render(scene, self.size, self.noise)
        things = scene.things
        void = self.hidden_labels == "void"
        table = np.array([0, *(VOID if t.hidden and void else t.label for t in things)], np.int64)
        instances = np.maximum(owner, 0)
        sample = EvidenceSample(
            torch.from_numpy(image),
            torch.from_numpy(table[instances]),
            torch.from_numpy(evidence),
            torch.from_numpy(instances),
        )
        return sample if self.transforms is None else _transformed(sample, self.transforms)


def _transformed(sample: EvidenceSample, transforms: Transform) -> EvidenceSample:
    """Labels, evidence and instances go through as one mask (3, H, W): the same geometry, whatever the transform is.

    What the transform fills with void (no evidence value, no instance of the sample) becomes no evidence, instance 0.
    """
    ids = sample.instances.unique()
    mask = torch.stack([sample.labels, sample.evidence.long(), sample.instances])
    image, (labels, evidence, instances) = transformed(transforms, sample.image, mask)
    known = torch.isin(instances, ids)
    return EvidenceSample(image, labels, evidence == 1, torch.where(known, instances, 0))
