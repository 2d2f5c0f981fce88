"""Synthetic heads are drawn beside real ones, and never into the repository."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from ichfast.synth.dataset import synthesize
from tests.docs import beside_real
from tests.docs.pages import ROOT


@pytest.mark.slow
def test_real_slices_are_above_and_synthetic_ones_below(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beside_real, "NUM_ROWS", 1)
    monkeypatch.setattr(beside_real, "NUM_COLUMNS", 3)
    real = synthesize(tmp_path / "real", num_slices=5, seed=9, quirks=False)
    assert beside_real.main(str(real.dicom_dir), str(tmp_path / "heads.png")) == 0
    with Image.open(tmp_path / "heads.png") as drawn:
        assert drawn.size == (3 * 256, 2 * 256)
        above, below = drawn.crop((0, 0, 768, 256)), drawn.crop((0, 256, 768, 512))
        assert above.getextrema() == below.getextrema() == (0, 255)
        assert above.tobytes() != below.tobytes()


def test_a_picture_of_patients_is_not_drawn_into_the_repository(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert beside_real.main(str(tmp_path), str(ROOT / "docs" / "heads.png")) == 1
    assert "shows patients; name a place outside" in capsys.readouterr().err
    assert not (ROOT / "docs" / "heads.png").exists()
