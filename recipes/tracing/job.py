"""python -m recipes.fixations: from every labelled pixel back to the image points it rests on, drawn and counted."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace
from lightning_fabric import Fabric
from torch import Tensor, nn

from perpixel.checks import complain
from recipes.kit.command_line import recipe_parser
from recipes.kit.images import Images
from recipes.kit.interrupt import Interrupt
from recipes.kit.networks import build_network
from recipes.kit.progress import Progress
from recipes.kit.run import look, settings_of_run
from recipes.tracing.counts import count_rows, measure_counts
from recipes.tracing.evidence import evidence_rows, measure_evidence
from recipes.tracing.pictures import (
    classes_to_draw,
    draw_counts,
    draw_evidence,
    draw_example,
    draw_image,
    draw_shares,
    read_picture,
)
from recipes.tracing.settings import FixationSettings
from recipes.tracing.shares import Shares, measure_shares, share_findings, share_rows
from recipes.tracing.subject import (
    Subject,
    against,
    prepare_network,
    question,
    random_network,
    rivals_of,
    train_network,
)
from recipes.tracing.summary import count_words, evidence_words, save_csv, share_words, write_summary
from recipes.training.checkpoints import DamagedCheckpoint, load_checkpoint, save_checkpoint, write_atomically


def build_parser(run: str | None = None) -> ArgumentParser:
    """The command line: every field of FixationSettings; data and model of the run folder `run` are the defaults."""
    parser = recipe_parser(
        "fixations", FixationSettings, nested="trace.shift", example="--run RUN_FOLDER --picture.image 7"
    )
    if run is not None:
        parser.set_defaults(settings_of_run(Path(run)))
    return parser


@dataclass
class Job:
    """What every part of a run needs."""

    settings: FixationSettings
    folder: Path
    fabric: Fabric
    images: Images
    progress: Progress
    stop: Interrupt
    subject: Subject | None = None

    def prepare(self) -> None:
        """Read weights and image and check the questions, so that mistakes show before anything is written."""
        settings, images = self.settings, self.images
        rivals = question(images, settings.trace)
        found = prepare_network(settings, images.num_classes)
        if found is not None:
            self._take(*found)
        else:
            build_network(settings.model, images.num_classes)
            images.steps_per_epoch(settings.pretrain.batch_size)
        if "image" in settings.do:
            classes_to_draw(torch.zeros(1, dtype=torch.int64), images, settings.picture)
            read_picture(images, settings)
        if rivals and found is not None:
            against(found[0], rivals)
        if len(self.indices) < 2 and {"shares", "evidence"} & set(settings.do):
            remedy = "Raise measure.images or data.eval_images."
            raise ValueError(complain("measure.images", "at least two images", len(self.indices), remedy))

    def _take(self, network: nn.Module, about: str) -> None:
        network.to(self.fabric.device).eval()
        plain = Subject(network, network, self.settings.trace, self.fabric.device, about)
        self.subject = plain.asking(question(self.images, self.settings.trace))

    @property
    def indices(self) -> list[int]:
        """The evaluation images measured: evenly spread."""
        total, wanted = self.images.evaluated, self.settings.measure.images
        count = total if wanted is None else min(wanted, total)
        return [i * total // count for i in range(count)]

    def batches(self, indices: list[int]) -> Any:
        """Evaluation batches of these images."""
        return self.images.evaluation(batch_size=self.settings.measure.batch_size, far=0.0, only=indices)

    def measured(self, name: str, measure: Callable[[Callable[[int], None]], dict[str, Any]], total: int) -> Any:
        """What `measure` gives, or what it gave before this run was stopped."""
        path = self.folder / "measured" / f"{name}.pt"
        if path.exists():
            try:
                return load_checkpoint(path)
            except DamagedCheckpoint as error:
                self.progress.report(f"damaged result: {error}; it is measured again")
        self.progress.begin(name, 0, total)
        done, began = 0, time.monotonic()

        def told(images: int) -> None:
            nonlocal done
            done += images
            self.progress.advance(done, {}, done / max(time.monotonic() - began, 1e-9))
            if self.stop.asked:
                raise KeyboardInterrupt

        try:
            found = measure(told)
        finally:
            self.progress.end()
        path.parent.mkdir(exist_ok=True)
        save_checkpoint(path, found)
        return found

    def everything(self) -> None:
        """Network, pictures, tables, words."""
        settings, images = self.settings, self.images
        if self.subject is None:
            self.progress.report("no weights given: a network is trained first")
            trained = train_network(settings, self.folder / "network", self.fabric, images, self.progress, self.stop)
            self._take(*trained)
        assert self.subject is not None
        self.progress.report(f"network: {settings.model.name}, {self.subject.about}")
        asked = "its rival" if settings.trace.question == "rival" else "nothing: the score alone"
        results: dict[str, Any] = {"network": self.subject.about, "images": len(self.indices), "asked against": asked}
        parts: list[list[str]] = []
        for part in ("image", "shares", "counts", "evidence"):
            if part not in settings.do:
                continue
            if part == "evidence" and not images.pairs:
                self.progress.report("evidence: left out, since only synthetic data knows what decides a label")
                continue
            words, results[part] = getattr(self, f"_{part}")(self.subject)
            parts.append(words)
        opening = f"Network: {self.subject.about}. {len(self.indices)} of {images.evaluated} evaluation images."
        write_atomically(self.folder / "results.json", json.dumps(_plain(results), indent=1).encode())
        for line in write_summary(self.folder, settings, opening, parts).splitlines():
            if line.startswith("- ") or line.startswith("#"):
                self.progress.report(line)
        self.progress.report(f"\nPictures, tables and summary.md: {self.folder}")

    def _image(self, subject: Subject) -> tuple[list[str], Any]:
        self.progress.report("image: fixations, density, flow")
        found = draw_image(subject, self.images, self.settings, self.folder)
        if not found["classes"]:
            return [f"## {found['image']}", "", "- None of the classes to draw is predicted there."], found
        told = f"- {found['started']:.0f} labelled pixels rest on {found['points']} points (one per class and channel; "
        told += (
            f"mass dropped: {found['dropped']:.0f}, through a global pooling: {found['through global pooling']:.0f})."
        )
        words = [f"## {found['image']}", "", told]
        pictures = ("fixations.png", "density.png", "flow.png", "flow.gif")
        return [*words, *(f"![{name}]({name})" for name in pictures)], found

    def _shares(self, subject: Subject) -> tuple[list[str], Any]:
        images, void = self.images, self.settings.data.ignore_index
        found = self.measured(
            "shares",
            lambda told: measure_shares(subject, self.batches(self.indices), images.num_classes, void, told),
            len(self.indices),
        )
        shares = Shares(found, self.settings.measure)
        rows, findings = share_rows(shares, images.classes), share_findings(shares)
        save_csv(rows, self.folder / "shares.csv")
        save_csv(findings, self.folder / "findings.csv")
        draw_shares(
            rows, self.folder, f"{self.settings.model.name} on {self.settings.data.name}, {shares.images} images"
        )
        started = max(found["started"], 1.0)
        lost = {s: (kept["dropped"] / started, kept["jumped"] / started) for s, kept in found["shifts"].items()}
        words = share_words(rows, findings, lost)
        return [*words, "![shares.png](shares.png)", "![shifts.png](shifts.png)"], {"rows": rows, "findings": findings}

    def _counts(self, subject: Subject) -> tuple[list[str], Any]:
        settings = self.settings
        most = settings.measure.unit_images
        indices = self.indices[:: -(-len(self.indices) // most)]
        found = self.measured(
            "counts",
            lambda told: measure_counts(subject, self.batches(indices), settings.measure, settings.seed, told),
            len(indices),
        )
        rows = count_rows(found, settings.measure)
        save_csv(rows, self.folder / "counts.csv")
        draw_counts(rows, self.folder, f"{settings.model.name} on {settings.data.name}: inputs that hold a unit")
        return [*count_words(rows), "![counts.png](counts.png)"], {"rows": rows}

    def _evidence(self, subject: Subject) -> tuple[list[str], Any]:
        settings, images, device = self.settings, self.images, self.fabric.device
        shown = [batch for _, batch, _, _ in self.batches(self.indices[:32])]
        networks = {"trained": subject}
        for seed in settings.measure.random_seeds:
            fresh = random_network(settings, images.num_classes, seed, shown).to(device)
            networks[f"random#{seed}"] = Subject(fresh, fresh, settings.trace, device, "random weights")
        rivals = rivals_of(images, settings.trace)
        questions: dict[str, dict[int, int]] = {"class": {}, "rival": rivals}
        found: dict[str, Tensor] = {}
        for name, network in networks.items():  # a stage each, so that a stopped run loses little
            of_one = ({name: network}, questions, images, self.indices, settings.measure)
            measure = partial(measure_evidence, *of_one, trained=subject)
            for key, sums in self.measured(f"evidence-{name.replace('#', '')}", measure, len(self.indices)).items():
                found[key] = found[key] + sums if key in found else sums
        rows = evidence_rows(found, settings.measure)
        save_csv(rows, self.folder / "evidence.csv")
        title = f"{settings.model.name} on {settings.data.name}: mass on what decides the label"
        draw_evidence(rows, self.folder, title)
        draw_example(networks, rivals, images, self.indices, self.folder, settings)
        words = evidence_words(rows, settings.measure.far, settings.measure.view)
        return [*words, "![evidence.png](evidence.png)", "![example](evidence_example.png)"], {"rows": rows}


def _plain(value: Any) -> Any:
    """JSON has no NaN: null."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def understand(parser: ArgumentParser, parsed: Namespace) -> FixationSettings:
    """The settings, checked."""
    ready = parser.instantiate(parsed)
    return FixationSettings(**{name: ready[name] for name in FixationSettings.__dataclass_fields__})


def main(arguments: list[str] | None = None) -> int:
    """Run the recipe; the exit status is 0, 1 after a mistake of the user or a full disk, 130 when interrupted."""
    return look("fixations", arguments, build_parser, understand, Job)
