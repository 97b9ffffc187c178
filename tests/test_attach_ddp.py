"""DistributedDataParallel with two gloo processes."""

import copy
from typing import Any

import pytest
import torch
from attach_cases import CLASSES, gradients, hooks
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from two_processes import in_two_processes

from perpixel import TemplateSimilarityLoss
from perpixel.attach.criterion import attach

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")


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
    labels[:, :, :2] = 255  # as many void pixels on either process
    labels[:2][labels[:2] == 3] = 0  # one class on one process only
    return model, images, labels


CASES = ["attach first,,", "wrap first,,classifier", "attach first,find unused,classifier", "wrap first,find unused,"]


def train(case: str, rank: int) -> dict[str, Any]:
    model, images, labels = problem()
    attach_first, find_unused, head = case.split(",")
    term = TemplateSimilarityLoss(weight=0.5, share_templates=True)
    how: dict[str, Any] = {"head": head or None}
    if attach_first == "attach first":
        criterion = attach(model, term, **how)
    ddp = DistributedDataParallel(model, find_unused_parameters=find_unused == "find unused")
    if attach_first != "attach first":
        criterion = attach(ddp, term, **how)
    mine = slice(2 * rank, 2 * rank + 2)
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


def train_all(rank: int) -> dict[str, Any]:
    return {case: train(case, rank) for case in CASES}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return in_two_processes(train_all, tmp_path_factory.mktemp("ddp"))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_give_the_gradients_of_one_on_the_joined_batch(case: str, both: list[dict[str, Any]]) -> None:
    model, images, labels = problem()
    alone = copy.deepcopy(model)
    criterion = attach(alone, TemplateSimilarityLoss(weight=0.5))
    loss = criterion(alone(images), labels)
    loss.backward()
    expected = gradients(alone)
    results = [found[case] for found in both]
    for result in results:
        assert result["left"] == 0
        for name, gradient in result["gradients"].items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close((results[0]["validation"] + results[1]["validation"]) / 2, loss.detach())
