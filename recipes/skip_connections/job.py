"""python -m recipes.skip_study: which single skip connection helps, and what does it bring: outline or meaning?"""

from dataclasses import dataclass, field, replace
from typing import Any

from perpixel.checks import complain
from recipes.kit.command_line import named
from recipes.kit.job import Job
from recipes.kit.networks import build_network
from recipes.kit.run_folder import CONFIG
from recipes.kit.summary import subject
from recipes.kit.tables import save_csv, save_json
from recipes.kit.weights import Weights, load_weights, starting_weights
from recipes.skip_connections.landing import Landing, measure_landing
from recipes.skip_connections.layers import BOTH, NONE, Arms, choose_arms
from recipes.skip_connections.networks import StudyNetworks, without_weights
from recipes.skip_connections.pictures import draw_character, draw_examples, draw_gains
from recipes.skip_connections.results import Results
from recipes.skip_connections.settings import SkipStudySettings
from recipes.skip_connections.training import ByArm, as_set, train_heads, train_whole
from recipes.skip_connections.words import summarise, verdict
from recipes.training.origin import origin
from recipes.training.trainer import Training, train


@dataclass
class SkipStudyJob(Job):
    """One backbone, then every arm with every seed: trained, compared, drawn."""

    recipe = "skip_study"
    settings_class = SkipStudySettings

    settings: SkipStudySettings
    arms: Arms = field(default_factory=dict)
    given: Weights | None = None

    def prepare(self) -> None:
        """Read the weights to start from and try the settings, so that mistakes show before anything is written."""
        settings, images = self.settings, self.images
        network = build_network(replace(settings.model, checkpoint=None), images.channels)
        with named("study.", layer="study.layers"):
            self.arms = choose_arms(settings.backbone, settings.study.layers)
        if (weights := starting_weights(settings.model)) is not None:
            model, classes = settings.model, images.channels
            may_replace, pixels = model.replace_head, model.caffe_pixels
            load_weights(network, *weights, replace_head=may_replace, num_classes=classes, caffe_pixels=pixels)
        if weights is not None or settings.model.weights_backbone:
            self.given = network.state_dict()
        else:
            with named("pretrain."):
                images.steps_per_epoch(settings.pretrain.batch_size)
        with named("train."):
            images.steps_per_epoch(settings.train.batch_size)
        if images.evaluated < 2:
            remedy = "Raise data.eval_images, or add images: the intervals are over images."
            raise ValueError(complain("data", "at least two evaluation images", f"{images.evaluated}", remedy))
        images.check_labels(self.progress.report)

    def run(self) -> None:
        """Backbone, networks, fixations, tables and pictures."""
        settings, study, seed = self.settings, self.settings.study, self.settings.seeds[0]
        weights, source = self._backbone()
        networks = StudyNetworks(settings.model, self.images.channels, weights, self.arms)
        self.progress.report(f"backbone: {source}; {len(self.arms)} networks a seed, {len(settings.seeds)} seeds")
        cost = None
        if study.end_to_end:
            trained = train_whole(self, networks)
        else:
            trained, cost = train_heads(self, networks)
        landing = self._landing(networks, trained) if study.fixation_images else {}
        found = Results(self.arms, trained, self.images.classes, settings.evaluation, landing, cost)
        save_csv(self.folder / "layers.csv", found.rows())
        save_json(self.folder / "results.json", {"verdict": verdict(found), **found.content()}, indent=1)
        about = settings.backbone + subject(settings).removeprefix(settings.model.name)
        title = f"{settings.name}: {about}"
        chosen = [arm for arm in (NONE, found.best, BOTH) if arm in self.arms]
        shown = {
            arm: networks.trained(self.arms[arm], trained[arm][seed].weights, self.fabric.device) for arm in chosen
        }
        pictures = {
            "gains": draw_gains(self.folder, found, title),
            "character": draw_character(self.folder, found, title),
            "predictions": draw_examples(
                self.folder, found, shown, self.images, settings.evaluation.pictures, f"{title}, seed {seed}"
            ),
        }
        files = {"layers.csv": "a row per network: all scores", "results.json": "all numbers of this page"}
        files[CONFIG] = "the settings, with all defaults"
        summarise(found, about, source, settings.train, pictures, files).save(self.folder, self.progress)

    def _backbone(self) -> tuple[Weights, str]:
        """Weights of the network without skips, and where they are from."""
        settings = self.settings
        if self.given is not None:
            return self.given, f"weights {settings.model.weights_backbone or settings.model.checkpoint}"
        training = Training(self.folder / "backbone", "backbone, without skips", 0, settings.pretrain)
        scores, weights = train(self, as_set(self, training, without_weights(settings.model)))
        return weights, f"trained for {settings.pretrain.epochs} epochs without skips, {100 * scores.miou:.1f} mIoU"

    def _landing(self, networks: StudyNetworks, trained: ByArm) -> dict[str, Landing]:
        """Of the networks of the first seed."""
        seed, found = self.settings.seeds[0], dict[str, Landing]()
        for arm, maps in self.arms.items():
            weights: Any = trained[arm][seed].weights
            network = networks.trained(maps, weights, self.fabric.device)
            began = origin(self, seed=seed, weights=network.state_dict())
            found[arm] = measure_landing(self, arm, network, began)
        return found
