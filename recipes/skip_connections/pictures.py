"""gains.png, character.png and predictions.png of a run folder."""

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from perpixel.evaluation import pixel_accuracy
from perpixel.report import character_chart, depth_chart
from recipes.kit.images import Images
from recipes.kit.run_folder import save_figure
from recipes.skip_connections.layers import BOTH, NONE
from recipes.skip_connections.results import TESTED, Results
from recipes.training.pictures import draw_predictions

Triple = tuple[float, float, float]


def draw_gains(folder: Path, results: Results, title: str) -> dict[str, str]:
    """gains.png: the gains over the depth."""
    panels = {f"{metric} (points)": [_gain(results, arm, metric) for arm in results.single] for metric in TESTED}
    both = {f"{metric} (points)": {BOTH: _gain(results, BOTH, metric)} for metric in TESTED if BOTH in results.arms}
    figure = depth_chart(
        results.single,
        [f"stride {results.arms[arm][1].stride}" for arm in results.single],
        panels,
        references=both,
        highlight=results.single.index(results.best),
        title=f"{title}: what one skip adds to no skip",
    )
    save_figure(folder / "gains.png", figure)
    return {"gains.png": "gain of every single skip over no skip, from shallow to deep, with intervals over images"}


def draw_character(folder: Path, results: Results, title: str) -> dict[str, str]:
    """character.png: boundary F against interior accuracy."""
    arms = list(results.gains)
    figure = character_chart(
        arms,
        [_gain(results, arm, "interior accuracy") for arm in arms],
        [_gain(results, arm, "boundary F") for arm in arms],
        order=[max(one.depth for one in results.arms[arm][1:]) for arm in arms],
        xlabel="meaning: gain in interior accuracy (points)",
        ylabel="outline: gain in boundary F (points)",
        controls=[BOTH],
        title=title,
        note="Lines: intervals over images. Darker: deeper in the network.",
    )
    save_figure(folder / "character.png", figure)
    return {"character.png": "outline against meaning: gains over no skip; the hollow dot is FCN-8s' own two"}


def _gain(results: Results, arm: str, metric: str) -> Triple:
    interval = results.gains[arm][metric].interval
    return interval.value, interval.low, interval.high


def draw_examples(
    folder: Path, results: Results, networks: Mapping[str, nn.Module], images: Images, count: int, title: str
) -> dict[str, str]:
    """predictions.png: no skip, the best, FCN-8s' own, on images where the best gains and loses most, and typical."""
    before, after = (pixel_accuracy(results.scores(arm)[0].confusion) for arm in (NONE, results.best))
    known = (after - before).isfinite().nonzero().flatten()
    order = known[(after - before)[known].argsort(stable=True)].tolist()
    turns = [("most gained", -1), ("most lost", 0), ("typical", len(order) // 2), ("second most gained", -2)]
    chosen = [(order[place], why) for why, place in turns[: min(count, len(order))]]
    named = {arm if arm in (NONE, BOTH) else f"skip from {arm}": one.cpu() for arm, one in networks.items()}
    draw_predictions(folder / "predictions.png", named, images, chosen, title)
    shown = "no skip, the best single skip and FCN-8s' own: labels, and where they are wrong"
    return {"predictions.png": shown} if chosen else {}
