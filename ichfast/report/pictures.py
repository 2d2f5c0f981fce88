"""Pictures of slices: one slice, a contact sheet, a batch with augmentation.

Shape letters: B slices, H rows, W columns, S output size, C channels.
"""

from __future__ import annotations

import base64
import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from ichfast.augment.reference import square_view
from ichfast.errors import IchfastError
from ichfast.loading.config import pixel_aspects
from ichfast.store.store import Store
from ichfast.system.files import ADVICE, output_path
from ichfast.windows import HU_OFFSET, Window, apply_windows

Stored = npt.NDArray[np.uint16]

DPI = 160
"""Resolution of all figures, in pixels per inch."""

TITLE_CHARACTERS = 25
"""Characters of a title above each slice of a sheet."""

JPEG_QUALITY = 80
"""Quality of the pictures of the report, which are there to look at, not to read."""


def slice_view(
    store: Store, position: int, level: int, *, square_pixels: bool
) -> Stored:
    """A slice as a square, as a model sees it, with air beside it.

    Args:
        store: an open store.
        position: of the slice in the store.
        level: a level of the store.
        square_pixels: as in `loading.config.DataConfig`.

    Raises:
        StoreError: the slice cannot be read.
    """
    row = store.table.iloc[[position]]
    rows, columns = map(int, row[["rows", "columns"]].to_numpy()[0])
    aspect = float(pixel_aspects(row)[0]) if square_pixels else 1.0
    return square_view(store.slice_HW(position, level), (rows, columns), aspect)


def windowed_8bit(stored_HW: Stored, window: Window) -> npt.NDArray[np.uint8]:
    """Apply a display window to a slice: 0 is black, 255 is white.

    Args:
        stored_HW: as in the store, HU + 1024, shape (H, W), uint16.
        window: the display window.
    """
    hu_1HW = stored_HW[np.newaxis].astype(np.float32) - HU_OFFSET
    value_HW = apply_windows(hu_1HW, [window])[0, :, :, 0]
    grey_HW: npt.NDArray[np.uint8] = np.rint(value_HW * 255.0).astype(np.uint8)
    return grey_HW


def slice_jpeg(stored_HW: Stored, window: Window, *, max_side: int) -> bytes:
    """Draw a windowed slice as a grey JPEG, a quarter of the bytes of a PNG.

    Args:
        stored_HW: as in the store, HU + 1024, shape (H, W), uint16.
        window: the display window.
        max_side: larger slices are shrunk until no side exceeds this, in pixels.
    """
    picture = Image.fromarray(windowed_8bit(stored_HW, window))
    picture.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=JPEG_QUALITY, optimize=True)
    return buffer.getvalue()


def figure_png(figure: Figure) -> bytes:
    """Draw a figure as PNG, with `DPI` pixels per inch of its size."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def chart_png(figure: Figure) -> bytes:
    """Draw a chart as PNG with 128 colours, a third of the bytes of `figure_png`."""
    picture = Image.open(io.BytesIO(figure_png(figure))).convert("RGB")
    buffer = io.BytesIO()
    few_colors = picture.quantize(
        128, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE
    )
    few_colors.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def data_uri(kind: str, content: bytes) -> str:
    """Write a picture as a data URI.

    Args:
        kind: ``png`` or ``jpeg``.
        content: the bytes of the file.
    """
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def write_figure(out: Path, figure: Figure, advice: str = ADVICE) -> None:
    """Write a figure as PNG, and make its folder.

    Args:
        out: the PNG. Replaced if it exists, whole or not at all.
        figure: what `figure_png` draws.
        advice: end of the message if it cannot be written.

    Raises:
        IchfastError: the file cannot be written.
    """
    png = figure_png(figure)
    with output_path(out, IchfastError, advice) as temporary:
        temporary.write_bytes(png)


def contact_sheet(
    slices: Sequence[Stored], captions: Sequence[str], windows: Mapping[str, Window]
) -> Figure:
    """Draw slices side by side on black, with a row for each window.

    Args:
        slices: at least one, each (H, W) uint16 as stored. Shapes may differ.
        captions: text below each slice; a long one is cut in the middle.
        windows: at least one window by name, from top to bottom.
    """
    height = len(windows) * 1.6 + 0.4
    figure = Figure(figsize=(len(slices) * 1.6, height), facecolor="black")
    names = ", ".join(
        f"{name} {window.center:g}/{window.width:g}" for name, window in windows.items()
    )
    figure.suptitle(
        f"{names} (center/width, HU), from the top",
        color="#c0c6cc",
        fontsize=8,
        y=0.995,
    )
    cells = figure.subplots(
        len(windows),
        len(slices),
        squeeze=False,
        gridspec_kw={
            "left": 0.005,
            "right": 0.995,
            "bottom": 0.22 / height,
            "top": 1.0 - 0.2 / height,
            "wspace": 0.03,
            "hspace": 0.03,
        },
    )
    for column, (stored_HW, caption) in enumerate(zip(slices, captions, strict=True)):
        for axes, window in zip(cells[:, column], windows.values(), strict=True):
            axes.set_axis_off()
            axes.imshow(windowed_8bit(stored_HW, window), "gray", vmin=0, vmax=255)
        _caption(cells[-1, column], _shortened(caption))
    return figure


def augmentation_sheet(
    before_BSSC: npt.NDArray[np.floating],
    after_BSSC: npt.NDArray[np.floating],
    outlines_B42: npt.NDArray[np.floating],
    captions: Sequence[str],
    *,
    title: str,
) -> Figure:
    """Draw a batch before and after augmentation, one above the other.

    Args:
        before_BSSC: values in [0, 1], 1 channel (grey) or 3 (red, green, blue).
        after_BSSC: the same slices, augmented.
        outlines_B42: the corners of each slice after, as positions in the slice before:
            upper left, upper right, lower right, lower left; x and y in pixels.
        captions: text below each slice, of one or several lines.
        title: text above all slices.
    """
    num_slices = len(captions)
    lines = textwrap.wrap(title, TITLE_CHARACTERS * num_slices)
    figure = Figure(figsize=(num_slices * 1.7, 4.4), facecolor="black")
    cells = figure.subplots(
        2,
        num_slices,
        squeeze=False,
        gridspec_kw={"left": 0.005, "right": 0.995, "bottom": 0.195,
                     "top": 0.98 - 0.04 * len(lines), "wspace": 0.03, "hspace": 0.03},
    )  # fmt: skip
    figure.suptitle("\n".join(lines), color="#e4e8ec", fontsize=8, y=0.99)
    for column, caption in enumerate(captions):
        before, after = cells[:, column]
        _draw_channels(before, before_BSSC[column])
        _draw_channels(after, after_BSSC[column])
        _draw_outline(before, outlines_B42[column])
        _caption(after, caption)
    return figure


OUTLINE_COLOR = "#00e5ff"
"""Visible on grey, and on bone, which three windows make yellow."""


def _draw_outline(axes: Axes, corners_42: npt.NDArray[np.floating]) -> None:
    """Draw the edge of the slice after augmentation; the top is thick."""
    x_5, y_5 = np.append(corners_42, corners_42[:1], axis=0).T - 0.5
    axes.autoscale(enable=False)
    axes.plot(x_5, y_5, color=OUTLINE_COLOR, linewidth=0.7)
    axes.plot(x_5[:2], y_5[:2], color=OUTLINE_COLOR, linewidth=2.0)


def _draw_channels(axes: Axes, image_SSC: npt.NDArray[np.floating]) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color("#40464c")
    if image_SSC.shape[2] == 1:
        axes.imshow(image_SSC[..., 0], "gray", vmin=0, vmax=1)
    else:
        axes.imshow(np.clip(image_SSC, 0, 1))


def _caption(axes: Axes, text: str) -> None:
    axes.text(
        0.5,
        -0.02,
        text,
        transform=axes.transAxes,
        ha="center",
        va="top",
        color="#e4e8ec",
        fontsize=7,
        parse_math=False,
    )


def _shortened(caption: str, limit: int = 30) -> str:
    if len(caption) <= limit:
        return caption
    return f"{caption[: limit // 2]}...{caption[-limit // 2 :]}"
