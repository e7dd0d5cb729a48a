"""Imports PyTorch checkpoints into a pool of models: `python -m steph_jax.convert`, or
`convert_torch_ckpt.py` in a checkout."""

import argparse
import sys
from collections.abc import Sequence

from tqdm import tqdm

from steph_jax import cli, interrupts
from steph_jax.checkpoints import torch_folders, torch_import
from steph_jax.checkpoints.pool import Pool
from steph_jax.checkpoints.torch_import import ImportOptions, ImportResult
from steph_jax.files import check_output_folder
from steph_jax.models import steph
from steph_jax.models.hypernetworks import MIXINGS, WEIGHT_OUTPUTS
from steph_jax.models.task_vectors import PARTS


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = cli.Parser(
        prog="convert_torch_ckpt.py",
        description="Imports PyTorch checkpoints into a pool of models, without PyTorch.",
    )
    flags.add_argument(
        "sources_of_models",
        metavar="SRC",
        nargs="+",
        type=cli.path,
        help=f"a file ({', '.join(torch_folders.EXTENSIONS)}), or a directory tree as released",
    )
    flags.add_argument("--out", required=True, type=cli.path, help="directory of the pool")
    flags.add_argument("--name", help="name in the pool of a file whose own name does not give one")
    flags.add_argument(
        "--pooling",
        choices=("mean", "max"),
        help="of models without attention (default: the null model's, or mean)",
    )
    defaults = steph.Options()
    group = flags.add_argument_group("trained merged models", "what their files do not hold")
    group.add_argument(
        "--sources",
        type=lambda text: tuple(name.strip() for name in text.split(",")),
        default=(),
        help="names of the sources, in order, as a,b,c (default: source_0,source_1,...)",
    )
    group.add_argument("--dataset", default="unknown", help="the target (default: %(default)s)")
    group.add_argument("--fold", type=int, default=0, help="its fold (default: %(default)s)")
    group.add_argument(
        "--top-k",
        type=int,
        help=f"sources kept per slide, 0 for all (default: {defaults.top_k})",
    )
    group.add_argument(
        "--weight-output",
        choices=tuple(WEIGHT_OUTPUTS),
        help=f"output function of the weights (default: {defaults.weight_output})",
    )
    group.add_argument("--clamp", action="store_true", help="weights are clamped to [0, 1]")
    group.add_argument(
        "--mixing",
        choices=MIXINGS,
        help="where the ratios come from (default: as the file's tensors show; they leave open "
        "param and fix, then: param)",
    )
    group.add_argument(
        "--base",
        choices=("null", "target"),
        help=f"what the sum is added to (default: {defaults.base})",
    )
    group.add_argument(
        "--merged",
        choices=tuple(PARTS),
        help="tensors that are merged (default: as the file's tensors show; exports of our first "
        f"versions leave it open, then: {defaults.merged})",
    )
    return flags


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    return cli.guarded(lambda: run(parser().parse_args(argv)))


def run(arguments: argparse.Namespace) -> None:
    """Converts what the flags ask for.

    Raises:
        FileNotFoundError, ValueError: nothing to convert, or files that could not be; all of them
            are named once the others are done.
    """
    options = ImportOptions(
        sources=arguments.sources,
        top_k=arguments.top_k,
        weight_output=arguments.weight_output,
        clamp=arguments.clamp,
        base=arguments.base,
        mixing=arguments.mixing,
        merged=arguments.merged,
        dataset=arguments.dataset,
        fold=arguments.fold,
        pooling=arguments.pooling,
    )
    check_output_folder(arguments.out)
    files, skipped = torch_folders.find(arguments.sources_of_models, arguments.name)
    rejected = torch_import.rejected(skipped)
    pool = Pool(arguments.out)
    is_terminal = sys.stderr.isatty()
    with tqdm(total=len(files), unit="file", disable=not is_terminal) as bar:

        def report(result: ImportResult) -> None:
            for warning in result.warnings:
                bar.write(f"warning: {result.file}: {warning}", file=sys.stderr)
            bar.set_postfix_str(result.name)
            bar.update()
            if not is_terminal:
                print(f"{result.name}: {result.status}", flush=True)

        results = torch_import.convert_all(files, pool, options, report) + rejected
    print(table(results))
    counts = [
        f"{sum(result.status == status for result in results)} {status}" for status in _STATUSES
    ]
    print(f"{arguments.out}: {', '.join(counts)}")
    failed = [result.note for result in results if result.status == "failed"]
    if len(failed) == 1:
        raise ValueError(failed[0])
    if failed:
        raise ValueError(
            f"{len(failed)} of {len(results)} files could not be converted\n" + "\n".join(failed)
        )
    if not files:
        raise ValueError("\n".join(result.note for result in rejected))


_STATUSES = ("written", "replaced", "unchanged", "skipped", "failed")


def table(results: Sequence[ImportResult]) -> str:
    """The results, one a line."""
    rows = [(r.name, r.status, "see below" if r.status == "failed" else r.note) for r in results]
    widths = [max(len(row[i]) for row in (("model", "status", ""), *rows)) for i in range(2)]
    lines = [f"{'model':{widths[0]}}  {'status':{widths[1]}}  what it is"]
    lines += [f"{name:{widths[0]}}  {status:{widths[1]}}  {note}" for name, status, note in rows]
    return "\n".join(lines)


if __name__ == "__main__":
    interrupts.leave(main())
