"""Entries of a store are recognized by their place and by their name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ichfast.prepare.ingested import Intake
from ichfast.sources.listing import Listing
from ichfast.sources.walk import Found

FOUND = Found(Path("/a/heads.zip"), "", "1.dcm", "heads.zip/1.dcm", 7, 40)


def intake_of(*found: Found, key: bytes | None = None) -> Intake:
    return Intake.of(Listing.of([found]), np.zeros(len(found), np.int32), key)


@pytest.mark.parametrize(
    ("other", "same_name"),
    [
        (FOUND._replace(home=Path("/b/heads.zip")), True),
        (FOUND._replace(offset=41), True),
        (FOUND._replace(member="2.dcm", key="heads.zip/2.dcm"), False),
        (FOUND._replace(size=8), False),
    ],
    ids=["moved", "elsewhere in the archive", "renamed", "of another size"],
)
def test_a_file_is_new_wherever_it_differs(other: Found, *, same_name: bool) -> None:
    intake, changed = intake_of(FOUND), intake_of(other)
    assert intake.contains(Listing.of([[other, FOUND]]), None).sum() == 1
    assert intake.contains(Listing.of([[other]]), None).tolist() == [False]
    assert (intake.name_E == changed.name_E).all() == same_name


def test_names_cannot_be_tested_without_the_key() -> None:
    plain, keyed = intake_of(FOUND), intake_of(FOUND, key=b"secret")
    assert plain.name_E != keyed.name_E
    assert plain.place_E != keyed.place_E
    assert keyed.contains(Listing.of([[FOUND]]), b"secret").all()
    assert not keyed.contains(Listing.of([[FOUND]]), b"other").any()


def test_an_empty_intake_knows_nothing_and_begins_with_unit_0() -> None:
    empty = intake_of()
    assert (len(empty), empty.num_units) == (0, 0)
    assert not empty.contains(Listing.of([[FOUND]]), None).any()
    assert (empty + intake_of(FOUND)).num_units == 1
