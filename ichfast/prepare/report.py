"""The report of a run of prepare."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ichfast.store.header import StoreHeader
from ichfast.store.tables import BAG_LABELS

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareReport:
    """The result of `prepare_store`. Counts are those of the whole store."""

    store: str
    """The store's folder."""
    slices: int
    series: int
    patients: int
    rejected: Mapping[str, int]
    """Number of rejected files for each code."""
    duplicates: int
    """Slices left out because an equal one came first."""
    labelled: int
    """Slices with all six labels; training and evaluation use these."""
    partly_labelled: int
    """Slices with some of the six labels."""
    known: Mapping[str, int]
    """Known labels by column: ``any``, ``study_any``, ``extra_fracture`` and so on.
    Those of series and studies count once for each."""
    positives: Mapping[str, int]
    """Labels 1 by column."""
    labels_without_slice: int
    """Labels of the file that are of nothing in the store."""
    slices_without_label: int
    """Slices with none of the six labels."""
    relabelled: int
    """Slices of which this run replaced a label."""
    bytes: int
    """Size of all shards."""
    files: int
    """Files read by this run, without those of runs that it continued."""
    seconds: float
    """Duration of this run."""
    files_per_s: float
    """Rate of this run."""
    already_finished: bool
    """Whether the run found nothing to do."""


def summarize(
    store: Path,
    header: StoreHeader,
    *,
    num_files: int,
    num_relabelled: int,
    seconds: float,
    already_finished: bool,
) -> PrepareReport:
    """Make the report of a run, and log it.

    Args:
        store: the store's folder.
        header: header of the finished store.
        num_files: files read by the run.
        num_relabelled: slices of which the run replaced a label.
        seconds: duration of the run.
        already_finished: whether there was nothing to do.
    """
    counts = header.counts
    report = PrepareReport(
        store=str(store),
        slices=counts["slices"],
        series=counts["series"],
        patients=counts["patients"],
        rejected=header.rejected,
        duplicates=counts["duplicates"],
        labelled=counts["labelled"],
        partly_labelled=counts["partly_labelled"],
        known=header.known,
        positives=header.positives,
        labels_without_slice=counts["labels_without_slice"],
        slices_without_label=counts["slices"]
        - counts["labelled"]
        - counts["partly_labelled"],
        relabelled=num_relabelled,
        bytes=header.num_bytes,
        files=num_files,
        seconds=seconds,
        files_per_s=num_files / seconds,
        already_finished=already_finished,
    )
    log.info("%s", format_report(report))
    return report


def _num_labelled(known: Mapping[str, int], bag: str) -> int:
    """Series, or studies, of which the class with the most labels is known."""
    return max((known.get(name, 0) for name in BAG_LABELS[bag]), default=0)


def format_report(report: PrepareReport) -> str:
    """Format a report as one line."""
    codes = ", ".join(f"{n:,} {code}" for code, n in sorted(report.rejected.items()))
    rejected = f"{sum(report.rejected.values()):,} files rejected"
    partly = f"{report.partly_labelled:,} partly labelled, "
    relabelled = f"labels replaced of {report.relabelled:,}, "
    bags = "".join(
        f"{num_known:,} {plural} labelled, "
        for bag, plural in (("series", "series"), ("study", "studies"))
        if (num_known := _num_labelled(report.known, bag))
    )
    kept = (
        f"{report.slices:,} slices of {report.series:,} series and "
        f"{report.patients:,} patients, {report.labelled:,} labelled, "
        f"{partly if report.partly_labelled else ''}"
        f"{bags}{relabelled if report.relabelled else ''}"
        f"{report.duplicates:,} duplicates, {report.bytes / 2**30:.2f} GiB, "
        + (f"{rejected} ({codes})" if codes else rejected)
    )
    if report.already_finished:
        return f"already finished: {kept}"
    return (
        f"finished: {kept}; {report.files:,} files in {report.seconds:.1f} s "
        f"({report.files_per_s:,.1f} files/s)"
    )
