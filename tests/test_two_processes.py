"""Two gloo processes equal one on the joined batch: templates, attached losses, weight maps. Both are started once."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from attach_cases import CLASSES, Net, assert_same, batch, gradients, hooks
from torch import Tensor, nn
from torch import distributed as dist
from torch import multiprocessing as mp
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
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        found = {
            "templates": shared_templates(rank),
            **{case: attached(case, rank) for case in ATTACHED},
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


def uneven_batch() -> tuple[Tensor, ...]:
    torch.manual_seed(3)
    labels = torch.randint(0, 3, (4, 4, 5))
    labels[0, 0, :2] = 255
    features, logits = torch.randn(4, 6, 4, 5).double(), torch.randn(4, 4, 4, 5).double()
    labels[2:, :2] = 255  # the processes count different numbers of pixels
    labels[2:][labels[2:] == 1] = 2  # and class 1 lives in the first alone
    logits[0, 0, 3, 3] = logits[3, 0, 3, 3] = 9.0  # tied peaks: the first process's counts
    labels[0, 3, 3] = labels[3, 3, 3] = 0
    return features, logits, labels


def shared_templates(rank: int) -> tuple[list[tuple[Tensor, Tensor]], dict[str, Tensor]]:
    features, logits, labels = (t[half(rank)] for t in uneven_batch())
    results = []
    for options in OPTIONS:
        leaf = features.clone().requires_grad_()
        value = template_similarity_loss(leaf, logits, labels, share_templates=True, **options)
        value.backward()
        results.append((value.detach(), leaf.grad))
    module = TemplateSimilarityLoss(running_momentum=0.5, share_templates=True)
    module(features, logits, labels)
    return results, dict(module.state_dict())


def test_shared_templates_are_those_of_the_joined_batch(both: Results) -> None:
    ranks = [found["templates"] for found in both]
    for i, options in enumerate(OPTIONS):
        features, logits, labels = uneven_batch()
        features.requires_grad_()
        value = template_similarity_loss(features, logits, labels, **options)
        value.backward()
        torch.testing.assert_close((ranks[0][0][i][0] + ranks[1][0][i][0]) / 2, value.detach())
        joined = torch.cat([ranks[0][0][i][1], ranks[1][0][i][1]]) / 2  # DDP averages over the ranks
        torch.testing.assert_close(joined, features.grad)
    module = TemplateSimilarityLoss(running_momentum=0.5)
    module(*uneven_batch())
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
]


def attached(case: str, rank: int) -> dict[str, Any]:
    model, images, labels = problem()
    first, find_unused, head = case.split(",")
    term = TemplateSimilarityLoss(weight=0.5, share_templates=True)
    if first == "attach first":
        criterion = attach(model, term, head=head or None)
    ddp = DistributedDataParallel(model, find_unused_parameters=find_unused == "find unused")
    if first != "attach first":
        criterion = attach(ddp, term, head=head or None)
    mine = half(rank)
    for _ in range(2):
        ddp.zero_grad()
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
