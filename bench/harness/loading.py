"""The loader of ichfast, opened for the task that peers do too.

A module without imports of the networks, which take seconds: the processes of
`bench.harness.ranks` import it.
"""

from __future__ import annotations

from bench.peers.task import LoaderTask
from ichfast.loading.loader import DaliLoader, make_loader
from ichfast.store.store import Store
from ichfast.system.ranks import Ranks


def open_loader(
    store: Store, task: LoaderTask, *, rank: int = 0, world_size: int = 1
) -> DaliLoader:
    """Open the loader of ichfast for a task. Close it after use.

    Args:
        store: Holds the slices.
        task: What is loaded.
        rank: Index of this process.
        world_size: Number of processes.
    """
    return make_loader(
        store,
        task.positions_N,
        task.data,
        normalization=task.normalization,
        augment=task.augment,
        shuffle=True,
        ranks=Ranks(rank, world_size),
        device=task.device,
    )


def run_epoch(loader: DaliLoader) -> int:
    """Load an epoch; returns the slices."""
    return sum(batch.num_slices for batch in loader)
