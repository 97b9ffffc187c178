"""`Deterministic`: random transforms that depend on (seed, epoch, index) and on nothing else."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from perpixel.checks import check_integer, complain
from perpixel.data.files.samples import check_index


@contextmanager
def seeded(*entropy: int) -> Iterator[None]:
    """Seeds torch's CPU generator, numpy and `random` from `entropy`, and puts all three back on exit."""
    seeds = [int(s) for s in np.random.SeedSequence(entropy).generate_state(4)]
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        torch.default_generator.manual_seed(seeds[0] | seeds[1] << 32 & (2**63 - 1))
        np.random.seed(seeds[2])  # noqa: NPY002
        random.seed(seeds[3])
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        random.setstate(states[2])


class Deterministic(Dataset[Any]):
    """A map-style data set whose sample i of epoch e is a function of (seed, e, i).

    The same in every worker, for every number of workers, order and start method; the caller's random state is left
    alone. `set_epoch` reaches workers that already run (`persistent_workers=True`): the epoch lies in shared memory.
    Call it before the loader's iterator is made; other attributes (`classes`, ...) are those of `dataset`.
    """

    def __init__(self, dataset: Any, seed: int = 0) -> None:
        if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
            raise TypeError(complain("dataset", "a map-style data set", dataset, "It needs __getitem__ and __len__."))
        self.dataset, self.seed = dataset, check_integer("seed", seed, low=0)
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """From now on samples are those of `epoch`, in this process and in its workers."""
        self._epoch.fill_(check_integer("epoch", epoch, low=0))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        place = check_index(int(index), len(self))
        with seeded(self.seed, self.epoch, place):
            return self.dataset[place]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "dataset":
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if not self._epoch.is_shared():
            self._epoch.share_memory_()
