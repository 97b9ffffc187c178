"""What all pictures have in common: colours, figures, axes, legends, numbers, and how a figure becomes a file."""

import io
import math
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
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

FOR, AGAINST = "#e66100", "#0062cc"  # what speaks for a label and against it, in every chart and on the explorer's page
LINES = ("#4c566a", "#c8553d", "#2a7f62", "#8a5fa8", "#c08a1e", "#3b7ea1")
RANDOM = "#8a8a8a"  # controls and chance
VOID = (0.80, 0.80, 0.80)
FRAME, GRID, SMALL_PRINT = "#bbbbbb", "#e6e6e6", "#444444"


@cache
def signed_colors() -> Any:
    """Colormap: orange for, blue against, white zero; told apart without red and green."""
    from matplotlib.colors import LinearSegmentedColormap

    ends = ((0.0, "#00285a"), (0.15, AGAINST), (0.35, "#8fbcf0"), (0.5, "#f8f8f6"), (0.65, "#ffc08f"), (0.85, FOR))
    return LinearSegmentedColormap.from_list("signed", [*ends, (1.0, "#742c00")])


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


def finished(figure: Figure, title: str = "", note: str = "") -> Figure:
    """The figure with its title above and a note below, at the left, and no text cut off or over its neighbour's.

    What is longer than its room goes on in further lines, for which the figure becomes higher.
    """
    room = figure.get_figwidth() - 0.2
    title, note = wrapped(title, room, 11), wrapped(note, room, 8)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    if note:
        figure.supxlabel(note, x=0.01, ha="left", fontsize=8, color=SMALL_PRINT)
    _heighten(figure, 11 * title.count("\n") + 8 * note.count("\n"))
    shown = [axis for axis in figure.axes if axis.get_visible()]
    for axis in shown:
        side, spec = axis.yaxis.label, axis.get_subplotspec()
        rows = spec.get_gridspec().nrows if spec else 1
        side.set_text(wrapped(side.get_text(), 0.7 * figure.get_figheight() / rows, side.get_fontsize()))
    _show_names_as_they_are(figure)
    figure.draw_without_rendering()
    lines: dict[tuple[str, int], float] = {}
    for axis in shown:
        for place, text, room in _texts(figure, axis):
            before = text.get_text()
            text.set_text(wrapped(before, room, text.get_fontsize()))
            more = text.get_text().count("\n") - before.count("\n")
            lines[place] = max(lines.get(place, 0.0), more * text.get_fontsize())
    _heighten(figure, sum(lines.values()))
    return figure


def _heighten(figure: Figure, points: float) -> None:
    """By further lines whose font sizes add up to `points`."""
    figure.set_figheight(figure.get_figheight() + 1.35 * points / 72)


def _texts(figure: Figure, axis: Axes) -> Iterator[tuple[tuple[str, int], Any, float]]:
    """Titles and label of an axis: what stands beside them in one row of the figure, the text, its room in inches."""
    width = figure.get_figwidth()
    box, spec = axis.get_position(), axis.get_subplotspec()
    if spec is None:  # a colour bar
        yield ("label", 0), axis.xaxis.label, width * box.width
        return
    columns, row = spec.get_gridspec().ncols, spec.rowspan.start
    left, right = spec.colspan.start / columns, spec.colspan.stop / columns
    gap, middle = 0.1, (box.x0 + box.x1) / 2
    centred = 2 * width * max(min(middle - left, right - middle), box.width / 2) - gap
    yield ("title", row), axis.title, centred
    yield ("title", row), axis._left_title, width * (max(right, box.x1) - box.x0) - gap
    yield ("title", row), axis._right_title, width * (box.x1 - min(left, box.x0)) - gap
    yield ("label", row), axis.xaxis.label, centred


@lru_cache(4096)
def text_width(text: str, size: float) -> float:
    """Inches that the longest line takes at this font size, a little more than without fitting letters to pixels."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=size)
    widths = (text_to_path.get_text_width_height_descent(line, font, False)[0] for line in text.split("\n") if line)
    return 1.05 * max(widths, default=0.0) / 72


def wrapped(text: str, inches: float, size: float) -> str:
    """The text in lines of at most this width: broken between words, and inside those that are too long."""
    lines: list[str] = []
    for line in text.split("\n"):
        lines.append("")
        for word in line.split(" "):
            joined = f"{lines[-1]} {word}" if lines[-1] else word
            if text_width(joined, size) <= inches:
                lines[-1] = joined
                continue
            if lines[-1]:
                lines.append("")
            for letter in word:
                if lines[-1] and text_width(lines[-1] + letter, size) > inches:
                    lines.append("")
                lines[-1] += letter
    return "\n".join(lines)


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


def legend(figure: Figure, handles: Sequence[Any], names: Sequence[str] | None = None, note: str = "") -> None:
    """The legend below all axes, in as many columns as fit, `note` in small print above it.

    names: of handles without a label of their own. The figure becomes higher by the rows after the first.
    """
    size, mark, width = 9, 0.6, figure.get_figwidth() - 0.2
    names = [wrapped(name, width - mark, size) for name in names or [handle.get_label() for handle in handles]]
    columns = max(1, min(len(names), int(width / (mark + max((text_width(name, size) for name in names), default=0)))))
    given: dict[str, Any] = {"handles": handles, "labels": names, "ncols": columns, "fontsize": size}
    if note:
        given |= {"title": wrapped(note, width, 8.5), "title_fontsize": 8.5, "alignment": "left"}
    figure.legend(**given, loc="outside lower left", frameon=False)
    rows = -(-len(names) // columns) - 1 + given.get("title", "").count("\n")
    figure.set_figheight(figure.get_figheight() + 0.21 * max(rows, 0))


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
    """ "1 pixel", "42 pixels", "4,610 pixels", "2.5 million pixels": three digits."""
    if count >= 1e6:
        return f"{count / 1e6:.3g} million pixels"
    digits = max(0, math.floor(math.log10(max(count, 1))) - 2)
    count = round(count / 10**digits) * 10**digits
    return f"{count:,} pixel{'' if count == 1 else 's'}"


def picture_bytes(figure: Figure) -> bytes:
    """The figure as PNG, packed as tightly as PNG can."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(_pixels(figure)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def animation_bytes(figures: Sequence[Figure], milliseconds: int) -> bytes:
    """An endless GIF of figures of one width; the last one stays three times as long.

    One palette for all frames, made of them all, so that nothing flickers.
    """
    from PIL import Image

    check_integer("milliseconds", milliseconds, low=20)
    if not figures:
        raise ValueError(complain("figures", "at least one", "none", "Record the layers."))
    frames = [_pixels(figure) for figure in figures]
    highest = max(len(frame) for frame in frames)
    frames = [np.pad(f, ((0, highest - len(f)), (0, 0), (0, 0)), constant_values=255) for f in frames]
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
        text.set_parse_math("\\mathdefault" in text.get_text())
