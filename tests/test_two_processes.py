"""Two gloo processes equal one on the joined batch: templates, attached losses, weight maps. Both are started once."""

import copy
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from attach_cases import CLASSES, Net, assert_same, batch, gradients, hooks
from torch import Tensor, nn
from torch import distributed as dist
from torch import multiprocessing as mp
from torch.distributed.algorithms.join import Join
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from weight_map_cases import check_map

from perpixel import TemplateSimilarityLoss, attach, template_similarity_loss
from perpixel.weighting import FixationWeightedLoss

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")]
Results = list[dict[str, Any]]


def half(rank: int) -> slice:
    """The images of a process, of four."""
    return slice(2 * rank, 2 * rank + 2)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What either process found. Spawned: autograd's threads do not survive a fork."""
    folder = tmp_path_factory.mktemp("two")
    other = mp.spawn(run, args=(folder,), join=False)  # the first process; this one is the second
    run(1, folder)
    other.join()
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def run(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    try:
        found = {
            **{kind: shared_templates(kind, rank) for kind in BATCHES},
            **{case: attached(case, rank) for case in ATTACHED},
            **{case: uneven_steps(case, rank) for case in JOINS},
            "refused": refused(rank),
            **{case: weight_maps(case, rank) for case in MAPS},
        }
        torch.save(found, folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


# --- templates, classes and counts of both

OPTIONS = [
    {},
    {"similarity": "correlation", "template": "mean"},
    {"objective": "contrast", "reduction": "sum"},
    {"selective": True, "detach_templates": True},
    {"template": "mean", "objective": "contrast", "temperature": 0.5},
]


BATCHES = ("uneven", "the second is void", "the second has no image", "neither has a label")


def joined_batch(kind: str) -> tuple[Tensor, ...]:
    torch.manual_seed(3)
    labels = torch.randint(0, 3, (4, 4, 5))
    labels[0, 0, :2] = 255
    features, logits = torch.randn(4, 6, 4, 5).double(), torch.randn(4, 4, 4, 5).double()
    labels[2:, :2] = 255  # the processes count different numbers of pixels
    labels[2:][labels[2:] == 1] = 2  # and class 1 lives in the first alone
    logits[0, 0, 3, 3] = logits[3, 0, 3, 3] = 9.0  # tied peaks: the first process's counts
    labels[0, 3, 3] = labels[3, 3, 3] = 0
    if kind != "uneven":
        labels[2:] = 255
    if kind == "the second has no image":
        return features[:2], logits[:2], labels[:2]
    return features, logits, labels[:, :0] if kind == "neither has a label" else labels


def shared_templates(kind: str, rank: int) -> tuple[list[tuple[Tensor, Tensor]], dict[str, Tensor]]:
    features, logits, labels = (t[half(rank)] for t in joined_batch(kind))
    results = []
    for options in OPTIONS:
        leaf = features.clone().requires_grad_()
        value = template_similarity_loss(leaf, logits, labels, share_templates=True, **options)
        value.backward()
        results.append((value.detach(), leaf.grad))
    module = TemplateSimilarityLoss(running_momentum=0.5, share_templates=True)
    module(features, logits, labels)
    return results, dict(module.state_dict())


@pytest.mark.parametrize("kind", BATCHES)
def test_shared_templates_are_those_of_the_joined_batch(kind: str, both: Results) -> None:
    ranks = [found[kind] for found in both]
    for i, options in enumerate(OPTIONS):
        features, logits, labels = joined_batch(kind)
        features.requires_grad_()
        value = template_similarity_loss(features, logits, labels, **options)
        value.backward()
        torch.testing.assert_close((ranks[0][0][i][0] + ranks[1][0][i][0]) / 2, value.detach())
        joined = torch.cat([ranks[0][0][i][1], ranks[1][0][i][1]]) / 2  # DDP averages over the ranks
        torch.testing.assert_close(joined, features.grad)
    module = TemplateSimilarityLoss(running_momentum=0.5)
    module(*joined_batch(kind))
    for _, state in ranks:
        torch.testing.assert_close(state, dict(module.state_dict()))


# --- an attached loss under DistributedDataParallel


class Plain(nn.Module):
    """No batch norm, so that halves of a batch give what the whole gives."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.Tanh(), nn.Conv2d(6, 6, 3, padding=1), nn.Tanh())
        self.classifier = nn.Conv2d(6, CLASSES, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        logits = self.classifier(self.body(images))
        return {"out": nn.functional.interpolate(logits, scale_factor=2, mode="bilinear")}


def problem() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(3)
    model = Plain().double()
    images = torch.randn(4, 3, 12, 12, dtype=torch.float64)
    labels = torch.randint(0, CLASSES, (4, 12, 12))
    labels[:, :, :2] = 255  # as many void pixels in either process
    labels[:2][labels[:2] == 3] = 0  # one class in one process only
    return model, images, labels


ATTACHED = [
    "attach first,,",
    "wrap first,,classifier",
    "attach first,find unused,classifier",
    "wrap first,find unused,",
    "wrap first,two outputs,",
    "wrap first,find unused and two outputs,classifier",
]


def attached(case: str, rank: int) -> dict[str, Any]:
    model, images, labels = problem()
    first, options, head = case.split(",")
    term = TemplateSimilarityLoss(weight=0.5, share_templates=True)
    if first == "attach first":
        criterion = attach(model, term, head=head or None)
    ddp = DistributedDataParallel(model, find_unused_parameters="find unused" in options)
    if first != "attach first":
        criterion = attach(ddp, term, head=head or None)
    mine = half(rank)
    for _ in range(2):
        ddp.zero_grad()
        if "two outputs" in options:  # before one backward, the first one asked last
            outputs = ddp(images[mine]), ddp(images[mine].flip(-1))
            (0 * criterion(outputs[1], labels[mine]) + criterion(outputs[0], labels[mine])).backward()
        else:
            criterion(ddp(images[mine]), labels[mine]).backward()
    found = gradients(model)
    with torch.no_grad():
        validation = criterion(ddp(images[mine]), labels[mine])
    with ddp.no_sync():
        criterion(ddp(images[mine]), labels[mine]).backward()
    criterion.remove()
    return {"gradients": found, "validation": validation, "left": len(list(hooks(ddp)))}


@pytest.mark.parametrize("case", ATTACHED)
def test_attached_losses_give_the_gradients_of_the_joined_batch(case: str, both: Results) -> None:
    model, images, labels = problem()
    alone = copy.deepcopy(model)
    criterion = attach(alone, TemplateSimilarityLoss(weight=0.5))
    loss = criterion(alone(images), labels)
    loss.backward()
    results = [found[case] for found in both]
    for result in results:
        assert result["left"] == 0
        assert_same(result["gradients"], gradients(alone), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close((results[0]["validation"] + results[1]["validation"]) / 2, loss.detach())


# --- a process that runs out of batches, inside torch's Join

JOINS: dict[str, tuple[int, dict[str, Any]]] = {  # whole batches of the second process, of three; options of the term
    "one batch and an empty one": (1, {}),
    "one batch, means": (1, {"template": "mean", "detach_templates": True}),
    "one batch, running": (1, {"running_momentum": 0.5}),
    "no batch, running": (0, {"running_momentum": 0.5, "template": "mean"}),
}


def uneven_steps(case: str, rank: int) -> dict[str, Any]:
    whole, options = JOINS[case]
    model, images, labels = problem()
    term = TemplateSimilarityLoss(weight=0.5, share_templates=True, **options)
    ddp = DistributedDataParallel(model)
    criterion = attach(ddp, term, head="classifier")
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    batches = [half(rank)] * (whole if rank else 3) + [slice(0)] * (rank and "empty" in case)
    for _ in range(2):  # two epochs
        with Join([term.joinable(ddp)]):
            for rows in batches:
                optimizer.zero_grad()
                criterion(ddp(images[rows]), labels[rows]).backward()
                optimizer.step()
    return {"model": model.state_dict(), "term": term.state_dict()}


@pytest.mark.parametrize("case", JOINS)
def test_a_process_may_run_out_of_batches(case: str, both: Results) -> None:
    whole, options = JOINS[case]
    model, images, labels = problem()
    term = TemplateSimilarityLoss(weight=0.5, **options)
    share = 1.0
    criterion = attach(
        model, term, head="classifier", base=lambda z, y: share * F.cross_entropy(z, y, ignore_index=255)
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    for step in range(6):
        rows, share = (slice(4), 1.0) if step % 3 < whole else (slice(2), 0.5)  # DDP divides by the initial number
        optimizer.zero_grad()
        criterion(model(images[rows]), labels[rows]).backward()
        optimizer.step()
    for found in (each[case] for each in both):
        assert_same(found["model"], model.state_dict(), rtol=1e-10, atol=1e-12)
        assert_same(found["term"], term.state_dict(), rtol=1e-10, atol=1e-12)


def refused(rank: int) -> list[str]:
    """What is said where a process cannot be waited for."""
    model, images, labels = problem()
    ddp = DistributedDataParallel(model)
    term = TemplateSimilarityLoss(share_templates=True)
    criterion = attach(ddp, term, head="classifier")
    said = []
    for joined, how in ((ddp, {"throw_on_early_termination": True}), (term.joinable(ddp), DIVIDE), (model, {})):
        try:
            with Join([term.joinable(joined) if joined is model else joined], **how):
                for _ in range(2 - rank):
                    criterion(ddp(images[half(rank)]), labels[half(rank)]).backward()
        except (RuntimeError, TypeError, ValueError) as error:
            said.append(str(error))
    return said


DIVIDE = {"divide_by_initial_world_size": False}


def test_what_cannot_be_waited_for_is_refused_in_both(both: Results) -> None:
    for rank, (stopped, divided, plain) in enumerate(found["refused"] for found in both):
        assert ("exhausted all inputs" if rank else "one rank that exhausted inputs") in stopped
        assert "divide_by_initial_world_size: expected True" in divided
        assert "model: expected DistributedDataParallel" in plain


# --- weight maps are every process's own

MAPS = ("both count", "one is void")


def weight_maps(case: str, rank: int) -> dict[str, Any]:
    torch.manual_seed(3)
    model = Net().double()
    images, labels = batch(4, dtype=torch.float64)
    labels[2:] = 255 if case == "one is void" else labels[2:]
    images, labels = images[half(rank)], labels[half(rank)]
    ddp = DistributedDataParallel(model)
    term = FixationWeightedLoss(cell=4, shift="full", every=2)
    criterion = attach(ddp, term, TemplateSimilarityLoss())
    maps = []
    for _ in range(3):
        ddp.zero_grad()
        criterion(ddp(images), labels).backward()
        maps.append(term.state_dict()["kept_map"])
    found = {"maps": maps, "gradients": gradients(model), "images": images, "labels": labels}
    own = term.eval().weight_map(ddp, images, model(images)["out"], labels)
    return found | {"own": own, "state": model.state_dict()}


@pytest.mark.parametrize("case", MAPS)
def test_weight_maps_are_their_own_and_gradients_common(case: str, both: Results) -> None:
    ranks = [found[case] for found in both]
    for rank in ranks:
        images, labels, model = rank["images"], rank["labels"], Net().double().eval()
        check_map(rank["own"], labels)
        model.load_state_dict(rank["state"])
        alone = FixationWeightedLoss(cell=4, shift="full")
        torch.testing.assert_close(rank["own"], alone.weight_map(model, images, model(images)["out"], labels))
        assert torch.equal(rank["maps"][0], rank["maps"][1])
        assert_same(rank["gradients"], ranks[0]["gradients"])
    assert not torch.equal(ranks[0]["own"], ranks[1]["own"])
    assert bool(ranks[1]["own"].any()) == (case == "both count")
