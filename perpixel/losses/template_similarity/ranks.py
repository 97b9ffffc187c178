"""What the processes of torch.distributed add up; under torch's `Join` also with those that have run out of batches."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from perpixel.checks import complain

_DTYPES = (torch.float64, torch.float32, torch.int64)


class Ranks:
    """The processes over which `sum` adds; one alone if not `share`, or where torch.distributed is not initialised.

    Every process must ask for the same sums in the same order. Inside `Join` each sum is announced, in a process group
    of its own, so that a process that has run out can add zeros to it, in a thread beside what the model's hook does.
    """

    def __init__(self, share: bool = True) -> None:
        self.share = share
        self.group: Any = None  # inside Join; else None, the default group
        self._serving: Future[None] | None = None

    @property
    def count(self) -> int:
        return dist.get_world_size() if self.share and dist.is_available() and dist.is_initialized() else 1

    @property
    def rank(self) -> int:
        return dist.get_rank() if self.count > 1 else 0

    def sum(self, value: Tensor) -> Tensor:
        """Sum over the processes; so is its gradient, since every process's loss uses the sum."""
        return _Sum.apply(value, self) if self.count > 1 else value

    def all_reduce(self, value: Tensor) -> Tensor:
        if self.group is None:
            total = value.clone(memory_format=torch.contiguous_format)
            dist.all_reduce(total)
            return total
        total = value.to("cpu", copy=True, memory_format=torch.contiguous_format)
        self._announce([1 + _DTYPES.index(total.dtype), total.numel()])
        dist.all_reduce(total, group=self.group)
        return total.to(value.device)

    def enter_join(self) -> None:
        """Called by every process when a `Join` is made."""
        if self.count > 1:
            self._close()
            self.group = dist.new_group(backend="gloo")

    def serve(self) -> None:
        """From now on add zeros to what the others sum up, until `leave_join`."""
        if self._serving is None and self.group is not None:
            executor = ThreadPoolExecutor(1)
            self._serving = executor.submit(self._add_zeros)
            executor.shutdown(wait=False)

    def leave_join(self, state: dict[str, Tensor], is_last_joiner: bool) -> dict[str, Tensor]:
        """Called by every process when all have run out; gives the state of one that ran out last."""
        if self.group is None:
            return state
        if self._serving is None:
            self._announce([0, 0])
        else:
            self._serving.result()
        source = torch.tensor(self.rank if is_last_joiner else -1)
        dist.all_reduce(source, dist.ReduceOp.MAX, group=self.group)
        given = [{name: value.cpu() for name, value in state.items()}]
        dist.broadcast_object_list(given, int(source), group=self.group)
        self._close()
        return given[0]

    def _announce(self, header: list[int]) -> list[int]:
        shared = torch.tensor(header)
        dist.all_reduce(shared, dist.ReduceOp.MAX, group=self.group)
        return shared.tolist()

    def _add_zeros(self) -> None:
        while True:
            dtype, count = self._announce([0, 0])
            if not dtype:
                return
            dist.all_reduce(torch.zeros(count, dtype=_DTYPES[dtype - 1]), group=self.group)

    def _close(self) -> None:
        if self.group is not None and dist.is_initialized():
            dist.destroy_process_group(self.group)
        self.group = self._serving = None

    def __reduce__(self) -> tuple[type["Ranks"], tuple[bool]]:  # a copy has no part in the Join
        return Ranks, (self.share,)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return ranks.all_reduce(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.ranks.all_reduce(grad), None


class Joined:
    """A model for `Join` (DistributedDataParallel) together with a term that shares; each is called in its turn.

    The term's hook has to come first: in a process that has run out, that of the model waits for the others' gradients.
    """

    def __init__(self, model: Any, term: Any, ranks: Ranks) -> None:
        self.model, self.term, self.ranks = model, term, ranks

    def join_hook(self, divide_by_initial_world_size: bool = True, **options: Any) -> "Joined":
        if not divide_by_initial_world_size:
            remedy = "Leave it out: the term scales its loss by the number of all processes."
            raise ValueError(complain("divide_by_initial_world_size", "True for shared templates", "False", remedy))
        self.ranks.enter_join()
        self._hook = self.model.join_hook(divide_by_initial_world_size=True, **options)
        return self

    def main_hook(self) -> None:
        self.ranks.serve()
        self._hook.main_hook()

    def post_hook(self, is_last_joiner: bool) -> None:
        running = self.term.running
        state = self.ranks.leave_join({} if running is None else running.state_dict(), is_last_joiner)
        if running is not None:
            running.load_state_dict(state)
        self._hook.post_hook(is_last_joiner)

    @property
    def join_device(self) -> torch.device:
        return self.model.join_device

    @property
    def join_process_group(self) -> Any:
        return self.model.join_process_group

    @property
    def _join_config(self) -> Any:
        return self.model._join_config

    @_join_config.setter
    def _join_config(self, config: Any) -> None:
        self.model._join_config = config
