"""The scripts under examples/ run as they are called, and do what they say."""

import runpy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from attach_cases import hooks
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import perpixel

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name: str, as_what: str = "__main__") -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries' own
        return runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name=as_what)


def test_every_example_is_run_here_and_shown() -> None:
    pages = "".join((EXAMPLES.parent / page).read_text() for page in ("README.md", "docs/recipes.md"))
    for script in EXAMPLES.glob("*.py"):
        assert pages.count(f"examples/{script.name}") >= 2
        assert f"run({script.stem!r})".replace("'", '"') in Path(__file__).read_text()


def test_lightning_callback() -> None:
    pytest.importorskip("lightning")
    names = run("lightning_callback")
    trainer = names["trainer"]
    assert set(trainer.callback_metrics) == {"train/base", "train/template_similarity"}
    module = trainer.lightning_module
    assert type(module.criterion) is nn.CrossEntropyLoss
    assert not list(hooks(module))


def test_lightning_callback_puts_the_criterion_back_after_an_error() -> None:
    lightning = pytest.importorskip("lightning")
    names = run("lightning_callback", "imported")
    module = names["Segmenter"](3)
    own = module.criterion
    images, labels = torch.rand(2, 3, 16, 16), torch.full((2, 16, 16), 7)  # there is no class 7
    quiet = {f"enable_{what}": False for what in ("checkpointing", "progress_bar", "model_summary")}
    callback = names["EvidenceCallback"](perpixel.TemplateSimilarityLoss(weight=0.05))
    trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", logger=False, callbacks=[callback], **quiet)
    with pytest.raises(ValueError, match="labels"):
        trainer.fit(module, DataLoader(TensorDataset(images, labels), batch_size=2))
    assert module.criterion is own
    assert not list(hooks(module))


def test_huggingface_trainer() -> None:
    pytest.importorskip("accelerate")
    names = run("huggingface_trainer")
    first, *_ = names["trainer"].state.log_history
    combined = first["base"] + 0.05 * first["template_similarity"]  # of the last of two accumulated steps
    assert first["loss"] == pytest.approx(combined, rel=0.1)  # their mean, not their sum
    assert any("eval_loss" in logs for logs in names["trainer"].state.log_history)
    assert not names["trainer"].criterion.attached


def test_smp_binary(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("segmentation_models_pytorch")
    names = run("smp_binary")
    assert set(names["criterion"].terms) == {"base", "template_similarity"}
    assert names["fix"].mass.sum() + names["fix"].dropped == pytest.approx(names["images"][:, 0].numel())
    assert "Fixations" in capsys.readouterr().out
    assert not list(hooks(names["model"]))
