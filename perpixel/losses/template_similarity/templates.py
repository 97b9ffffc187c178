"""Where the class templates come from: peaks of the class activation, running means, one process or many."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from perpixel.checks import complain
from perpixel.losses.template_similarity.directions import pixel_norms
from perpixel.losses.template_similarity.ranks import Ranks

TemplateFunction = Callable[[Tensor, Tensor, Tensor], Tensor]


def peak_positions(logits: Tensor, labels: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Flat position n·P + p of each class's peak, and the activation there.

    The peak of class c is, among the valid pixels labelled c in the whole batch, the one whose logit c is highest; the
    first of equal ones. logits (N, C, P), labels (N, P) in [0, C), valid (N, P) bool -> two tensors (C,); an absent
    class gives position 0 and −inf.
    """
    classes = logits.shape[1]
    own = logits.detach().gather(1, labels[:, None])[:, 0]
    own = torch.where(valid, own, -torch.inf).nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf).flatten()
    owner = labels.flatten()
    best = own.new_full((classes,), -torch.inf).scatter_reduce(0, owner, own, "amax")
    nowhere = own.numel()
    places = torch.arange(nowhere, device=own.device)
    is_best = valid.flatten() & (own == best[owner])
    first = torch.full_like(best, nowhere, dtype=torch.int64)
    first = first.scatter_reduce(0, owner, torch.where(is_best, places, nowhere), "amin")
    return torch.where(first < nowhere, first, 0), best


def class_counts(labels: Tensor, valid: Tensor, classes: int) -> Tensor:
    """Valid pixels of each class, (C,) int64. labels (N, P) in [0, C)."""
    counts = torch.zeros(classes, dtype=torch.int64, device=labels.device)
    return counts.scatter_add_(0, labels.flatten(), valid.flatten().long())


def class_sums_of_units(x: Tensor, labels: Tensor, valid: Tensor, classes: int, centred: bool) -> Tensor:
    """Sums (C, D) of the unit vectors of the classes' valid pixels, by plain autograd. x (N, D, P)."""
    inverse, mean = pixel_norms(x.detach(), valid, centred)
    wide = torch.where(valid[:, None], x.to(inverse.dtype), 0.0)
    if mean is not None:
        wide = wide - wide.mean(1, keepdim=True)
    unit = wide * inverse[:, None]  # right in value; dividing by its norm, which is 1, makes it right in gradient
    has_direction = (inverse > 0)[:, None]
    norm = torch.where(has_direction, unit.square().sum(1, keepdim=True), 1.0).sqrt()
    unit = torch.where(has_direction, unit / norm, 0.0)
    hot = torch.zeros(labels.shape[0], classes, labels.shape[1], dtype=unit.dtype, device=x.device)
    hot.scatter_(1, labels[:, None], valid[:, None].to(unit.dtype))
    with torch.autocast(x.device.type, enabled=False):
        return torch.einsum("ncp,ndp->cd", hot, unit)


def peak_rows_over_ranks(rows: Tensor, best: Tensor, present: Tensor, ranks: Ranks) -> Tensor:
    """The rows (C, D) of the process with the highest activation `best` (C,), first of equal ones; with a gradient."""
    # for each process: activation where the class is present, and whether it is (a present peak may be −inf)
    everyone = torch.zeros(ranks.count, 2, len(best), dtype=torch.float64, device=best.device)
    everyone[ranks.rank] = torch.stack([best.double(), present.double()])
    activation, there = ranks.sum(everyone).unbind(1)
    top = torch.where(there > 0, activation, -torch.inf).amax(0)
    candidates = (there > 0) & (activation == top)
    winner = candidates.to(torch.int8).argmax(0)
    is_mine = (winner == ranks.rank) & candidates.any(0)
    return ranks.sum(torch.where(is_mine[:, None], rows, 0.0))


class RunningTemplates(nn.Module):
    """Exponential moving average of unit templates, kept in buffers that survive `state_dict`.

    t_c ← momentum · t_c + (1 − momentum) · û_c for the classes of the batch; the first sight of a class sets it.
    Buffers, made at the first update or by `load_state_dict`: `templates` (C, D), and `seen` (C,) int64, the number of
    updates of each class.
    """

    templates: Tensor | None
    seen: Tensor | None

    def __init__(self, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("templates", None)
        self.register_buffer("seen", None)

    def update(self, unit: Tensor, present: Tensor) -> None:
        """Take in the unit templates (C, D) of the classes that are `present` (C,), have a direction and no NaN."""
        if self.templates is None or self.seen is None:
            self.templates = torch.zeros_like(unit)
            self.seen = torch.zeros(len(unit), dtype=torch.int64, device=unit.device)
        if self.templates.shape != unit.shape:
            expected = f"C×D = {tuple(self.templates.shape)} as in the running templates"
            came, remedy = f"{tuple(unit.shape)}", "Use one loss module per head."
            raise ValueError(complain("features, logits", expected, came, remedy))
        fresh = present & (unit != 0).any(1) & unit.isfinite().all(1)
        keep = torch.where(self.seen > 0, self.momentum, 0.0).to(unit.dtype)[:, None]
        mixed = keep * self.templates.to(unit) + (1 - keep) * unit
        self.templates = torch.where(fresh[:, None], mixed, self.templates.to(unit))
        self.seen = self.seen.to(unit.device) + fresh

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        for name in ("templates", "seen"):
            stored = state_dict.get(prefix + name)
            if stored is not None and getattr(self, name) is None:
                setattr(self, name, torch.empty_like(stored))
        super()._load_from_state_dict(state_dict, prefix, *args)
