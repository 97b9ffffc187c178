"""explorer-IMAGE.html: a page in which any pixel, region or class of a drawn image can be asked."""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from perpixel.report import context_explorer, fixation_backdrop
from recipes.explaining.maps import Explanation
from recipes.explaining.settings import ExplainSettings
from recipes.kit.images import Images
from recipes.kit.run_folder import write_atomically


def write_explorer(
    folder: Path, explanation: Explanation, settings: ExplainSettings, images: Images, weights: str
) -> Path:
    """Where the page of one image was written; weights: where those of the network are from."""
    image, effects = explanation.image, explanation.effects
    display = image.display.clamp(0, 1)
    if settings.backdrop != "photograph":
        painted = fixation_backdrop(None, image.predicted, images.colors, style=settings.backdrop)
        display = torch.from_numpy(painted).permute(2, 0, 1).float()
    hidden = f"baseline '{settings.maps.baselines}'"
    with TemporaryDirectory() as scratch:
        page = Path(scratch) / f"explorer-{image.file_name}.html"
        context_explorer(
            page,
            display,
            effects.logits[0].cpu(),
            effects.values[0].cpu(),
            effects.boxes.cpu(),
            classes=list(images.classes),
            labels=image.truth,
            palette=images.colors,
            upsampling=effects.passes.upsampling,
            title=f"{image.name}: which patches decide?",
            note=f"{settings.model.name}, weights from {weights}; patches hidden one by one ({hidden}).",
            ignore_index=images.ignore_index,
        )
        write_atomically(folder / page.name, page.read_bytes())
    return folder / page.name
