"""The commands about training: recipes, preview, train.

A run that is stopped prints the command that continues it (`resume_command`).
"""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path

import click

from ichfast.cli.options import (
    CACHE,
    DEVICE,
    LIMIT,
    ONLY,
    STORE,
    OutputFile,
    number_or,
    print_result,
    print_status,
)
from ichfast.errors import InterruptionError

RECIPE = click.option("--recipe", help="Named settings.  [default: fast]")
SIZE = click.option(
    "--size", type=click.IntRange(min=32), help="Side of the model's input, in pixels."
)
SET = click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="NAME=VALUE",
    help="Change a setting, such as train.epochs=2, or the augmentation: "
    "augment=none|light|fastai|exp-10-mixup|exp-30. Repeatable.",
)


@click.command()
@click.argument("name", required=False)
def recipes(name: str | None) -> None:
    """List the recipes with the reference's results, or show one in full."""
    from ichfast.recipes.resolve import format_recipe, format_recipes

    click.echo(format_recipes() if name is None else format_recipe(name))


@click.command()
@click.argument("store", type=click.Path(path_type=Path))
@click.argument("out", metavar="OUT.png", type=OutputFile(".png"))
@RECIPE
@SIZE
@click.option(
    "--epoch",
    default=0,
    type=click.IntRange(min=0),
    help="Epoch to show; each draws other parameters.",
)
@SET
def preview(
    store: Path,
    out: Path,
    recipe: str | None,
    size: int | None,
    epoch: int,
    assignments: tuple[str, ...],
) -> None:
    """Draw slices of STORE before and after augmentation, to OUT.png.

    The pictures come from the same graph and parameters as in training. The
    parameters are written below each slice. The outline in the upper picture is what
    the lower one shows; its thick side is the top.
    """
    from ichfast.recipes.resolve import resolve_recipe
    from ichfast.report.preview import write_preview

    resolved = resolve_recipe(recipe, size=size, assignments=assignments)
    write_preview(store, resolved, out, epoch=epoch)
    print_result({"preview": str(out)})


@click.command()
@click.option(
    "--arch",
    help="Backbone: one that `ichfast recipes` lists, or timm:NAME for any of timm.",
)
@SIZE
@RECIPE
@click.option(
    "--fold",
    metavar="N|all",
    callback=number_or("all", minimum=0),
    help="The fold that validates. all: train a run for each fold, in OUT/fold-N.",
)
@STORE
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder of the run.  [default: runs/RECIPE[-ARCH-SIZE][-CHANGES][-limitN]"
    "[-foldN|-folds]; CHANGES are changed settings, such as train.seed=1, or a digest "
    "of more than two]",
)
@click.option("--resume", is_flag=True, help="Continue the run in --out.")
@click.option(
    "--pretrained", is_flag=True, help="Start from ImageNet weights, downloaded once."
)
@click.option(
    "--weights",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Start from the weights in this file: safetensors, a run's best.pt, or an "
    "mxresnet50 of fastai v1.",
)
@CACHE
@click.option(
    "--profile",
    is_flag=True,
    help="Write trace.json and profile.txt, which show where a step spends its time.",
)
@SET
@ONLY
@LIMIT
@DEVICE
def train(
    arch: str | None,
    size: int | None,
    recipe: str | None,
    fold: int | str | None,
    store: Path,
    out: Path | None,
    resume: bool,
    pretrained: bool,
    weights: Path | None,
    cache: str | None,
    profile: bool,
    assignments: tuple[str, ...],
    only: Path | None,
    limit: int | None,
    device: str,
) -> None:
    """Train a backbone on a store.

    The recipe `fast`, taken without --recipe, fits its settings to the arch, the size
    and the device. Ctrl-C, SIGTERM and a closed terminal (SIGHUP) save a checkpoint,
    end the run, and print the command that continues it. A killed run continues from
    its last checkpoint with --resume. One process at a time trains in a folder.

    \b
    On several GPUs (data.batch_size is for each GPU):
      torchrun --nproc-per-node gpu -m ichfast train --arch resnext50 --size 224

    \b
    Settings for --set, among others:
      folds.file=FILE              own folds: a csv of ids with a column fold
      train.accumulate=4           four batches to a step
      train.patience=3             end after three epochs without improvement
      train.best_by=valid_weighted_log_loss
      train.checkpoint_minutes=10  time between checkpoints within an epoch
      train.compile=true           torch.compile the network
      train.cuda_graphs=true       replay steps as CUDA graphs; GPU only
    """
    # Long, since it imports what only training needs.
    from ichfast.recipes.resolve import resolve_recipe
    from ichfast.recipes.settings import describe
    from ichfast.runs.crossvalidation import train_folds
    from ichfast.runs.device import choose_device
    from ichfast.runs.folder import default_run_dir
    from ichfast.runs.run import train_run
    from ichfast.system.ranks import join_ranks
    from ichfast.system.signals import stop_on_signal

    trains_all = fold == "all"
    options = {
        "model.weights": weights,
        "model.pretrained": "yes" if pretrained else None,
        "data.cache": cache,
        "folds.only": only,
    }
    given = [f"{name}={value}" for name, value in options.items() if value is not None]
    given += assignments
    if fold is not None and not trains_all:
        given.append(f"folds.fold={fold}")  # last, as folds.num_folds limits it
    with join_ranks(device) as ranks, stop_on_signal() as should_stop:
        if not ranks.writes:
            logging.getLogger().setLevel(logging.ERROR)
        chosen = choose_device(device)
        resolved = resolve_recipe(
            recipe,
            arch=arch,
            size=size,
            device_type=chosen.type,
            assignments=given,
        )
        if ranks.writes:
            print_status(describe(resolved))
        train_fold = partial(
            train_run,
            store,
            device=chosen,
            ranks=ranks,
            profile=profile,
            limit=limit,
            should_stop=should_stop,
        )
        out = out or default_run_dir(
            resolved, device_type=chosen.type, limit=limit, all_folds=trains_all
        )
        with saying_how_to_resume(is_first_rank=ranks.writes):
            report = (
                train_folds(resolved, out, train_fold, ranks=ranks, resume=resume)
                if trains_all
                else train_fold(resolved, out, resume=resume)
            )
    if ranks.writes:
        first = out / "fold-0" if trains_all else out
        print_status(f"next: ichfast report {first}")
        print_result(asdict(report))


@contextmanager
def saying_how_to_resume(*, is_first_rank: bool = True) -> Iterator[None]:
    """Add the command that continues to an interruption; other ranks end silently.

    Args:
        is_first_rank: whether this rank says it.

    Raises:
        InterruptionError: the block raised it.
    """
    try:
        yield
    except InterruptionError as error:
        if not is_first_rank:
            raise SystemExit(1) from error
        command = resume_command(sys.argv, os.environ)
        raise InterruptionError(f"{error}; continue with: {command}") from error


def resume_command(argv: Sequence[str], environ: Mapping[str, str]) -> str:
    """The command line that continues a run, ready to paste into a shell.

    Args:
        argv: `sys.argv` of the process that stopped.
        environ: its `os.environ`, which shows whether torchrun started it.

    Example:
        >>> resume_command(["/usr/bin/ichfast", "train", "--out", "my run"], {})
        "ichfast train --out 'my run' --resume"
    """
    program, *arguments = argv
    if "--resume" not in arguments:
        arguments.append("--resume")
    return shlex.join([*_launcher(Path(program), environ), *arguments])


def _launcher(program: Path, environ: Mapping[str, str]) -> list[str]:
    if "TORCHELASTIC_RUN_ID" not in environ:
        is_module = program.name == "__main__.py"
        return ["python", "-m", "ichfast"] if is_module else [program.name]
    launcher = ["torchrun", "--nproc-per-node", environ["LOCAL_WORLD_SIZE"]]
    num_nodes = int(environ["GROUP_WORLD_SIZE"])
    if num_nodes > 1:
        launcher += ["--nnodes", str(num_nodes), "--node-rank", environ["GROUP_RANK"]]
        launcher += ["--master-addr", environ["MASTER_ADDR"]]
        launcher += ["--master-port", environ["MASTER_PORT"]]
    return [*launcher, "-m", "ichfast"]
