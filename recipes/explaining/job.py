"""python -m recipes.explain: which context decides which labels, beside what a network with random weights shows?"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from lightning_fabric import Fabric
from torch import nn

from recipes.explaining.curves import measure_curves
from recipes.explaining.maps import TRAINED, Found, Meter, Row, check_methods
from recipes.explaining.numbers import RANDOM
from recipes.explaining.pictures import Gallery, write_explorer
from recipes.explaining.questions import Choice, Scene, Scenes, asked_classes, choose, count_right, with_distinct_names
from recipes.explaining.results import conclude
from recipes.explaining.salient_parts import measure_salient
from recipes.explaining.settings import ExplainSettings
from recipes.kit.command_line import recipe_parser
from recipes.kit.images import Images
from recipes.kit.interrupt import Interrupt
from recipes.kit.progress import Progress
from recipes.kit.run import look, settings_of_run
from recipes.tracing.subject import prepare_network, random_network, train_network
from recipes.training.checkpoints import DamagedCheckpoint, load_checkpoint, save_checkpoint


def build_parser(run: str | None = None) -> ArgumentParser:
    """The command line: every field of ExplainSettings; data and model of the run folder `run` are the defaults."""
    parser = recipe_parser(
        "explain", ExplainSettings, nested="ask.labels", example="--run RUN_FOLDER --ask.labels [pedestrian,pavement]"
    )
    if run is not None:
        parser.set_defaults(settings_of_run(Path(run)))
    return parser


@dataclass
class Job:
    """What every part of a run needs."""

    settings: ExplainSettings
    folder: Path
    fabric: Fabric
    images: Images
    progress: Progress
    stop: Interrupt
    told: list[str] = field(default_factory=list)
    ready: tuple[nn.Module, str] | None = None
    choice: Choice | None = None

    def prepare(self) -> None:
        """Read the weights and try the settings, so that mistakes show before anything is written."""
        settings, images = self.settings, self.images
        asked_classes(images, settings.ask)
        self.ready = prepare_network(settings.subject(), images.num_classes)
        network = random_network(settings.subject(), images.num_classes, 0, [])
        check_methods(network, settings, self.fabric.device)
        if self.ready is None:
            images.steps_per_epoch(settings.pretrain.batch_size)
        else:
            self.choice = self._choose(self.ready[0].to(self.fabric.device).eval())

    def _choose(self, network: nn.Module) -> Choice:
        found, right = count_right(network, self.fabric.device, self.images)
        return choose(self.settings, self.images, found, right)

    def everything(self) -> None:
        """Network, controls, measurements, pictures, words."""
        settings, device = self.settings, self.fabric.device
        if self.ready is None:
            training = (settings.subject(), self.folder / "training", self.fabric, self.images, self.progress)
            self.ready = train_network(*training, self.stop)
        network, about = self.ready
        network = network.to(device).eval()
        choice = self.choice or self._choose(network)
        networks = {TRAINED: network, **self._controls(choice)}
        meter = Meter(networks, settings, self.images.classes, device, self.images.ignore_index)
        scenes = Scenes(settings, self.images, network, device)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            drawn = [scenes.drawn(i, labels) for i, labels in choice.drawn.items()]
            drawn += [scenes.file(path, choice.asked) for path in choice.files]
            drawn = with_distinct_names(drawn)
            shown = self._measure(meter, drawn, settings.maps.methods, keep=True)
            many = [scenes.evaluation(i, choice.asked) for i in choice.measured] if settings.measure.images else []
            measured = self._measure(meter, many, settings.measured_methods) if many else shown
            curves = self._curves(meter, drawn, shown) if settings.curves.draw else ([], [])
        self.told += dict.fromkeys(str(w.message).strip() for w in caught if issubclass(w.category, UserWarning))
        least = settings.ask.least
        self.told += [
            f"{s.name}: none of the labels asked about is predicted on {least} pixels there: no maps are drawn of it"
            for s in drawn
            if not s.questions
        ]
        gallery, salient = Gallery(self.folder, settings, self.images, meter), list[Row]()
        for scene, found in zip(drawn, shown):
            gallery.panels(scene, found)
            parts, objects = measure_salient(networks, scene, meter.names, device)
            salient += parts
            if objects is not None:
                gallery.salient(scene, objects)
            if settings.explorer and found.effects is not None:
                write_explorer(self.folder, scene, found.effects, settings, self.images, about)
        conclude(gallery, about, choice.asked, (many or drawn, measured), (drawn, shown), (*curves, salient), self.told)
        self.progress.report((self.folder / "summary.md").read_text())
        self.progress.report(f"Summary, tables, pictures and pages: {self.folder}")

    def _controls(self, choice: Choice) -> dict[str, nn.Module]:
        """Networks with random weights, whose normalisation layers know the statistics of some of the images."""
        some = (choice.measured or list(choice.drawn))[:32] or list(range(min(8, self.images.evaluated)))
        batches = [batch for _, batch, _, _ in self.images.evaluation(batch_size=8, far=0.0, only=some)]
        subject, classes = self.settings.subject(), self.images.num_classes
        found: dict[str, nn.Module] = {}
        for seed in self.settings.measure.random_seeds:
            found[f"{RANDOM} {seed}"] = random_network(subject, classes, seed, batches).to(self.fabric.device)
        return found

    def _measure(
        self, meter: Meter, scenes: Sequence[Scene], methods: Sequence[str], *, keep: bool = False
    ) -> list[Found]:
        found = []
        self.progress.begin("drawn images" if keep else "measured images", 0, len(scenes))
        try:
            for number, scene in enumerate(scenes):
                found.append(meter.measure(scene, methods, keep=True) if keep else self.measured(meter, scene, methods))
                self.progress.advance(number + 1, {}, 0.0)
                self._stop_if_asked()
        finally:
            self.progress.end()
        return found

    def measured(self, meter: Meter, scene: Scene, methods: Sequence[str]) -> Found:
        """What is measured on one image, or what was before this run was stopped."""
        path = self.folder / "measured" / f"{scene.slug}.pt"
        try:
            if path.exists():
                return Found(**load_checkpoint(path))
        except DamagedCheckpoint as error:
            self.progress.report(f"damaged result: {error}; it is measured again")
        found = meter.measure(scene, methods)
        path.parent.mkdir(exist_ok=True)
        save_checkpoint(path, {name: getattr(found, name) for name in ("shares", "profiles", "alone", "matrix")})
        return found

    def _curves(self, meter: Meter, scenes: Sequence[Scene], shown: Sequence[Found]) -> tuple[list[Row], list[Row]]:
        areas, points = list[Row](), list[Row]()
        for scene, found in zip(scenes, shown):
            for question in scene.questions:
                if question.kind != "label":
                    continue
                for method in self.settings.maps.methods:
                    self._stop_if_asked()
                    values = found.maps[TRAINED, method, question.kind, question.label]
                    network = meter.networks[TRAINED]
                    parts = measure_curves(network, meter, scene, question, method, values, self.settings)
                    areas += parts[0]
                    points += parts[1]
        return areas, points

    def _stop_if_asked(self) -> None:
        if self.stop.asked:
            raise KeyboardInterrupt


def main(arguments: list[str] | None = None) -> int:
    """Run the recipe; the exit status is 0, 1 after a mistake of the user or a full disk, 130 when interrupted."""
    return look("explain", arguments, build_parser, understand, Job)


def understand(parser: ArgumentParser, parsed: Namespace) -> ExplainSettings:
    """The settings, checked."""
    ready = parser.instantiate(parsed)
    return ExplainSettings(**{name: ready[name] for name in ExplainSettings.__dataclass_fields__})
