"""Every stage and installed peer once at toy size, and the method with fake clocks."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import google_crc32c
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from bench.compare import compare
from bench.compare import main as compare_main
from bench.harness.estimates import estimate, ratio_of
from bench.harness.measure import BenchError, Contender, Meter, Record
from bench.harness.pagecache import drop_cache
from bench.harness.peak import watch_command
from bench.harness.ranks import Ranks
from bench.harness.records import read_records, write_records
from bench.harness.session import (
    SIZED_STAGES,
    STAGE_S,
    guess_time_left,
    make_workload,
    run_stage,
)
from bench.harness.table import format_table, summarize
from bench.harness.workload import Workload, check_space, choose_scratch
from bench.inputs.copies import write_copies
from bench.inputs.syntaxes import encode_in_syntaxes
from bench.limits.barest import BarestCopiers, copy_slices
from bench.peers import PEERS, parse_peers, reason_to_skip
from bench.plot import main as plot_main
from bench.scale import check_ranks
from bench.stages import STAGES
from bench.stages.loader import CopyAlone, gpu_copies, make_task, open_loader
from bench.stages.prepare import copy_folders
from bench.throughput import main as throughput_main
from ichfast.augment.config import AugmentConfig
from ichfast.augment.parameters import draw
from ichfast.dicom.slices import read_slices
from ichfast.loading.loader import make_loader
from ichfast.models.config import ARCHS
from ichfast.recipes.reference import exp_30
from ichfast.windows import parse_window

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Workload:
    """48 synthetic slices of 64 pixels, made when first asked for."""
    return Workload(
        cache_dir=tmp_path_factory.mktemp("cache"),
        scratch_dir=tmp_path_factory.mktemp("scratch"),
        num_files=48,
        file_size=64,
        size=32,
        batch_size=4,
        train_batch_size=4,
        peers=tuple(name for name in PEERS if PEERS[name].stage != "prepare"),
        num_loaded=16,
        num_steps=1,
        memory_files=(11,),
        store_slices=(7, 1100),
        opened_slices=1500,
    )


def fake_clock(durations: list[float]) -> Callable[[], float]:
    """A clock that lets each turn take the next of some durations, seconds."""

    def readings() -> Iterator[float]:
        now = 0.0
        for duration in durations:
            yield now
            now += duration
            yield now

    iterator = readings()
    return lambda: next(iterator)


def compare_two(durations: list[float], *, repeats: int, warmup: int) -> list[Record]:
    meter = Meter(
        device="cpu", repeats=repeats, warmup=warmup, clock=fake_clock(durations)
    )
    return meter.compare(
        [
            Contender(name="ours", role="ichfast", run=lambda: 12),
            Contender(name="theirs", role="peer", run=lambda: 6),
        ],
        stage="read",
        case="hot",
        unit="slices",
        cache="hot",
        settings={"size": 32},
    )


def test_a_rate_is_the_units_over_the_seconds_of_its_own_turns() -> None:
    ours, theirs = compare_two([1, 1, 2, 3, 4, 6], repeats=2, warmup=1)
    assert ours.values == (6.0, 3.0)
    assert theirs.values == (2.0, 1.0)
    assert ours.estimate is not None
    assert ours.estimate.median == 4.5


def test_a_ratio_is_taken_turn_by_turn_so_a_slow_machine_cancels_out() -> None:
    # The machine halves its speed with each turn; ours stays three times as fast.
    durations = [seconds * 2**turn for turn in range(6) for seconds in (2, 3)]
    ours, theirs = compare_two([*durations], repeats=6, warmup=0)
    assert theirs.ratio is not None
    assert (theirs.ratio.low, theirs.ratio.high) == (3.0, 3.0)
    assert ours.ratio is None
    assert ours.is_noisy
    assert theirs.is_noisy


def test_contenders_take_turns_and_what_comes_before_a_turn_is_not_timed() -> None:
    log: list[str] = []
    ticks = count()

    def contender(name: str) -> Contender:
        def before() -> None:
            next(ticks)
            log.append(f"before {name}")

        def run() -> int:
            log.append(name)
            return 1

        return Contender(name=name, role="ichfast", run=run, before=before)

    meter = Meter(device="cpu", repeats=2, warmup=0, clock=lambda: float(next(ticks)))
    records = meter.compare(
        [contender("A"), contender("B")],
        stage="read",
        case="hot",
        unit="slices",
        cache="hot",
        settings={},
    )
    assert log == ["before A", "A", "before B", "B"] * 2
    assert [record.values for record in records] == [(1.0, 1.0)] * 2


def test_what_a_contender_does_behind_its_turn_is_over_before_the_next() -> None:
    still_working: list[bool] = []
    threads: list[threading.Thread] = []

    def read_ahead() -> None:
        end_s = time.thread_time() + 0.2
        while time.thread_time() < end_s:
            pass

    def run_and_read_ahead() -> int:
        threads.append(threading.Thread(target=read_ahead))
        threads[-1].start()
        return 1

    def run() -> int:
        still_working.append(threads[-1].is_alive())
        return 1

    Meter(device="cpu", repeats=2, warmup=0).compare(
        [
            Contender(name="reads ahead", role="peer", run=run_and_read_ahead),
            Contender(name="next", role="ichfast", run=run),
        ],
        stage="read",
        case="hot",
        unit="slices",
        cache="hot",
        settings={},
    )
    assert still_working == [False, False]


def test_the_interval_of_six_turns_reaches_from_the_least_to_the_most() -> None:
    found = estimate([5.0, 1.0, 4.0, 2.0, 3.0, 6.0])
    assert (found.median, found.low, found.high) == (3.5, 1.0, 6.0)
    assert found.coverage == pytest.approx(1 - 2 / 64)


def test_the_interval_of_eleven_turns_leaves_out_the_extremes() -> None:
    found = estimate([float(k) for k in range(11)])
    assert (found.median, found.low, found.high) == (5.0, 1.0, 9.0)
    assert found.coverage == pytest.approx(1 - 2 * 12 / 2**11)


def test_the_interval_covers_the_true_median_as_often_as_it_says() -> None:
    drawn = np.random.default_rng(0).exponential(size=(2000, 6))
    found = [estimate(row) for row in drawn.tolist()]
    covered = np.mean([e.low <= np.log(2.0) <= e.high for e in found])
    assert covered == pytest.approx(found[0].coverage, abs=0.015)


def test_equal_turns_are_not_noisy_and_turns_that_differ_by_half_are() -> None:
    assert not estimate([10.0] * 6).is_noisy
    assert not estimate([10.0, 11.0, 12.0]).is_noisy
    assert estimate([10.0, 12.0, 15.0]).is_noisy


def test_a_ratio_needs_as_many_turns_on_both_sides() -> None:
    with pytest.raises(ValueError, match="zip"):
        ratio_of([1.0, 2.0], [1.0])


def test_records_come_back_from_their_file_as_they_were(tmp_path: Path) -> None:
    records = compare_two([1, 2, 3, 4], repeats=2, warmup=0)
    write_records(tmp_path / "new" / "a.jsonl", records)
    assert read_records(tmp_path / "new" / "a.jsonl") == [
        replace(record, settings=dict(record.settings)) for record in records
    ]


def test_a_record_names_its_conditions_and_neither_machine_nor_path() -> None:
    record = compare_two([1, 2, 3, 4], repeats=2, warmup=0)[0]
    assert record.commit
    assert record.date.endswith("Z")
    assert {"processor", "cores", "versions"} <= record.environment.keys()
    line = json.dumps(record.environment) + json.dumps(record.settings)
    assert str(Path.home()) not in line
    assert str(ROOT) not in line


def test_a_file_that_holds_no_records_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="no results in"):
        read_records(tmp_path / "absent.jsonl")
    for text, message in (("{}\n", "line 1 is no record"), ("", "holds no record")):
        (tmp_path / "bad.jsonl").write_text(text)
        with pytest.raises(BenchError, match=message):
            read_records(tmp_path / "bad.jsonl")


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_runs_and_compares_with_its_limit(
    stage: str, toy: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.stages.scale.PREPARE_TURNS", 1)
    meter = Meter(device="cpu", repeats=2, warmup=0)
    records = run_stage(stage, [toy], meter)
    assert {record.stage for record in records} == {stage}
    roles = {record.role for record in records if record.estimate}
    assert {"ichfast", "limit"} <= roles
    for record in records:
        assert (record.estimate is None) == bool(record.reason)
        assert record.role == "ichfast" or record.estimate is None or record.ratio
    if stage == "train":
        assert "timm-step" in {record.name for record in records}
    if stage == "scale":
        loader = run_stage("loader", [replace(toy, peers=())], meter)
        lines = check_ranks([*records, *loader], level=256, size=toy.size)
        assert [line.split(" predicted ")[0] for line in lines] == [
            *("1 rank(s):", "2 rank(s):")
        ]
    if stage == "prepare":
        limits = {record.name for record in records if record.role == "limit"}
        assert {"cp -r, sync", "barest copy, fsync"} <= limits
    if stage == "loader":
        named = {record.name for record in records}
        assert {"torchvision", "grid-sample", "fastai-png", "ffcv"} <= named
        without_gpu = {each.name for each in records if each.reason == "no GPU is used"}
        assert without_gpu == {"upload", "copy on the GPU"}
    table = format_table(records)
    assert all(record.name in table for record in records)
    assert summarize(records)["stages"].keys() == {stage}


def test_copies_move_a_batch_as_often_as_an_epoch_has_batches() -> None:
    batch_BHW = torch.arange(4 * 3 * 2, dtype=torch.int16).reshape(4, 3, 2)
    copied_BHW = torch.zeros_like(batch_BHW)
    assert CopyAlone(batch_BHW, copied_BHW, num_batches=5).run() == 5 * 4
    assert torch.equal(copied_BHW, batch_BHW)


def one_batch(workload: Workload) -> Workload:
    """The same, with no more slices to load than a batch has."""
    return replace(workload, num_loaded=workload.batch_size)


def test_a_gpu_is_held_to_copies_over_the_bus_and_on_the_gpu(
    toy: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without a GPU there is no pinned memory; what is copied where stays the same.
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    with toy.open_store() as store:
        copies = gpu_copies(store, make_task(store, 256, one_batch(toy)))
    assert [copy.name for copy in copies] == ["upload", "copy on the GPU"]
    assert {copy.role for copy in copies} == {"limit"}
    assert [copy.run() for copy in copies] == [4, 4]
    assert [copy.settings["unit_bytes"] for copy in copies] == [2 * 256**2] * 2


def test_a_cached_store_of_another_version_is_made_anew(tmp_path: Path) -> None:
    workload = Workload(
        cache_dir=tmp_path,
        scratch_dir=tmp_path,
        num_files=12,
        file_size=64,
        batch_size=2,
    )
    with workload.open_store() as store:
        header = store.path / "store.json"
    header.write_text("{}")
    with workload.open_store() as store:
        assert len(store) > 0


def test_copies_differ_in_their_ids_only_and_all_become_slices(tmp_path: Path) -> None:
    write_copies(tmp_path / "copies", 1003)
    files = sorted((tmp_path / "copies").rglob("*.dcm"))
    assert len(files) == 1003
    assert {file.parent.name for file in files} == {"00000", "00001"}
    read = [next(read_slices(file.read_bytes())) for file in (files[0], files[-1])]
    assert read[0].slice_id != read[1].slice_id
    np.testing.assert_array_equal(read[0].stored_HW, read[1].stored_HW)


def test_the_memory_of_a_command_is_that_of_its_largest_processes() -> None:
    nothing = "import time; time.sleep(0.2)"
    child = "import time; held = bytearray(60 << 20); time.sleep(0.3)"
    run = f"import subprocess, sys; subprocess.run([sys.executable, '-c', '{child}'])"
    small = watch_command([sys.executable, "-c", nothing], timeout_s=60)
    large = watch_command([sys.executable, "-c", run], timeout_s=60)
    assert small.worker_mib == 0.0
    assert 0.0 < small.parent_mib < 60.0 < large.worker_mib
    assert large.parent_mib < 60.0


def test_a_command_that_fails_or_never_ends_is_an_error_that_says_so() -> None:
    fails = [sys.executable, "-c", "raise SystemExit('no disk')"]
    with pytest.raises(BenchError, match="failed: no disk"):
        watch_command(fails, timeout_s=60)
    hangs = [sys.executable, "-c", "import time; time.sleep(600)"]
    with pytest.raises(BenchError, match=r"did not end in 0\.2 s"):
        watch_command(hangs, timeout_s=0.2)


def test_what_goes_wrong_in_a_rank_is_raised_by_who_asked(
    toy: Workload, tmp_path: Path
) -> None:
    with toy.open_store() as store:
        task = make_task(store, 512, toy)
    with pytest.raises(BenchError, match=r"rank 0 failed: .* is not a slice store"):
        Ranks(replace(task, store_path=tmp_path), [[0]], [1])


def test_the_barest_copy_holds_the_very_pixels_that_prepare_stores(
    toy: Workload, tmp_path: Path
) -> None:
    files = sorted((toy.heads_dir / "dicom").rglob("*.dcm"))
    slices = [next(read_slices(file.read_bytes())) for file in files]
    # The barest copy knows one intercept only.
    known = [k for k, one in enumerate(slices) if one.rescale_intercept == -1024]
    assert len(known) > len(files) / 2
    with BarestCopiers(2) as copiers:
        asked = [files[k] for k in known]
        out_dir = tmp_path / "copy"
        num_pixels = toy.file_size**2
        count = copiers.copy(asked, out_dir, num_pixels=num_pixels, flush=True)
    assert count == len(known)
    for process in range(2):
        stored = np.stack([slices[k].stored_HW for k in known[process::2]])
        assert (out_dir / str(process)).read_bytes() == stored.tobytes()
    assert copy_slices(asked, tmp_path / "all", num_pixels, flush=False) == int(
        google_crc32c.value(slices[known[-1]].stored_HW.tobytes())
    )


def test_peers_of_prepare_convert_every_file_they_are_given(
    toy: Workload, tmp_path: Path
) -> None:
    converters = import_module("bench.peers.converters").CONVERTERS
    file = min((toy.heads_dir / "dicom").rglob("*.dcm"))
    for name in ("pydicom-npy", "png-converter"):
        converters[name](file, tmp_path)
    with toy.open_store() as store:
        position = store.table["slice_id"].tolist().index(file.stem)
        stored_HW = store.slice_HW(position)
    hu_HW = np.load(tmp_path / f"{file.stem}.npy")
    np.testing.assert_array_equal(hu_HW.clip(-1024), stored_HW.astype(int) - 1024)
    assert (tmp_path / f"{file.stem}.png").stat().st_size > 0


def test_a_copy_that_fails_says_why_whichever_it_was(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    out_dir = tmp_path / "out"
    out_dir.mkdir()
    with pytest.raises(BenchError, match=r"failed \(cp: .*missing.*\); make room"):
        copy_folders([tmp_path / "missing", tmp_path / "there"], out_dir, 2)
    assert (out_dir / "there").is_dir()


def test_copies_that_take_too_long_are_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cp = tmp_path / "cp"
    cp.write_text(f"#!/bin/sh\necho $$ >> {tmp_path}/started\nexec /bin/sleep 60\n")
    cp.chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("bench.stages.prepare.COPY_TIMEOUT_S", 2)
    begun_s = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired):
        copy_folders([tmp_path / "a", tmp_path / "b"], tmp_path, 2)
    assert time.monotonic() - begun_s < 30
    started = (tmp_path / "started").read_text().split()
    assert len(started) == 2
    assert not any(Path(f"/proc/{process}").exists() for process in started)


def test_a_syntax_is_left_out_where_its_package_is_missing_and_for_nothing_else(
    toy: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = min((toy.heads_dir / "dicom").rglob("*.dcm")).read_bytes()
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    monkeypatch.setattr(
        "bench.inputs.syntaxes.get_encoder",
        lambda _: SimpleNamespace(available_plugins=()),
    )
    encoded, left_out = encode_in_syntaxes([content])
    assert all(name.endswith(("endian", "deflated")) for name in encoded)
    assert "ichfast[bench]" in left_out["HTJ2K"]
    assert "ichfast[decoders]" in left_out["JPEG-LS"]

    def fail(*_: Any) -> bytes:
        raise RuntimeError("the encoder's own")

    codecs = SimpleNamespace(ljpeg_encode=fail, htj2k_encode=fail)
    monkeypatch.setitem(sys.modules, "imagecodecs", codecs)
    with pytest.raises(RuntimeError, match="the encoder's own"):
        encode_in_syntaxes([content])


def test_files_written_in_other_syntaxes_hold_the_same_slice(toy: Workload) -> None:
    content = min((toy.heads_dir / "dicom").rglob("*.dcm")).read_bytes()
    (expected,) = read_slices(content)
    encoded, left_out = encode_in_syntaxes([content])
    assert encoded.keys() >= {"deflated", "RLE"}
    assert not encoded.keys() & left_out.keys()
    assert len(encoded) + len(left_out) == 8
    syntaxes = set()
    for contents in encoded.values():
        (found,) = read_slices(contents[0])
        np.testing.assert_array_equal(found.stored_HW, expected.stored_HW)
        syntaxes.add(found.transfer_syntax_uid)
    assert len(syntaxes) == len(encoded)


@pytest.mark.parametrize(
    "name",
    [n for n in PEERS if PEERS[n].stage == "loader" and not reason_to_skip(n)],
)
def test_a_loader_peer_gives_the_same_shape_type_and_number(
    name: str, toy: Workload
) -> None:
    with toy.open_store() as store:
        task = make_task(store, store.levels[0], one_batch(toy))
    peer = import_module(PEERS[name].module).make(task)
    for epoch in range(2):
        images = [batch.images_BCHW for batch in peer.epoch(epoch)]
        assert [tuple(b.shape) for b in images] == [(4, 1, 32, 32)]
        assert all(bool(b.isfinite().all()) for b in images)
    peer.close()


def test_dali_numpy_shows_the_slice_and_mirrors_and_cuts_when_told(
    toy: Workload,
) -> None:
    with toy.open_store() as store:
        task = make_task(store, 512, one_batch(replace(toy, size=64)))
        stored_BHW = np.stack([store.slice_HW(k) for k in task.positions_N.tolist()])
    value_BHW = ((stored_BHW.astype(float) - 1024) / 80).clip(0, 1)
    (mean,), (std,) = task.normalization.mean, task.normalization.std
    plain_BHW = (value_BHW - mean) / std
    # It shuffles, so slices are put in order by how much there is to see.
    plain_BHW = plain_BHW[np.argsort(plain_BHW.std(axis=(1, 2)))]

    def first_batch(augment: AugmentConfig) -> np.ndarray:
        peer = import_module("bench.peers.dali_numpy").make(
            replace(task, augment=augment)
        )
        images_BSS = (
            next(iter(peer.epoch(0))).images_BCHW[:, 0].numpy().astype(np.float64)
        )
        peer.close()
        return np.asarray(images_BSS[np.argsort(images_BSS.std(axis=(1, 2)))])

    assert task.window == parse_window("brain")
    np.testing.assert_allclose(first_batch(AugmentConfig()), plain_BHW, atol=4e-3)
    mirrored_BHW = first_batch(AugmentConfig(flip_probability=1.0))
    np.testing.assert_allclose(mirrored_BHW, plain_BHW[..., ::-1], atol=4e-3)
    turned_BHW = first_batch(
        AugmentConfig(affine_probability=1.0, max_rotation_deg=30.0)
    )
    middle = np.s_[:, 31:33, 31:33]
    gap_BHW = abs(turned_BHW - plain_BHW)
    assert gap_BHW[middle].mean() < gap_BHW.mean()  # it turns about the centre
    black = float(np.float16(-mean / std))
    num_black = [
        (first_batch(AugmentConfig(cutout_probability=chance)) == black).sum()
        for chance in (0.0, 1.0)
    ]
    assert num_black[1] > num_black[0] + 4 * 4 * 2 * 2


@pytest.mark.parametrize("level", [512, 256])
def test_grid_sample_gives_the_very_images_ichfast_gives(
    level: int, toy: Workload
) -> None:
    with toy.open_store() as store:
        task = make_task(store, level, replace(toy, size=64))
        peer = import_module("bench.peers.grid_sample").make(task)
        config = replace(exp_30().data, size=64, level=level, batch_size=4)
        with make_loader(
            store,
            task.positions_N,
            config,
            normalization=task.normalization,
            augment=task.augment,
            shuffle=True,
        ) as loader:
            for batch in loader.epoch(0):
                theirs_BCHW = peer.images(batch.indices_B.numpy(), 0).float()
                gap_BCHW = (batch.images_BCHW.float() - theirs_BCHW).abs()
                # Windowed values span 4.4; noise makes single pixels differ more.
                assert gap_BCHW.mean() < 0.05
        peer.close()


@pytest.mark.parametrize("size", [32, 64])  # of 64: halved once, and not at all
def test_ffcv_gives_the_very_images_that_ichfast_and_grid_sample_give(
    size: int, toy: Workload
) -> None:
    if reason := reason_to_skip("ffcv"):
        pytest.skip(reason)
    with toy.open_store() as store:
        task = make_task(store, 512, replace(toy, size=size))
        peer = import_module("bench.peers.ffcv_arrays").make(task)
        with open_loader(store, task) as loader:
            ours, theirs = next(loader.epoch(1)), next(peer.epoch(1))
    peer.close()
    assert theirs.indices_B.tolist() == ours.indices_B.tolist()
    gap_BCHW = (theirs.images_BCHW.float() - ours.images_BCHW.float()).abs()
    # Windowed values span 4.4. A place read between two numbers may round either way.
    assert gap_BCHW.max() < 0.1
    assert gap_BCHW.mean() < 1e-3
    other = import_module("bench.peers.grid_sample").make(task)
    expected_BCHW = other.images(theirs.indices_B.numpy(), 1).float()
    other.close()
    gap_BCHW = (theirs.images_BCHW.float() - expected_BCHW).abs()
    # It rounds to a stored number when it halves and when it resamples; this does not.
    assert gap_BCHW.max() < 0.2
    assert gap_BCHW.mean() < 0.02


@pytest.mark.parametrize("level", [512, 256])
def test_monai_gives_the_very_images_that_grid_sample_gives(
    level: int, toy: Workload
) -> None:
    if reason := reason_to_skip("monai"):
        pytest.skip(reason)
    with toy.open_store() as store:
        task = make_task(store, level, replace(toy, size=64))
        stored_BHW = np.stack(
            [store.slice_HW(k, level) for k in task.positions_N.tolist()]
        )
    transform = import_module("bench.peers.monai_arrays").MonaiTransform(task)
    peer = import_module("bench.peers.grid_sample").make(task)
    expected_B1SS = peer.images(task.positions_N, 0).float()
    peer.close()
    for stored_HW, position, expected_1SS in zip(
        stored_BHW, task.positions_N, expected_B1SS, strict=True
    ):
        drawn = draw(
            task.augment,
            seed=0,
            epoch=0,
            slices_B=np.array([position]),
            source_shape_B2=np.array([[64.0, 64.0]]),
            size=64,
        )
        gap_1SS = (transform.show(stored_HW, drawn).float() - expected_1SS).abs()
        # Windowed values span 4.4; float32 sees a place between pixels in two ways.
        assert gap_1SS.max() < 0.02


def record_of(name: str, rates: list[float], *, role: str = "ichfast") -> Record:
    return Record(
        date="2026-01-01T00:00Z",
        commit="abc",
        stage="read",
        case="hot",
        name=name,
        role=role,
        unit="slices/s",
        device="cpu",
        cache="hot",
        settings={},
        values=tuple(rates),
        estimate=estimate(rates),
        environment={"processor": "P", "cores": 2, "gpus": []},
    )


def test_slower_is_what_lies_below_all_that_was_there_before() -> None:
    before = [record_of(name, [10.0, 11.0, 12.0]) for name in ("a", "b", "c")]
    after = [
        record_of("a", [8.0, 9.0, 9.5]),
        record_of("b", [9.0, 10.5, 11.0]),
        record_of("c", [13.0, 14.0, 15.0]),
    ]
    verdicts = [change.verdict for change in compare(before, after)]
    assert verdicts == ["slower", "same", "faster"]


def test_of_seconds_and_mebibytes_more_is_slower() -> None:
    before = replace(record_of("a", [10.0, 11.0]), unit="MiB")
    after = replace(record_of("a", [14.0, 15.0]), unit="MiB")
    assert [change.verdict for change in compare([before], [after])] == ["slower"]
    assert [change.verdict for change in compare([after], [before])] == ["faster"]


def test_a_noted_cost_has_its_own_unit_and_says_how_few_turns_it_had() -> None:
    record = Meter(device="cpu", repeats=6).note(
        [300.0, 310.0, 305.0],
        stage="scale",
        case="memory",
        name="worker",
        unit="MiB",
        cache="hot",
        settings={"aim": 1024.0},
    )
    assert record.estimate is not None
    assert (record.estimate.median, record.unit) == (305.0, "MiB")
    assert not record.more_is_better
    table = format_table([record])
    assert "305 MiB" in table
    assert "3 turns, fewer than 95 % takes, aim: under 1,024 MiB" in table


def test_compare_fails_if_ours_became_slower_and_not_if_a_peer_did(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fast, slow = [10.0, 11.0], [5.0, 6.0]
    for role, status in (("ichfast", 1), ("peer", 0)):
        paths = [tmp_path / f"{role}-{k}.jsonl" for k in range(2)]
        for path, rates in zip(paths, (fast, slow), strict=True):
            write_records(path, [record_of("x", rates, role=role)])
        assert compare_main([str(path) for path in paths]) == status
        assert "slower" in capsys.readouterr().out


def test_compare_names_the_file_that_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare_main([str(tmp_path / "absent"), str(tmp_path / "absent")]) == 2
    assert capsys.readouterr().err.startswith("Error: no results in")
    assert compare_main([]) == 2


def test_compare_warns_of_another_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = record_of("x", [1.0, 2.0])
    write_records(tmp_path / "a", [ours])
    other = {"processor": "Q", "cores": 2, "gpus": []}
    write_records(tmp_path / "b", [replace(ours, environment=other)])
    assert compare_main([str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert "not the same machine" in capsys.readouterr().err


def test_the_figure_shows_what_was_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_records(tmp_path / "a.jsonl", [record_of("x", [1.0, 2.0])])
    assert plot_main([str(tmp_path / "a.jsonl")]) == 0
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    nothing = replace(record_of("x", [1.0]), estimate=None, reason="no GPU")
    write_records(tmp_path / "b.jsonl", [nothing])
    assert plot_main([str(tmp_path / "b.jsonl")]) == 1
    assert "nothing was measured" in capsys.readouterr().err


def test_a_file_out_of_the_page_cache_is_noticed_and_so_is_one_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(bytes(2**20))
    monkeypatch.setattr("bench.harness.pagecache._is_cached", lambda *_: True)
    assert "does not let go" in drop_cache([tmp_path / "file"])
    monkeypatch.setattr("bench.harness.pagecache._is_cached", lambda *_: False)
    assert drop_cache([tmp_path / "file"]) == ""


def test_too_little_disk_space_is_said_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="GiB left, the benchmark needs"):
        check_space(tmp_path, 2**60)
    with pytest.raises(BenchError, match="make room"):
        choose_scratch(tmp_path, 2**60)
    (tmp_path / "file").touch()
    with pytest.raises(BenchError, match="cannot write"):
        check_space(tmp_path / "file" / "folder", 1)


def test_a_store_with_less_than_two_batches_is_too_small(
    tiny_store_path: Path, toy: Workload
) -> None:
    small = replace(toy, store=tiny_store_path, batch_size=16)
    with pytest.raises(BenchError, match="is too small: it has 23 slices of one shape"):
        small.open_store()
    replace(small, batch_size=11).open_store().close()


def test_the_short_form_fits_the_cores_and_full_does_not_need_more_disk_than_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_store_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(2)))
    workload = make_workload(
        store=tiny_store_path,
        archs=("resnext50",),
        size=None,
        batch_size=4,
        device="cpu",
        peers=(),
        full=False,
    )
    assert (workload.num_files, workload.size) == (2048, 224)
    assert workload.cache_dir.is_relative_to(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reed"], "unknown stage 'reed'; choose of prepare, read"),
        (["--stage", "reed"], "unknown stage 'reed'; choose of prepare, read"),
        (["--peers", "tensorflow"], "unknown peer 'tensorflow'; --peers takes all"),
        (["--peers", "ffcv,"], "unknown peer ''"),
        (["--arch", "vgg"], "vgg"),
        (["read", "--store", "nowhere"], "nowhere is not a slice store"),
        (["read", "--store", "TINY", "--batch-size", "16"], "is too small: it has 23"),
        (["read", "--json", "nowhere/out.json"], "nowhere is no folder"),
    ],
)
def test_bad_input_is_one_line_that_says_what_to_do(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    tiny_store_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    typed = [str(tiny_store_path) if word == "TINY" else word for word in arguments]
    done = CliRunner().invoke(throughput_main, typed)
    assert done.exit_code in (1, 2)
    error = [line for line in done.stderr.splitlines() if "device: cpu" not in line]
    assert len(error) == 1, done.stderr
    assert error[0].startswith("Error: ")
    assert message in error[0]
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("resource", "message"),
    [
        ("shutil.disk_usage", "GiB left, the benchmark needs "),
        (
            "bench.harness.workload.available_memory",
            "GiB of memory are free, making the",
        ),
    ],
)
def test_a_set_that_does_not_fit_is_refused_before_it_is_made(
    resource: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    free = {"shutil.disk_usage": lambda _: SimpleNamespace(free=1 << 20)}
    monkeypatch.setattr(resource, free.get(resource, lambda: 1 << 20))
    monkeypatch.setattr("bench.harness.workload.synthesize", None)
    done = CliRunner().invoke(throughput_main, ["prepare", "--device", "cpu"])
    assert done.exit_code == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1, done.stderr
    assert message in errors[0]
    assert not list(tmp_path.rglob("*.dcm"))


@pytest.fixture
def noted_stages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """Stages record without measuring; gives what each was asked for."""
    asked: list[Any] = []

    def run(stage: str, workloads: list[Workload], meter: Meter) -> None:
        asked.append((stage, workloads[0], meter, tuple(w.size for w in workloads)))
        meter.on_record(replace(record_of(f"my {stage}", [1.0, 2.0]), stage=stage))

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("bench.harness.session.run_stage", run)
    monkeypatch.setattr("bench.harness.session.RESULTS_DIR", tmp_path / "results")
    return asked


def test_make_bench_measures_every_stage_in_its_short_form_and_records_nothing(
    noted_stages: list[Any], tmp_path: Path
) -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert "\t$(BIN)/python bench/throughput.py\n" in makefile
    done = CliRunner().invoke(throughput_main, ["--device", "cpu"])
    assert done.exit_code == 0, done.stderr
    assert [stage for stage, *_ in noted_stages] == list(STAGES)
    _, workload, meter, sizes = noted_stages[0]
    assert (meter.repeats, sizes, workload.archs) == (6, (224,), ("efficientnet-b0",))
    assert not (tmp_path / "results").exists()
    assert all(f"my {stage}" in done.stdout for stage in STAGES)


def test_full_takes_all_networks_both_sizes_and_more_turns(
    noted_stages: list[Any], tmp_path: Path
) -> None:
    arguments = ["--stage", "train", "--full", "--record", "--device", "cpu"]
    arguments += ["--json", str(tmp_path / "out.json")]
    done = CliRunner().invoke(throughput_main, arguments)
    assert done.exit_code == 0, done.stderr
    ((stage, workload, meter, sizes),) = noted_stages
    assert (stage, meter.repeats, sizes) == ("train", 6, (224, 512))
    assert workload.ranks == (1, 2, 4, 8)
    assert workload.archs == tuple(ARCHS)
    assert workload.memory_files == (1_000, 100_000)
    (recorded,) = (tmp_path / "results").glob("*.jsonl")
    assert [record.name for record in read_records(recorded)] == ["my train"]
    assert (tmp_path / "results" / "throughput.png").is_file()
    document = json.loads((tmp_path / "out.json").read_text())
    assert [record["name"] for record in document["all"]] == ["my train"]


def test_an_interrupted_benchmark_keeps_what_it_measured_and_says_where(
    noted_stages: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(stage: str, _: list[Workload], meter: Meter) -> None:
        meter.on_record(replace(record_of(f"my {stage}", [1.0, 2.0]), stage=stage))
        if stage == "loader":
            raise KeyboardInterrupt

    monkeypatch.setattr("bench.harness.session.run_stage", run)
    done = CliRunner().invoke(throughput_main, ["--device", "cpu"])
    assert done.exit_code == 1
    (kept,) = (tmp_path / "cache").rglob("*.jsonl")
    assert [record.stage for record in read_records(kept)] == [
        *("prepare", "read", "loader")
    ]
    assert f"interrupted; 3 records are in {kept}" in done.stderr
    assert noted_stages == []


def test_the_time_left_follows_the_pace_of_the_stages_before(toy: Workload) -> None:
    stages = ("prepare", "read", "scale")
    expected_s = [STAGE_S[stage] for stage in stages]
    assert guess_time_left(stages, 0, [toy], 0.0) == sum(expected_s)
    twice_as_slow = guess_time_left(stages, 2, [toy], 2 * sum(expected_s[:2]))
    assert twice_as_slow == 2 * expected_s[2]
    assert guess_time_left(("train",), 0, [toy, toy], 0.0) == 2 * STAGE_S["train"]


class ReadyRanks:
    """Ranks that load 12 slices each, at once."""

    def __init__(self, *_: object) -> None:
        """Starts nothing."""

    def __enter__(self) -> ReadyRanks:
        return self

    def __exit__(self, *_: object) -> None:
        """Ends nothing."""

    def run_epoch(self, world_size: int) -> int:
        return 12 * world_size


def test_ranks_that_share_cores_say_so_and_add_up(
    toy: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in ("prepare", "opening", "slices"):
        monkeypatch.setattr(f"bench.stages.scale._measure_{part}", lambda *_: [])
    monkeypatch.setattr("bench.stages.scale.Ranks", ReadyRanks)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    meter = Meter(device="cpu", repeats=2, warmup=0, clock=fake_clock([1] * 8))
    records = run_stage("scale", [replace(toy, ranks=(1, 2, 4, 8))], meter)
    assert {record.name: record.values for record in records} == {
        "alone": (12.0, 12.0),
        "each of 2 ranks": (12.0, 12.0),
        "each of 4 ranks, 2 at a time": (12.0, 12.0),
        "each of 8 ranks, 2 at a time": (12.0, 12.0),
        "all of 2 ranks": (24.0, 24.0),
        "all of 4 ranks, 2 at a time": (48.0, 48.0),
        "all of 8 ranks, 2 at a time": (96.0, 96.0),
    }


def test_a_sized_stage_runs_at_each_size(toy: Workload) -> None:
    meter = Meter(device="cpu", repeats=1, warmup=0)
    alone = replace(toy, peers=())
    records = run_stage("loader", [alone, replace(alone, size=48)], meter)
    cases = {record.case for record in records}
    assert {"level 512 to 32", "level 512 to 48"} <= cases


def test_what_a_gpu_machine_runs_goes_through_at_toy_size_without_one(
    tiny_store_path: Path, tmp_path: Path
) -> None:
    out_dir = tmp_path / "out"
    done = subprocess.run(
        [
            *(ROOT / "bench" / "on_gpu.sh", out_dir),
            *("read", "--device", "cpu", "--store", tiny_store_path),
            *("--batch-size", "4", "--size", "32", "--peers", "none"),
        ],
        capture_output=True,
        text=True,
        env={
            "XDG_CACHE_HOME": str(tmp_path),
            "PATH": "/usr/bin:/bin",
            "PYTHON": sys.executable,
        },
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" in (out_dir / "tests.txt").read_text()
    assert "memcpy" in (out_dir / "bench.txt").read_text()
    assert json.loads((out_dir / "bench.json").read_text())["stages"].keys() == {"read"}
    assert len(read_records(next(out_dir.glob("*.jsonl")))) >= 3


def test_peers_are_chosen_by_name() -> None:
    assert parse_peers("all") == tuple(PEERS)
    assert parse_peers("none") == ()
    assert parse_peers("torchvision, ffcv") == ("torchvision", "ffcv")
    unheard_of = replace(PEERS["ffcv"], packages=("torch", "no_such_package"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PEERS, "ffcv", unheard_of)
        assert reason_to_skip("ffcv") == (
            "no_such_package is not installed; it has no wheel, and bench/README.md "
            "says how to build it"
        )
    assert not reason_to_skip("grid-sample")


def test_peers_without_a_name_are_all_of_them(noted_stages: list[Any]) -> None:
    for typed in (["loader"], ["loader", "--peers"], ["--peers", "all", "loader"]):
        done = CliRunner().invoke(throughput_main, [*typed, "--device", "cpu"])
        assert done.exit_code == 0, done.stderr
    stages, workloads, *_ = zip(*noted_stages, strict=True)
    assert stages == ("loader",) * 3
    assert [workload.peers for workload in workloads] == [tuple(PEERS)] * 3


def test_the_command_prints_a_table_and_one_json_line_last(
    tiny_store_path: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [
            *(sys.executable, ROOT / "bench" / "throughput.py", "read"),
            *("--store", tiny_store_path, "--batch-size", "4"),
            *("--json", tmp_path / "out.json"),
        ],
        capture_output=True,
        text=True,
        env={"XDG_CACHE_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    *table, last = done.stdout.splitlines()
    assert "memcpy" in "\n".join(table)
    summary = json.loads(last)
    assert summary["stages"]["read"]["hot"]["ichfast"]["median"] > 0
    assert read_records(Path(summary["records"]))
    assert Path(summary["figure"]).is_file()
    assert len(json.loads((tmp_path / "out.json").read_text())["all"]) >= 3


def test_only_the_stages_with_a_model_input_repeat_for_each_size() -> None:
    assert set(SIZED_STAGES) < set(STAGES)


def test_estimates_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="no values"):
        estimate([])
