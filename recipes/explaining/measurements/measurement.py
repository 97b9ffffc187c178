"""What a measurement is: one thing measured of every explained image, with its tables, sentences and pictures."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from perpixel.report import fixation_backdrop
from recipes.explaining.images import ExplainedImage, Region
from recipes.explaining.maps import Explainer, Explanation
from recipes.kit.images import Images
from recipes.kit.summary import Section, subject

Rows = list[dict[str, Any]]
Tables = dict[str, tuple[Rows, str]]  # by file name without ".csv": rows, and what they hold
Figure = tuple[str, Any, str]  # file name without ".png", matplotlib figure, what it shows


@dataclass
class Results:
    """Rows of all images, by measurement, and the tables made of them so far.

    weights: where those of the network are from. labels: names of the classes asked about. images, drawn_images: names.
    measured, drawn: rows of the measured images and of the drawn ones, the same where only those are measured.
    """

    weights: str
    labels: list[str]
    images: list[str]
    drawn_images: list[str]
    measured: Mapping[str, Rows]
    drawn: Mapping[str, Rows]
    tables: dict[str, Rows] = field(default_factory=dict)

    def all_rows(self, name: str) -> Rows:
        """The rows of a measurement, those of drawn images last; the column "image_is" tells which they are."""
        drawn = [] if self.drawn is self.measured else self.drawn[name]
        return [row | {"image_is": "measured"} for row in self.measured[name]] + [
            row | {"image_is": "drawn"} for row in drawn
        ]


class Measurement:
    """`measure` and `figures` see one image after the other; then `tables`, `section` and `charts` see all.

    A new measurement: a class in a file of this folder, with those of the methods below that it needs, in MEASUREMENTS.
    """

    name: ClassVar[str]  # its rows are kept under this name
    drawn_only: ClassVar[bool] = False  # not measured on images that are not drawn

    def __init__(self, explainer: Explainer, images: Images) -> None:
        self.explainer, self.settings, self.images = explainer, explainer.settings, images

    def measure(self, explanation: Explanation) -> Rows:
        """Rows of one image and network: texts, numbers and tensors."""
        return []

    def figures(self, explanations: Sequence[Explanation], rows: Mapping[str, Rows]) -> Iterator[Figure]:
        """Pictures of one drawn image: its explanations, that of the trained network first; rows by measurement."""
        return iter(())

    def tables(self, results: Results) -> Tables:
        """Tables over all images."""
        return {}

    def section(self, results: Results) -> Section | None:
        """What the tables say, in sentences."""
        return None

    def verdict(self, results: Results) -> str:
        """The most important of them, in one."""
        return ""

    def charts(self, results: Results) -> Iterator[Figure]:
        """Pictures of all images together."""
        return iter(())

    def columns(self, explanation: Explanation, region: Region) -> dict[str, Any]:
        """The first columns of a row about a region."""
        common = {"image": explanation.image.name, "network": explanation.network_name, "pixels_asked": region.kind}
        return common | {"label": self.images.classes[region.label]}

    def backdrop(self, image: ExplainedImage) -> Any:
        """What stands behind regions and patches, float (H, W, 3)."""
        return fixation_backdrop(image.display, image.predicted, self.images.colors, style=self.settings.backdrop)

    @property
    def subject(self) -> str:
        """Network and data, for titles."""
        return subject(self.settings)
