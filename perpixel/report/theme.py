"""What all pictures have in common: colours, figures, axes, legends, numbers, and how a figure becomes a file."""

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from perpixel.checks import check_integer, complain

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Axes
    from matplotlib.figure import Figure as Figure
else:  # matplotlib loads with the first figure
    Axes = Figure = Any

Array = NDArray[np.float64]

LINES = ("#4c566a", "#c8553d", "#2a7f62", "#8a5fa8", "#c08a1e", "#3b7ea1")
SIGNED = "PuOr_r"  # orange for, purple against, white zero: told apart without red and green
RANDOM = "#8a8a8a"  # controls and chance
VOID = (0.80, 0.80, 0.80)
FRAME, GRID, SMALL_PRINT = "#bbbbbb", "#e6e6e6", "#444444"


def line_color(number: int) -> str:
    """Colour of the line with this number; after the last the first again."""
    return LINES[number % len(LINES)]


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, inches, that matplotlib's global state does not know."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('figures need matplotlib: pip install "perpixel[recipes]"') from error
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def panel_figure(
    count: int, columns: int, panel: tuple[float, float], *more: float, share: bool = False
) -> tuple[Figure, list[Any], int]:
    """A figure of `count` panels (width, height) in rows and `more` inches of height; its axes; its columns."""
    check_integer("columns", columns, low=1)
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = new_figure(panel[0] * columns, sum(more, panel[1] * rows))
    axes = list(figure.subplots(rows, columns, squeeze=False, sharex=share, sharey=share).flat)
    for axis in axes[count:]:
        axis.set_visible(False)
    return figure, axes[:count], columns


def caption(figure: Figure, title: str, note: str = "", *, size: float = 11) -> None:
    """Title above and note below, at the left."""
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=size)
    if note:
        figure.supxlabel(note, x=0.01, ha="left", fontsize=8, color=SMALL_PRINT)


def chart_axis(axis: Axes, *, grid: Any = "both") -> None:
    """Pale grid, no box."""
    axis.grid(axis=grid, color=GRID, linewidth=0.8)
    axis.spines[["top", "right"]].set_visible(False)


def picture_axis(axis: Axes, title: str = "") -> None:
    """No ticks, a pale frame."""
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_color(FRAME)
    if title:
        axis.set_title(title, fontsize=9.5)


def legend(
    figure: Figure, handles: Sequence[Any], names: Sequence[str] | None = None, note: str = "", **more: Any
) -> None:
    """The legend below all axes, `note` in small print above it; names: of handles without a label of their own."""
    given: dict[str, Any] = {"handles": handles} | ({"labels": names} if names else {})
    if note:
        given |= {"title": note, "title_fontsize": 8.5, "alignment": "left"}
    figure.legend(**given, **{"loc": "outside lower left", "frameon": False, "fontsize": 9, "ncols": 4, **more})


def swatch(name: str, color: Any) -> Any:
    """Legend entry of a class; colour uint8 (3,) or as matplotlib takes it."""
    from matplotlib.patches import Patch

    face = (color.double() / 255).tolist() if isinstance(color, Tensor) else color
    return Patch(facecolor=face, edgecolor="#888888", label=name)


def paint_labels(labels: Tensor, colors: Tensor, ignore_index: int) -> Array:
    """(H, W) labels -> (H, W, 3) in [0, 1]; colors: uint8 (C, 3)."""
    void = labels == ignore_index
    painted = colors.double()[labels.masked_fill(void, 0).long()] / 255
    painted[void] = torch.tensor(VOID, dtype=torch.float64)
    return to_array(painted)


def extent(height: int, width: int) -> tuple[float, float, float, float]:
    """Where a picture of any resolution lies in the pixels of another: `extent=` of `imshow`."""
    return (-0.5, width - 0.5, height - 0.5, -0.5)


def outline(axis: Axes, mask: Tensor, color: str, width: float) -> None:
    """The border of a mask (H, W), through the middle of the pixels at it."""
    if bool(mask.any()) and not bool(mask.all()):
        axis.contour(mask.double().numpy(), levels=[0.5], colors=[color], linewidths=width)


def to_array(values: Tensor) -> Array:
    """float64 on the CPU."""
    array: Array = values.detach().cpu().double().numpy()
    return array


def map_array(name: str, values: Tensor, finite: bool = True) -> Array:
    """A map (H, W) as float64 on the CPU; ValueError if it is none, or not finite."""
    if not isinstance(values, Tensor) or values.ndim != 2 or values.numel() == 0:
        raise ValueError(complain(name, "a tensor (H, W), not empty", values, "Sum a map over its channels."))
    array = to_array(values)
    if finite and not np.isfinite(array).all():
        raise ValueError(complain(name, "finite values", "NaN or infinity", "Leave that map out."))
    return array


def short_number(value: float) -> str:
    """Two significant digits or a few more, without an exponent where that is short."""
    return f"{value:.0f}" if 100 <= abs(value) < 100_000 else f"{value:.2g}"


def table_number(value: float, largest: float) -> str:
    """With as many decimals as give `largest` three significant digits."""
    number = f"{value:.{max(0, 2 - math.floor(math.log10(largest)))}f}"
    return "0" if float(number) == 0 else number


def pixel_count(count: float) -> str:
    """ "42 px", "1.5k px", "2.5M px"."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}{unit} px"
    return f"{count:.0f} px"


def picture_bytes(figure: Figure) -> bytes:
    """The figure as PNG, packed as tightly as PNG can."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(_pixels(figure)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def animation_bytes(figures: Sequence[Figure], milliseconds: int) -> bytes:
    """An endless GIF of figures of one size; the last one stays three times as long.

    One palette for all frames, made of them all, so that nothing flickers.
    """
    from PIL import Image

    check_integer("milliseconds", milliseconds, low=20)
    if not figures:
        raise ValueError(complain("figures", "at least one", "none", "Record the layers."))
    frames = [_pixels(figure) for figure in figures]
    joined = Image.fromarray(np.concatenate(frames))
    palette = joined.quantize(255, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    first, *rest = (Image.fromarray(f).quantize(palette=palette, dither=Image.Dither.NONE) for f in frames)
    times = [milliseconds] * len(rest) + [3 * milliseconds]
    buffer = io.BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=rest, duration=times, loop=0, optimize=False, disposal=1)
    return buffer.getvalue()


def _pixels(figure: Figure) -> Any:
    _show_names_as_they_are(figure)
    canvas: Any = figure.canvas
    canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3])


def _show_names_as_they_are(figure: Figure) -> None:
    """A $ is of a name, not of a formula, but in matplotlib's own powers of ten."""
    from matplotlib.text import Text

    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            axis.get_ticklabels(which="both")  # writes them
    for text in figure.findobj(Text):
        if "\\mathdefault" not in text.get_text():
            text.set_parse_math(False)
