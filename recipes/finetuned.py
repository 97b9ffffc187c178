"""What a run of recipes.finetune worked on, for the recipes that look at its networks."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from perpixel.checks import complain
from recipes import finetune
from recipes.command import CONFIG


def settings_of_run(run: Path) -> dict[str, Any]:
    """Data and model of a run of recipes.finetune, as defaults; what its network started from is left out."""
    if not (run / CONFIG).is_file():
        expected = "a run folder of recipes.finetune"
        raise FileNotFoundError(complain("run", expected, f"{run}, without {CONFIG}", "Check the path."))
    theirs = finetune.build_parser()
    settings, _ = finetune.understand(theirs, theirs.parse_path(run / CONFIG))
    model = replace(settings.model, weights=None, weights_backbone=None, checkpoint=None, replace_head=False)
    return {
        f"{part}.{field.name}": getattr(values, field.name)
        for part, values in (("data", settings.data), ("model", model))
        for field in fields(values)
    }
