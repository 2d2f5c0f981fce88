"""Windows map HU to [0, 1] as DICOM defines, and the table is the same map."""

from __future__ import annotations

import numpy as np
import pytest

from ichfast.errors import WindowError
from ichfast.windows import PRESETS, Window, apply_windows, parse_window, window_table


def test_a_linear_window_runs_from_black_to_white_over_its_width() -> None:
    hu_1HW = np.array([[[-1000, 0, 20, 40, 80, 3000]]])
    value_HWC = apply_windows(hu_1HW, [Window(center=40, width=80)])[0]
    np.testing.assert_allclose(value_HWC[0, :, 0], [0, 0, 0.25, 0.5, 1, 1])


def test_a_sigmoid_window_is_one_half_at_its_center_and_never_clips() -> None:
    window = Window(center=40, width=80, shape="sigmoid")
    hu_1HW = np.array([[[0, 40, 80]]])
    value = apply_windows(hu_1HW, [window])[0, 0, :, 0]
    expected = [1 / (1 + np.e**2), 0.5, 1 / (1 + np.e**-2)]
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_a_narrow_sigmoid_window_is_black_far_below_and_white_far_above() -> None:
    window = Window(center=32, width=1, shape="sigmoid")
    value = apply_windows(np.array([[[-1024, 31_743]]]), [window])[0, 0, :, 0]
    assert value.tolist() == [0.0, 1.0]


def test_windows_keep_their_order_as_channels() -> None:
    hu_1HW = np.full((1, 2, 3), 60)
    windows = [PRESETS["brain"], PRESETS["bone"]]
    value_BHWC = apply_windows(hu_1HW, windows)
    assert value_BHWC.shape == (1, 2, 3, 2)
    assert value_BHWC.dtype == np.float32
    np.testing.assert_allclose(value_BHWC[0, 0, 0], [0.75, 860 / 2800])


@pytest.mark.parametrize("name", PRESETS)
def test_the_table_is_the_window_of_every_stored_number(name: str) -> None:
    table_V = window_table(PRESETS[name], mean=0.2, std=0.5)
    stored_V = np.arange(65_536)
    value_V = apply_windows(stored_V[None, None] - 1024, [PRESETS[name]])[0, 0, :, 0]
    np.testing.assert_array_equal(
        table_V, (value_V - np.float32(0.2)) / np.float32(0.5)
    )


def test_a_window_can_be_written_as_center_and_width() -> None:
    assert parse_window("80/200") == PRESETS["subdural"]
    assert parse_window("40/80/sigmoid").shape == "sigmoid"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        *(("brian", "brian"), ("40", "40"), ("40/80/cubic", "cubic")),
        *(("40/0.5", "width 0.5"), ("40/nan", "width nan"), ("40/inf", "width inf")),
        *(("nan/80", "center nan"), ("-1e39/80", "center -1e.39")),
    ],
)
def test_a_text_that_is_no_window_is_refused(text: str, found: str) -> None:
    with pytest.raises(WindowError, match=found):
        parse_window(text)


def test_no_window_and_a_wrong_shape_are_refused() -> None:
    with pytest.raises(WindowError, match="at least one"):
        apply_windows(np.zeros((1, 2, 2)), [])
    with pytest.raises(WindowError, match=r"expected shape \(B, H, W\)"):
        apply_windows(np.zeros((2, 2)), [PRESETS["brain"]])
    with pytest.raises(WindowError, match="std"):
        window_table(PRESETS["brain"], mean=0.0, std=0.0)
