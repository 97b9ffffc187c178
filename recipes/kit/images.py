"""Training and evaluation images: which, in which order, and what was done to them, all functions of (seed, epoch)."""

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision import tv_tensors

from perpixel import data
from perpixel.checks import complain
from perpixel.data import ResizeTo
from recipes.kit.settings import DataSettings

EvaluationBatch = tuple[Tensor, Tensor, Tensor, Tensor | None]  # indices, images, labels, far-body mask


class _Samples(Dataset[Any]):
    """`count` samples, number i made by `make(i)`; kept after they were first asked for if `keep`."""

    def __init__(self, make: Callable[[int], Any], count: int, *, keep: bool = False) -> None:
        self.make, self.count, self.keep = make, count, keep
        self._kept: dict[int, Any] = {}

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        if not self.keep:
            return self.make(index)
        if index not in self._kept:
            self._kept[index] = self.make(index)
        return self._kept[index]


def _transformed(dataset: Dataset[Any], transforms: Any, index: int) -> tuple[Tensor, Tensor]:
    """Image and labels of a sample after `transforms`."""
    image, labels, *_ = dataset[index]
    image, labels = transforms(tv_tensors.Image(image), tv_tensors.Mask(labels))
    return image.as_subclass(Tensor), labels.as_subclass(Tensor)


def _inspect(dataset: Any, index: int) -> Tensor:
    """Labelled pixels by class of a sample on files, and 1 where its image is turned and its mask perhaps not."""
    labels, classes = dataset.read_labels(index), dataset.num_classes
    counts = np.bincount(np.where(labels == dataset.ignore_index, classes, labels).ravel(), minlength=classes + 1)
    counts[classes] = dataset.is_turned_in_place(index)  # in place of the void pixels
    return torch.from_numpy(counts)


class _Attempted(Dataset[Any]):
    """Samples, or the mistakes met in reading them: raised in a worker, they would come with its traceback as text."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> Any:
        try:
            return self.dataset[index]
        except (ValueError, TypeError, OSError) as mistake:
            return mistake if type(mistake).__module__ == "builtins" else ValueError(str(mistake))


def _collate(samples: list[Any]) -> Any:
    """The batch, or the first mistake in it."""
    return next((sample for sample in samples if isinstance(sample, Exception)), None) or default_collate(samples)


def _for_evaluation(
    dataset: Dataset[Any], transforms: Any, confusable: Tensor | None, far: float, index: int
) -> tuple[Any, ...]:
    """index, image, labels, far-body mask; the mask is left out of data without evidence masks."""
    sample = (index, *_transformed(dataset, transforms, index))
    if confusable is None:
        return sample
    _, labels, evidence, instances = dataset[index]
    distance = data.evidence_distance(instances, evidence)
    return (*sample, (distance >= far) & distance.isfinite() & torch.isin(labels, confusable))


class Images:
    """Both parts of a data set, with its `classes`, `colors` and `num_classes`; `channels`, those of a network for it.

    `size` is applied first and to both parts, so that cached images are small; random changes come after the cache.
    """

    def __init__(self, settings: DataSettings) -> None:
        self.settings, self.ignore_index = settings, settings.ignore_index
        synthetic = settings.name == "synthetic"
        self._keep = synthetic if settings.cache is None else settings.cache
        self._foreground: int | str | None = "found"
        source, self._train = self._part(settings.train_split, settings.train_images)
        self._foreground = getattr(source, "foreground", None)  # found once
        other, self._val = self._part(settings.eval_split, settings.eval_images)
        self._sources = {"training": (source, len(self._train)), "evaluation": (other, len(self._val))}
        self.classes: tuple[str, ...] = tuple(source.classes)
        self.colors = torch.as_tensor(source.colors, dtype=torch.uint8)
        self.num_classes: int = source.num_classes
        self.channels = self._count_channels()
        if tuple(other.classes) != self.classes:
            came = f"{list(self.classes)} and {list(other.classes)}"
            raise ValueError(complain("data", "the same classes in both splits", came, "Use one class list."))
        if (void := getattr(source, "ignore_index", self.ignore_index)) != self.ignore_index:
            remedy = f"Give --data.ignore_index {void}, and none in data.options."
            raise ValueError(complain("data.ignore_index", f"{void}, as the data set has", self.ignore_index, remedy))
        self.pairs: tuple[data.Pair, ...] = source.pairs if synthetic else ()
        self._confusable = None
        if synthetic:
            known = [c for pair in self.pairs if pair.kind == "confusable" for c in (pair.first, pair.second)]
            self._confusable = torch.tensor(known)
        self._evaluation_sets: dict[float, Dataset[Any]] = {}

    def _count_channels(self) -> int:
        found, binary = ", ".join(self.classes), self.settings.binary
        if binary and self.num_classes != 2:
            raise ValueError(complain("data.binary", "data of two classes", f"those of {found}", "Leave it out."))
        if self.num_classes < 2:
            remedy = "For masks of 0 and 255, or another single value: --data.binary true."
            raise ValueError(complain("data", "two classes or more in the masks", f"{found} alone", remedy))
        return 1 if binary else self.num_classes

    def _part(self, split: str, count: int | None) -> tuple[Any, _Samples]:
        source = self._source(split, count)
        length = len(source) if count is None else min(count, len(source))
        if not length:
            raise ValueError(complain("data", "at least one image", f"none in {split!r}", "Check root and splits."))
        return source, _Samples(source.__getitem__, length, keep=self._keep)

    def _source(self, split: str, count: int | None) -> Any:
        settings, options = self.settings, dict(self.settings.options)
        if settings.name == "synthetic":
            options |= {"seed": settings.seed} | ({} if count is None else {"length": count})
            options |= {} if settings.size is None else {"size": tuple(settings.size)}
            return data.build("synthetic", settings.root, split, **options)
        if settings.name == "folder":
            options.setdefault("ignore_index", settings.ignore_index)
            if settings.binary:
                options.setdefault("foreground", self._foreground)
        resize = ResizeTo(settings.size) if settings.size is not None else None
        return data.build(settings.name, settings.root, split, transforms=resize, **options)

    def check_labels(self, report: Callable[[str], None]) -> None:
        """Read the masks of both parts once, before anything is trained; synthetic data need not be.

        The first error that training would meet, or ValueError where a part has no labelled pixel. Reported: images
        that teach nothing, one class alone, images in both parts, masks of which nobody knows how they were turned.
        """
        if self.settings.name == "synthetic":
            return
        void, names = self.ignore_index, {}
        if (foreground := getattr(self._sources["training"][0], "foreground", None)) is not None:
            nothing = "there is no void" if foreground == void else f"{void} is void"
            report(f"masks: 0 is background, {foreground} is foreground, {nothing}")
        for part, (source, count) in self._sources.items():
            if count > 1000:
                report(f"reading the masks of {count} {part} images once")
            indices = range(count)
            batches = [list(indices[start : start + 16]) for start in indices[::16]]
            found = torch.cat(list(self._load(_Samples(partial(_inspect, source), count), batches)))
            counts, turned = found[:, :-1], found[:, -1].nonzero().flatten().tolist()
            empty = (~counts.any(1)).nonzero().flatten().tolist()
            if len(empty) == count:
                came = f"none in all {count} of them ({source.names(0)[1]} and so on)"
                remedy = f"Void is {void}: check the values in the masks, and data.ignore_index."
                raise ValueError(complain("data", f"labelled pixels in the {part} masks", came, remedy))
            if empty:
                report(f"warning: {len(empty)} of {count} {part} masks are all void, first {source.names(empty[0])[1]}")
            present = counts.any(0).nonzero().flatten().tolist()
            if part == "training" and len(present) == 1 < self.num_classes:
                only = f"all labelled pixels of the training masks are {self.classes[present[0]]!r}"
                remedy = "; is it? --data.binary true" if self.num_classes == 2 and not self.settings.binary else ""
                report(f"warning: {only}; {void} is void, so an object painted in {void} is not learned{remedy}")
            if part == "training" and len(present) < self.num_classes / 2 and self.classes[0] == "class 0":
                some = ", ".join(map(str, present[:8])) + (", ..." if len(present) > 8 else "")
                report(
                    f"warning: {len(present)} of {self.num_classes} classes occur ({some}): are these class numbers?"
                )
            if turned:
                unknown = "turned by their EXIF data, their masks are taken as upright already"
                report(f"warning: {len(turned)} {part} images are {unknown}; first {source.names(turned[0])[0]}")
            names[part] = [source.names(index)[0] for index in indices]
        training = set(names["training"])
        if both := [name for name in names["evaluation"] if name in training]:
            report(
                f"warning: {len(both)} of {len(names['evaluation'])} evaluation images are trained on, first {both[0]}"
            )

    @property
    def sources(self) -> dict[str, tuple[Any, int]]:
        """The data set of each part, and how many of its samples are used."""
        return self._sources

    @property
    def evaluated(self) -> int:
        """The number of evaluation images."""
        return len(self._val)

    def evaluation_sample(self, index: int) -> Any:
        """An evaluation image before it is normalised, its labels, and what else its data set knows of it."""
        return self._val[index]

    def steps_per_epoch(self, batch_size: int) -> int:
        """Full batches in an epoch; ValueError if there is none."""
        steps = len(self._train) // batch_size
        if steps == 0:
            came = f"{batch_size} with {len(self._train)} training images"
            raise ValueError(complain("batch_size", "at most the number of training images", came, "Make it smaller."))
        return steps

    def training(
        self, *, seed: int, epoch: int, batch_size: int, skip: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """This process' share of the batches of an epoch but the first `skip`: images and labels.

        The order is a permutation drawn from (seed, epoch); an incomplete last batch is left out.
        """
        settings = self.settings
        crop = settings.crop or settings.size or tuple(self._train[0][0].shape[-2:])
        if batch_size % world:
            came = f"{batch_size} for {world} devices"
            raise ValueError(complain("batch_size", "a multiple of the number of devices", came, "Change one of them."))
        transforms = data.train_transforms(
            crop,
            scale=settings.scale if settings.scale is not None else (1.0, 1.0),
            flip=0.5 if settings.flip else 0.0,
            jitter=settings.jitter,
            ignore_index=self.ignore_index,
        )
        dataset = data.Deterministic(_Samples(partial(_transformed, self._train, transforms), len(self._train)), seed)
        dataset.set_epoch(epoch)
        order = np.random.default_rng([seed, epoch]).permutation(len(self._train)).tolist()
        share = batch_size // world
        starts = range(skip * batch_size, self.steps_per_epoch(batch_size) * batch_size, batch_size)
        yield from self._load(dataset, [order[s + rank * share : s + (rank + 1) * share] for s in starts])

    def evaluation(
        self, *, batch_size: int, far: float, rank: int = 0, world: int = 1, only: Sequence[int] | None = None
    ) -> Iterator[EvaluationBatch]:
        """This process' share of the evaluation images (or of `only` those): indices, images, labels, far masks."""
        dataset = self._evaluation_set(far)
        indices = list(range(len(self._val)) if only is None else only)[rank::world]
        step = batch_size if self.settings.size is not None or self.settings.name == "synthetic" else 1
        for index, images, labels, *masks in self._load(
            dataset, [indices[i : i + step] for i in range(0, len(indices), step)]
        ):
            yield index, images, labels, masks[0] if masks else None

    def _evaluation_set(self, far: float) -> Dataset[Any]:
        if far not in self._evaluation_sets:
            make = partial(_for_evaluation, self._val, data.eval_transforms(), self._confusable, far)
            self._evaluation_sets[far] = _Samples(make, len(self._val), keep=self._keep)
        return self._evaluation_sets[far]

    def _load(self, dataset: Any, batches: list[list[int]]) -> Any:
        # A generator of its own: the loader would else draw from the global one, and a resumed epoch would draw twice.
        loader = DataLoader(
            _Attempted(dataset),
            batch_sampler=batches,
            collate_fn=_collate,
            num_workers=self.settings.workers,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),
        )
        try:
            for batch in loader:
                if isinstance(batch, Exception):
                    raise batch
                yield batch
        except RuntimeError as error:
            if "DataLoader worker (pid" not in str(error):
                raise
            came, remedy = str(error).splitlines()[0], "Lower data.workers, or give them more memory."
            raise ChildProcessError(complain("data.workers", "processes that live", came, remedy)) from error

    def picture(self, chosen: int | str, setting: str = "picture.image") -> tuple[Tensor, str]:
        """Evaluation image number `chosen`, or that file brought to the size of the data: (1, 3, H, W), normalised.

        Second its name. `setting` is for messages.
        """
        if isinstance(chosen, int):
            if not 0 <= chosen < self.evaluated:
                expected = f"below {self.evaluated}, the number of evaluation images, or a file"
                raise ValueError(complain(setting, expected, chosen, "Choose another."))
            _, image, _, _ = next(iter(self.evaluation(batch_size=1, far=0.0, only=[chosen])))
            return image, f"{self.settings.name} image {chosen}"
        try:
            image = data.read_image(Path(chosen))
        except (ValueError, OSError) as error:
            raise ValueError(complain(setting, "an image file", f"{chosen}: {error}", "Choose another.")) from error
        labels, size = torch.zeros(image.shape[1:], dtype=torch.int64), self.settings.size
        for transform in ([] if size is None else [ResizeTo(size)]) + [data.eval_transforms()]:
            image, labels = transform(tv_tensors.Image(image), tv_tensors.Mask(labels))
        return image.as_subclass(Tensor)[None], Path(chosen).name

    def class_numbers(self, names: Collection[str], setting: str) -> list[int]:
        """The numbers of these classes; ValueError where `setting` names one that there is not."""
        known = {name: number for number, name in enumerate(self.classes)}
        for name in names:
            if name not in known:
                raise ValueError(complain(setting, f"names among {', '.join(known)}", name, "Check the spelling."))
        return [known[name] for name in names]

    def displayed(self, image: Tensor) -> Tensor:
        """A normalised image as it looks, in [0, 1]."""
        return data.denormalize(image)
