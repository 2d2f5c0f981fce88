"""Labels from a folder of masks, which are matched to volumes by their names.

1. A mask has the path of its volume, below its own folder, or else the name of one
   volume. It may have one of `MASK_SUFFIXES` behind the name.
2. Labels are those of a table by slice id, and join a store as such.
3. Masks and volumes are read in a process with limits of memory and time, one pair at a
   time, before anything is converted.
4. Masks are no volumes: `FolderLabels.files` are left out of the sources.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ichfast.errors import LabelError, RejectError, first_line, unknown
from ichfast.labels import CLASS_NAMES, CLASSES, LabelTable
from ichfast.nifti.masks import read_mask
from ichfast.nifti.volume import SUFFIXES, volume_stem
from ichfast.sources.listing import Entry
from ichfast.sources.sources import list_entries, read_entries
from ichfast.system.limits import LimitedProcess, LimitError
from ichfast.system.terminal import progress

BHSD_CLASSES = CLASSES[1:]
"""Classes of the values 1 to 5 in the masks of BHSD."""

MASK_SUFFIXES = ("seg", "segmentation", "mask", "masks", "label", "labels", "gt")
"""What a mask may have behind the name of its volume, after ``_``, ``-`` or ``.``."""

PAIR_BYTES = 2**31
"""Upper limit of the memory for reading a mask and its volume, bytes. Each file has up
to 512 MiB, and as much when it is unpacked."""

PAIR_S = 120.0
"""Upper limit of the processor time for a mask and its volume, seconds."""

_MASK_NAME = re.compile(rf"(.+)[-_.](?:{'|'.join(MASK_SUFFIXES)})", re.IGNORECASE)
_CHANNEL = "_0000"
"""What nnU-Net has behind the name of a volume."""


@dataclass(frozen=True, slots=True)
class FolderLabels:
    """The labels of a folder of masks."""

    table: LabelTable
    files: tuple[Path, ...]
    """Files and folders that are no volumes."""


def read_masks(
    folder: Path, sources: Sequence[Path | str], classes: Sequence[str] = BHSD_CLASSES
) -> FolderLabels:
    """Read the labels of slices from masks.

    Args:
        folder: holds the masks, perhaps beside the volumes.
        sources: of the volumes, as for `prepare_store`.
        classes: the class of value 1, of value 2 and so on, of `CLASSES`: subtypes, or
            ``any`` alone.

    Raises:
        LabelError: no mask matches a volume, one matches several, or one cannot be
            read, has another shape or affine than its volume, or values beyond
            `classes`.
        SourceError: a source or the folder cannot be listed.
    """
    is_beside = _is_beside(folder, sources)
    masks = _by_name(list_entries([folder]))
    if is_beside:
        masks, _ = _split(masks)
    files = _paths(masks.values()) if is_beside else (folder,)
    volumes = _by_name(list_entries(sources, files))
    if is_beside:  # members of archives are not left out
        _, volumes = _split(volumes)
    if not masks:
        raise _no_masks(folder, is_beside=is_beside)
    if not volumes:
        raise LabelError(
            f"no volume for the masks in {folder}: no file of the sources ends in .nii "
            "or .nii.gz; name the folder or the archive of the volumes"
        )
    pairs = _match(volumes, masks, folder)
    labels_of = {}
    with (
        LimitedProcess(extra_bytes=PAIR_BYTES, timeout_s=PAIR_S) as process,
        progress("masks", len(pairs), "file") as bar,
    ):
        for volume, mask in pairs.items():
            labels_of[volume] = _read(process, masks[mask], volumes[volume], classes)
            bar.update(1)
    return FolderLabels(
        _table_of(labels_of, classes, len(volumes), len(masks) - len(pairs)), files
    )


def parse_classes(text: str) -> tuple[str, ...]:
    """Parse a list of classes, such as ``epidural,IPH``; the class of value 1 is first.

    Raises:
        LabelError: one is unknown, or ``any`` is not alone.
    """
    names = [name.strip().lower() for name in text.split(",")]
    for name in names:
        if name not in CLASS_NAMES:
            raise LabelError(unknown("class of a mask", name, CLASSES))
    classes = tuple(CLASS_NAMES[name] for name in names)
    if "any" in classes and classes != ("any",):
        raise LabelError(
            f"any is the class of every bleed, so it stands alone; found {text}"
        )
    return classes


def _is_beside(folder: Path, sources: Sequence[Path | str]) -> bool:
    """Whether the folder of masks is that of volumes, or holds it."""
    whole = folder.resolve()
    places = [Path(each).resolve() for each in sources if "://" not in str(each)]
    return any(whole == each or whole in each.parents for each in places)


def _by_name(entries: Iterable[Entry]) -> dict[str, Entry]:
    """The entries that are NIfTI by their suffix, by path without it."""
    return {
        volume_stem(entry.key): entry
        for entry in entries
        if entry.key.lower().endswith(SUFFIXES)
    }


def _split(
    entries: Mapping[str, Entry],
) -> tuple[dict[str, Entry], dict[str, Entry]]:
    """Masks and volumes of one folder, by their names."""
    masks = {n: each for n, each in entries.items() if _MASK_NAME.fullmatch(n)}
    return masks, {n: each for n, each in entries.items() if n not in masks}


def _paths(entries: Iterable[Entry]) -> tuple[Path, ...]:
    """The files of entries; an archive may also hold volumes."""
    return tuple(
        entry.container
        for entry in entries
        if isinstance(entry.container, Path) and entry.archive is None
    )


def _no_masks(folder: Path, *, is_beside: bool) -> LabelError:
    shown = ", ".join(f"_{each}" for each in MASK_SUFFIXES)
    behind = f" behind one of {shown}, since volumes are there too" if is_beside else ""
    return LabelError(
        f"no mask in {folder}: no file ends in .nii or .nii.gz{behind}; name the "
        "folder of the masks"
    )


def _match(
    volumes: Mapping[str, Entry], masks: Mapping[str, Entry], folder: Path
) -> dict[str, str]:
    """The name of the mask of each volume that has one."""
    by_path = {name.removesuffix(_CHANNEL): name for name in volumes}
    by_file = defaultdict(list)
    for path, name in by_path.items():
        by_file[_file(path)].append(name)
    pairs: dict[str, str] = {}
    for mask in masks:
        found = _volumes_of(mask, by_path, by_file)
        if len(found) > 1:
            raise _ambiguous(folder, found[0], found[1], f"the volume of {mask}")
        for volume in found:
            if volume in pairs:
                raise _ambiguous(folder, pairs[volume], mask, f"the mask of {volume}")
            pairs[volume] = mask
    if not pairs:
        raise LabelError(
            f"no mask in {folder} has the name of a volume: a mask is {min(masks)}, a "
            f"volume {min(volumes)}; name masks like their volumes, perhaps with _seg, "
            "_mask or -label behind (docs/labels.md)"
        )
    return pairs


def _volumes_of(
    mask: str, by_path: Mapping[str, str], by_file: Mapping[str, list[str]]
) -> list[str]:
    """The volumes with the path of a mask, or else with the name of its file."""
    plain = mask.removesuffix(_CHANNEL)
    found = _MASK_NAME.fullmatch(plain)
    for path in (plain, found[1].removesuffix(_CHANNEL)) if found else (plain,):
        if path in by_path:
            return [by_path[path]]
        if _file(path) in by_file:
            return by_file[_file(path)]
    return []


def _file(path: str) -> str:
    return path.rpartition("/")[2]


def _ambiguous(folder: Path, one: str, other: str, what: str) -> LabelError:
    return LabelError(
        f"masks in {folder}: by their names, {one} and {other} are both {what}; rename "
        "or move one, so that a mask has the path of its volume"
    )


def _read(
    process: LimitedProcess, mask: Entry, volume: Entry, classes: Sequence[str]
) -> npt.NDArray[np.float32]:
    """The labels of a volume's slices, shape (Z, 6)."""
    try:
        return process.call(_read_pair, mask, volume, tuple(classes))
    except (RejectError, LimitError, MemoryError, TimeoutError) as error:
        detail = error.detail if isinstance(error, RejectError) else first_line(error)
        raise LabelError(
            f"the mask {mask.key} of the volume {volume.key}: {detail}; correct the "
            "mask, or take it away (--mask-classes names the classes of its values)"
        ) from error


def _read_pair(
    mask: Entry, volume: Entry, classes: tuple[str, ...]
) -> npt.NDArray[np.float32]:
    contents = []
    for _, content in (*read_entries([mask]), *read_entries([volume])):
        if isinstance(content, RejectError):
            raise content
        contents.append(content)
    return read_mask(contents[0], contents[1], classes)


def _table_of(
    labels_of: Mapping[str, npt.NDArray[np.float32]],
    classes: Sequence[str],
    num_volumes: int,
    num_strangers: int,
) -> LabelTable:
    labels_NK = np.concatenate([labels_of[name] for name in labels_of])
    ids = [
        f"{name}/{index}"
        for name, labels_ZK in labels_of.items()
        for index in range(len(labels_ZK))
    ]
    num_positive = int((labels_NK == 1).any(axis=1).sum())
    return LabelTable(
        ids=np.array(ids, dtype=object),
        labels_NK=labels_NK,
        num_duplicates=0,
        level="slice",
        description=f"labels: {len(labels_of):,} masks of {num_volumes:,} volumes, "
        f"{len(ids):,} slices, {num_positive:,} with a bleed, classes "
        f"{', '.join(classes)}; masks without a volume: {num_strangers:,}",
    )
