"""python -m recipes.weak_supervision: segmentation from image labels alone, three ways, and pseudo-labels of it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import perpixel
from perpixel.checks import complain
from perpixel.evaluation import class_iou
from perpixel.losses import pool_maps
from recipes.image_labels.maps import MapScores, Rule, score_maps
from recipes.image_labels.pictures import draw_arms
from recipes.image_labels.pseudo import class_shares, write_pseudo_labels
from recipes.image_labels.results import Results
from recipes.image_labels.settings import ARMS, WeakSettings
from recipes.kit.command_line import named
from recipes.kit.job import Job
from recipes.kit.networks import build_network, seed_everything
from recipes.kit.run_folder import CONFIG
from recipes.kit.settings import ModelSettings
from recipes.kit.summary import Section, Summary, subject
from recipes.kit.tables import markdown_text, save_json
from recipes.kit.weights import Weights
from recipes.training.history import read_json_lines
from recipes.training.origin import keep, origin
from recipes.training.trainer import Training, train


@dataclass
class WeakJob(Job):
    """Every arm with every seed; their maps scored; tables, pictures, pseudo-labels."""

    recipe = "weak_supervision"
    settings_class = WeakSettings

    settings: WeakSettings

    def prepare(self) -> None:
        """Try settings and networks, so that mistakes show before anything is written."""
        settings, images = self.settings, self.images
        for arm in ARMS:
            seed_everything(0)
            network = build_network(self.model(arm), images.channels)
            with torch.no_grad(), named("data."):
                network.eval()(images.picture(0)[0])
        with named("pretrain."):
            images.steps_per_epoch(settings.pretrain.batch_size)
        if images.evaluated < 2:
            remedy = "Raise data.eval_images, or add images: the interval is over images."
            raise ValueError(complain("data", "at least two evaluation images", f"{images.evaluated}", remedy))
        self.rule = Rule(self._background(), settings.threshold)
        images.check_labels(self.progress.report)

    def model(self, arm: str) -> ModelSettings:
        """The network of an arm."""
        options = dict(self.settings.model.options)
        if arm == "cam":
            network: Any = build_network(self.settings.model, self.images.channels)
            options["layers"] = [network.layer_names[-1]]
        return replace(self.settings.model, options=options | {"restore": arm == "stack"})

    def run(self) -> None:
        """Trainings, scores, results.json, pictures, pseudo-labels, summary."""
        settings, images = self.settings, self.images
        scores: dict[str, dict[int, MapScores]] = {arm: {} for arm in ARMS}
        first: dict[str, nn.Module] = {}
        seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
        for seed in settings.seeds:
            for arm in ARMS:
                network = self._trained(arm, seed)
                scores[arm][seed] = self._scored(network, self._folder(arm, seed), f"seed {seed} · {arm}")
                rows = read_json_lines(self._folder(arm, seed) / "metrics.jsonl")
                seconds[arm] += [row["seconds"] for row in rows]
                first.setdefault(arm, network)
        now = origin(self)
        found = keep(self.folder / "shares.pt", now, lambda: {"shares": class_shares(images)}, self.progress.report)
        parameters = {arm: sum(p.numel() for p in network.parameters()) for arm, network in first.items()}
        results = Results(
            scores, images.classes, self.rule.background, found["shares"], seconds, parameters, settings.evaluation
        )
        pictures = draw_arms(
            self.folder, images, {arm: partial(self.maps, of) for arm, of in first.items()}, self.rule, settings
        )
        pseudo, numbers = self._pseudo(first)
        save_json(self.folder / "results.json", results.numbers() | numbers, indent=1)
        self._summary(results, pictures, pseudo).save(self.folder, self.progress)

    def _folder(self, arm: str, seed: int) -> Path:
        return self.folder / f"seed{seed}" / arm

    def _background(self) -> int | None:
        asked, classes = self.settings.background, self.images.classes
        if self.images.channels == 1 or (asked is None and classes[0].lower() == "background"):
            return 0
        return None if asked is None else self.images.class_numbers([asked], "background")[0]

    def _trained(self, arm: str, seed: int) -> nn.Module:
        settings = self.settings
        loss: dict[str, Any] = {"pooling": settings.pooling, "sharpness": settings.sharpness}
        loss |= {"exclude": [] if self.rule.background is None else [self.rule.background]}
        base = partial(perpixel.ImageLabelLoss, **loss, ignore_index=settings.data.ignore_index)
        title, model = f"seed {seed} · {arm}", self.model(arm)
        training = Training(
            self._folder(arm, seed),
            title,
            seed,
            settings.pretrain,
            base=base,
            model=model,
            evaluation=settings.evaluation,
            checkpoint_every=settings.checkpoint_every,
        )
        weights: Weights = train(self, training)[1]
        network = build_network(model, self.images.channels)
        network.load_state_dict(weights)
        return network.to(self.fabric.device).eval()

    def maps(self, network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        """Class maps (N, C, H, W) and scores (N, C) of normalised images; of one channel, with zeros for the other."""
        with torch.no_grad():
            maps = network(images.to(self.fabric.device)).float().cpu()
        if maps.shape[1] == 1:
            maps = torch.cat([torch.zeros_like(maps), maps], 1)
        return maps, pool_maps(maps, self.settings.pooling, sharpness=self.settings.sharpness)

    def _scored(self, network: nn.Module, folder: Path, title: str) -> MapScores:
        settings, void = self.settings, self.images.ignore_index

        def compute() -> dict[str, Any]:
            batches = self.images.evaluation(batch_size=settings.evaluation.batch_size, far=0.0)
            parts = [
                score_maps(*self.maps(network, images), labels, self.rule, void)
                for _, images, labels, _ in self.each(
                    f"{title} · scored", batches, self.images.evaluated, lambda batch: len(batch[0])
                )
            ]
            return vars(MapScores.joined(parts))

        rule: dict[str, Any] = {"background": self.rule.background, "threshold": settings.threshold}
        rule |= {"pooling": settings.pooling, "sharpness": settings.sharpness}
        now = origin(self, rule=rule, weights=network.state_dict())
        return MapScores(**keep(folder / "maps.pt", now, compute, self.progress.report))

    def _pseudo(self, first: dict[str, nn.Module]) -> tuple[list[str], dict[str, Any]]:
        """Lines for the summary, and numbers."""
        arm, settings, images = self.settings.pseudo, self.settings, self.images
        if arm is None:
            return [], {}
        root, count = self.folder / "pseudo", images.sources["training"][1]
        written: Iterator[Tensor] = write_pseudo_labels(
            root, images, partial(self.maps, first[arm]), self.rule, settings.unsure
        )
        counts = torch.stack(list(self.each(f"pseudo-labels of {arm}", written, count))).sum(0)
        confusion, void = counts[:, :-1], float(counts[:, -1].sum() / counts.sum())
        miou = float(class_iou(confusion).nanmean())
        command = f"perpixel finetune --data.name folder --data.root {root}"
        lines = [
            f"{count} training images with labels drawn by {arm} (seed {settings.seeds[0]}) from the classes known to "
            f"be in each, and {images.evaluated} evaluation images with their true masks, are in [pseudo](pseudo), as "
            f"`--data.name folder` reads them. {100 * void:.1f} % of the training pixels are void, being unsure; "
            f"against the true masks, looked at for this line alone, the others have an mIoU of {100 * miou:.2f} %.",
            "",
            "A network trained on them, with the library's loss and without, against the true masks:",
            "",
            "```",
            command,
            "```",
        ]
        return lines, {"pseudo-labels": {"arm": arm, "void": void, "mIoU of the others": miou, "images": count}}

    def _summary(self, results: Results, pictures: dict[str, str], pseudo: list[str]) -> Summary:
        settings = self.settings
        rule = "the class whose map reaches the largest share of its maximum, among those with a positive score"
        if self.rule.background is not None:
            rule += f"; {self.images.classes[self.rule.background]} where none reaches {100 * settings.threshold:g} %"
        about = (
            f"{markdown_text(subject(settings))}; {results.images} images, {len(settings.seeds)} seed(s). Trained with "
            f"which classes are in an image (in its crop), and nothing else, by {settings.pooling} pooling; "
            f"scored on masks that training never saw. Labels: {rule}. All arms share backbone weights at the start, "
            "images, augmentation and schedule."
        )
        head, *rest = results.sections()
        files = {"results.json": "all numbers of this page", CONFIG: "the settings, with all defaults"}
        sections = [replace(head, pictures=pictures), *rest[:-1], Section("Pseudo-labels", pseudo), rest[-1]]
        title = f"{markdown_text(settings.name)}: segmentation from image labels alone"
        return Summary(title, about, results.verdict, sections, files)
