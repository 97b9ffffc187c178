"""python -m recipes.fixations: from every labelled pixel back to the image points it rests on, drawn and counted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from perpixel.checks import complain
from perpixel.evaluation import IMAGES
from recipes.kit.command_line import named
from recipes.kit.networks import build_network
from recipes.kit.summary import Section, Summary
from recipes.kit.tables import markdown_text, save_json
from recipes.tracing.counts import report_counts
from recipes.tracing.evidence import report_evidence
from recipes.tracing.network import TracedNetwork, asked_rivals, rival_logits
from recipes.tracing.pictures import classes_to_draw, report_image
from recipes.tracing.run import FixationRun, Report
from recipes.tracing.shares import report_shares
from recipes.training.origin import origin
from recipes.training.pretraining import load_network, train_network

# in the order of summary.md; a new part: a file with such a function, a line here, its name in settings.Part
PARTS: dict[str, Callable[[FixationRun, TracedNetwork], Report]] = {
    "image": report_image,
    "shares": report_shares,
    "counts": report_counts,
    "evidence": report_evidence,
}


@dataclass
class FixationJob(FixationRun):
    """A network, then part by part: measured, tabulated, drawn, summarised."""

    loaded: tuple[nn.Module, str] | None = None

    def prepare(self) -> None:
        """Read weights and image and check the questions, so that mistakes show before anything is written."""
        settings, images = self.settings, self.images
        rivals = asked_rivals(images, settings.trace)
        images.class_numbers([*settings.trace.rivals, *settings.trace.rivals.values()], "trace.rivals")
        self.loaded = load_network(settings, images.channels, images.classes)
        if self.loaded is None:
            build_network(settings.model, images.channels)
            with named("pretrain."):
                images.steps_per_epoch(settings.pretrain.batch_size)
        elif rivals:
            rival_logits(self.loaded[0], rivals)
        if "image" in settings.do:
            classes_to_draw(torch.zeros(1, dtype=torch.int64), images, settings.picture)
            images.picture(settings.picture.image)
        if len(self.indices) < 2 and {"shares", "evidence"} & set(settings.do):
            remedy = "Raise measure.images or data.eval_images."
            raise ValueError(complain("measure.images", "at least two images", len(self.indices), remedy))

    def run(self) -> None:
        """Network, parts, results.json, summary.md."""
        settings, images = self.settings, self.images
        if self.loaded is None:
            self.progress.report("no weights given: a network is trained first")
        network, weights = self.loaded or train_network(self, self.folder / "network")
        parts = {"seed": settings.seed, "trace": settings.trace, "measure": settings.measure}
        self.origin = origin(self, **parts, weights=network.state_dict())
        traced = TracedNetwork(network.to(self.fabric.device).eval(), settings.trace, self.fabric.device)
        traced = traced.against(asked_rivals(images, settings.trace))
        self.progress.report(f"network: {settings.model.name}, {weights}")
        asked = "its rival" if settings.trace.question == "rival" else "nothing: the score alone"
        results: dict[str, Any] = {"network": weights, "images": len(self.indices), "asked against": asked}
        reports: list[Report] = []
        for name, part in PARTS.items():
            if name == "evidence" and name in settings.do and not images.pairs:
                self.progress.report("evidence: left out, since only synthetic data knows what decides a label")
            elif name in settings.do:
                report = part(self, traced)
                results[name] = report.numbers
                reports.append(report)
        save_json(self.folder / "results.json", results, indent=1)
        self._summary(weights, reports).save(self.folder, self.progress)

    def _summary(self, weights: str, reports: Sequence[Report]) -> Summary:
        trace, level = self.settings.trace, 100 * self.settings.measure.level
        about = (
            f"Every pixel is followed from its label back to the image points it rests on. Network: "
            f"{markdown_text(weights)}. {len(self.indices)} of {self.images.evaluated} evaluation images. Rules "
            f"{trace.rules} ({trace.select}), k {trace.k}, shift {trace.shift} where not said otherwise, question "
            f"{trace.question}."
        )
        limits = [
            f"- Intervals ({level:g} %) are over images, for this one network: another training may differ. Images "
            "that resemble each other, such as frames of a film, make them too narrow.",
            "- A fixation is the largest contribution at every step, not a proof of cause: what was passed over may "
            "matter as much, and hiding the point need not change the label.",
            f"- An effect is claimed from {IMAGES} images on, and where it outlasts Holm's correction for all rows of "
            'its table; "on these images" where it does not.',
        ]
        sections = [section for report in reports for section in report.sections]
        files = {name: what for report in reports for name, what in report.files.items()}
        verdict = " ".join(report.verdict for report in reports if report.verdict) or "Nothing was measured."
        files["results.json"] = "all numbers in one"
        sections.append(Section("What this cannot say", limits))
        return Summary(f"Fixations of {markdown_text(self.subject)}", about, verdict, sections, files)
