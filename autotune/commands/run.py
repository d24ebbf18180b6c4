"""`autotune run`: tune."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from .options import database_option, json_option, seconds, usage_errors, workload_options

if TYPE_CHECKING:
    from ..tune import TuneRequest


@click.command(short_help="Tune a model's kernels for a GPU and store the answers.")
@workload_options
@click.option(
    "--trials",
    type=click.IntRange(1),
    default=None,
    help="Configs to try per cell. [default: 16 estimated, 80 measured]",
)
@click.option(
    "--budget",
    metavar="TIME",
    callback=seconds,
    default=None,
    help="Time for the whole run, such as 10m; cells share it.",
)
@click.option(
    "--jobs",
    type=click.IntRange(1),
    default=None,
    help="Compile workers. [default: the CPUs of this machine]",
)
@click.option(
    "--timeout", metavar="TIME", callback=seconds, default="30s", show_default=True, help="Limit for one compile."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Same seed, same answer.")
@click.option("--resume/--no-resume", default=True, show_default=True, help="Take up the trials of earlier runs.")
@click.option("--estimate", is_flag=True, help="Estimate even where the GPU is present.")
@click.option("--space", "space_file", metavar="FILE", help="JSON file with more values for some parameters.")
@click.option("--dry-run", is_flag=True, help="Say what would be tuned and stop.")
@database_option
@json_option
def run(**options: Any) -> int:
    """Tune every kernel of a model for a GPU, batch size by batch size, and store the best configs.

    On a machine with that GPU candidates are measured. Elsewhere they are compiled ahead of time for it by Triton's own
    compiler, checked against the chip's limits and ranked by a static model; the answers are labelled `estimated`.
    A run that was stopped goes on where it was: every finished trial is in the database. The kernel vllm.fused_moe is
    vLLM's own: it needs vLLM in this environment, and the GPU.

    \b
    Examples:
      autotune run --arch gfx942 --model Qwen3-30B-A3B
      autotune run --arch gfx942 --device MI325X --model ./config.json --tp 2 --budget 10m
      autotune run --arch sm_90 --model Qwen3-32B --kernel linear --batch-sizes 1,8
      autotune run --model Qwen3-30B-A3B --kernel vllm.fused_moe
    """
    from ..report_run import print_dry_run, print_json, print_summary
    from ..tune import run_request

    request = _request(options)
    if options["dry_run"]:
        print_dry_run(request, as_json=options["as_json"])
        return 0
    progress = _progress(options["as_json"])
    with progress as shown:
        outcome = run_request(request, shown)
    if options["as_json"]:
        print_json(outcome)
    else:
        print_summary(outcome)
    if outcome.summary.was_interrupted:
        return 130
    return 1 if outcome.summary.cells_failed else 0


def _request(options: dict[str, Any]) -> TuneRequest:
    """The request of the command line. Raises a usage error for what it cannot mean."""
    from ..request import make_request

    with usage_errors(options["device"]):
        return make_request(
            options["model"],
            arch=options["arch"],
            device=options["device"],
            kernels=options["kernels"],
            batch_sizes=options["batch_sizes"],
            prefill_lengths=options["prefill_lengths"],
            context=options["context"],
            dtype=options["dtype"],
            tp=options["tp"],
            trials=options["trials"],
            budget_s=options["budget"],
            jobs=options["jobs"],
            timeout_s=options["timeout"],
            seed=options["seed"],
            resume=options["resume"],
            estimate=options["estimate"],
            space_file=options["space_file"],
            database=options["database"],
        )


def _progress(as_json: bool) -> Any:
    import contextlib

    from ..progress import PlainProgress, RichProgress

    if sys.stderr.isatty() and not as_json:
        return RichProgress()
    return contextlib.nullcontext(PlainProgress(sys.stderr))
