"""The graph of a GPU, recorded without one: its kernels exist, its inputs are safe."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import pytest
from nvidia.dali import types

from ichfast.loading.graph import DRAWN_FEEDS, SLICE_FEED, WINDOW_FEEDS
from ichfast.windows import parse_window
from tests.loading.recorded_graph import (
    WITHOUT_KERNEL,
    Operator,
    kernel_libraries,
    kernel_name,
    record_gpu_graph,
)

ALWAYS = ("target", "index", "matrix", "size")
LIGHTING = ("contrast", "brightness")
HOLES = ("corners", "sides")
HALVING = ("halves.0", "halved.0")
WINDOWS = (
    parse_window("brain"),
    parse_window("40/80/sigmoid"),
    parse_window("bone"),
)


def slab(depth: int) -> tuple[str, ...]:
    return tuple(f"{SLICE_FEED}.{k}" for k in range(depth))


def every_graph() -> Iterator[list[Operator]]:
    """Record the graph of each set of feeds."""
    choices = itertools.product(
        ((), LIGHTING),
        ((), HOLES),
        ((), WINDOW_FEEDS),
        ((), HALVING),
        (1, 3, 5),
        (WINDOWS[:1], WINDOWS),
    )
    for *chosen, depth, windows in choices:
        columns = (*ALWAYS, *itertools.chain(*chosen))
        yield record_gpu_graph(columns, slab(depth), windows)


def test_the_sets_of_feeds_hold_all_that_a_graph_may_read() -> None:
    assert {*LIGHTING, *HOLES} == DRAWN_FEEDS.keys()


@pytest.mark.slow
def test_every_operator_of_the_gpus_graph_has_its_kernel_in_dalis_libraries() -> None:
    needed = {
        kernel_name(operator): operator
        for graph in every_graph()
        for operator in graph
        if operator.device == "gpu" and operator.name not in WITHOUT_KERNEL
    }
    assert len(needed) > 12
    with kernel_libraries() as libraries:
        missing = {
            name: operator
            for name, operator in needed.items()
            if all(library.find(name.encode()) < 0 for library in libraries)
        }
        assert not missing
        # So that the search can fail: DALI erases no truth values.
        erase = next(each for each in needed.values() if each.name == "Erase")
        absent = kernel_name(replace(erase, output_type=types.BOOL))
        assert all(library.find(absent.encode()) < 0 for library in libraries)


def test_holes_are_cut_into_uint16_and_images_leave_as_float16() -> None:
    for windows in (WINDOWS[:1], WINDOWS):
        graph = record_gpu_graph((*ALWAYS, *HOLES), slab(1), windows)
        (erase,) = (each for each in graph if each.name == "Erase")
        assert erase.device == "gpu"
        assert erase.input_types == (types.UINT16,)
        images = [each for each in graph if each.output_type == types.FLOAT16]
        assert images[-1].name == "Reinterpret"


@pytest.mark.parametrize("uploaded", [False, True])
def test_only_slices_in_host_memory_are_read_in_place(*, uploaded: bool) -> None:
    """DALI would read slices on the GPU before torch has gathered them."""
    for depth in (1, 3):
        graph = record_gpu_graph(
            (*ALWAYS, *HOLES), slab(depth), WINDOWS, uploaded=uploaded
        )
        sources = [each for each in graph if each.name == "ExternalSource"]
        slices = [each for each in sources if each.output_type == types.UINT16]
        assert len(slices) == depth
        for each in slices:
            assert each.device == ("gpu" if uploaded else "cpu")
            assert each.options.get("no_copy", "False") == str(not uploaded)
        numbers = [each for each in sources if each not in slices]
        assert all("no_copy" not in each.options for each in numbers)
