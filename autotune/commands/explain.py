"""`autotune explain`: which config a problem gets, from which row, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .options import database_option, database_path_of, json_option, shipped_paths

if TYPE_CHECKING:
    from ...cache.answer import Explanation
    from ...search_spaces.arch import Device
    from ...search_spaces.config import Config
    from ...search_spaces.problem import Problem


@click.command(short_help="Explain which config a problem gets, and why.")
@click.option("--arch", required=True, help="GPU: gfx942, sm_90, MI325X, ...")
@click.option("--device", help="Product where an architecture has several.")
@click.option("--model", required=True, help="Built-in name, path of a config.json or its folder, or a hub id.")
@click.option("--kernel", required=True, help="The kernel, e.g. moe_gate_up.")
@click.option(
    "--batch",
    type=click.IntRange(1),
    required=True,
    help="Tokens of a forward pass; any number, tuned or not.",
)
@click.option("--prefill", is_flag=True, help="The batch is a prompt length.")
@click.option(
    "--context",
    type=click.IntRange(1),
    default=4096,
    show_default=True,
    help="Cached tokens per sequence in decode.",
)
@click.option("--dtype", default="bf16", show_default=True, help="Element type.")
@click.option("--tp", type=click.IntRange(1), default=1, show_default=True, help="Tensor-parallel degree.")
@database_option
@json_option
def explain(
    arch: str, device: str | None, model: str, kernel: str, batch: int, prefill: bool, context: int, dtype: str,
    tp: int, database: str | None, as_json: bool,
) -> int:  # fmt: skip
    """Explain which config a problem gets: the row that answers, what was rejected and which key field differed, what
    the search space forbids, and how the static model sees the config.

    \b
    Example:
      autotune explain --arch gfx942 --model Qwen3-30B-A3B --kernel moe_gate_up --batch 12
    """
    import logging

    from ...cache.lookup import Lookup
    from ...kernels_triton.registry import spec_of
    from ...search_spaces.config import Config
    from ...search_spaces.model_spec import ModelError
    from ...search_spaces.workload import WorkloadError, problems
    from ..environment import running_environment
    from ..run import cell_of
    from .options import device_of, model_of

    target = device_of(arch, device)
    try:
        items = problems(
            model_of(model), batch_sizes=() if prefill else (batch,), prefill_lengths=(batch,) if prefill else (),
            dtype=dtype, tp=tp, context=context, kernels=(kernel,),
        )  # fmt: skip
    except (WorkloadError, ModelError) as error:
        raise click.UsageError(str(error)) from None
    logging.getLogger("paiton").addHandler(logging.NullHandler())  # what the lookup would log is printed here
    with Lookup.open(database_path_of(database), shipped=shipped_paths(), running=running_environment()) as lookup:
        for line in lookup.skipped:
            click.echo(f"left out: {line}", err=True)
        for item in items:
            spec = spec_of(kernel)
            explanation = lookup.explain(cell_of(item.problem, target, spec))
            text = explanation.answer.config_json
            config = Config.from_json(text) if text else spec.space.default_config(item.problem, target)
            if as_json:
                _print_json(explanation, config, _run_line(explanation, model, tp, prefill))
            else:
                _print_text(explanation, item.problem, target, config, _run_line(explanation, model, tp, prefill))
    return 0


def _run_line(explanation: Explanation, model: str, tp: int, is_prefill: bool) -> str:
    from ...cache.hint import run_line

    return run_line(explanation.cell, model=model, tp=tp, is_prefill=is_prefill)


def _print_json(explanation: Explanation, config: Config, line: str) -> None:
    import json

    answer = explanation.answer
    plain: dict[str, Any] = {
        "cell": str(explanation.cell),
        "config": dict(config),
        "tier": answer.tier.value,
        "label": answer.label.name.lower() if answer.label is not None else None,
        "reason": answer.reason,
        "database": str(answer.database) if answer.database else None,
        "other_compiler": answer.is_other_compiler,
        "tune": line,
        "considered": [
            {
                "cell": str(each.row.cell),
                "differs": each.differs,
                "verdict": each.verdict,
                "database": str(each.database),
            }
            for each in explanation.considered
        ],
    }
    click.echo(json.dumps(plain))


def _print_text(explanation: Explanation, problem: Problem, device: Device, config: Config, line: str) -> None:
    from ...search_spaces.model.estimate import explain_us
    from ...search_spaces.registry import space_of
    from ...search_spaces.roofline import hbm_floor_us
    from ..answers import gain

    answer = explanation.answer
    click.secho(str(problem), bold=True)
    click.echo(f"  config    {config}")
    click.echo(f"  because   {answer.reason}")
    if answer.tier.value != "exact":
        click.echo(f"  tune it   {line}")
    if answer.row is not None:
        click.echo(f"  from      {answer.database}")
        won = gain(answer.row)
        env = answer.row.env
        click.echo(
            f"  evidence  {answer.row.label.name.lower()}"
            + (f", {won:.2f}x the default" if won else "")
            + f" ({env.policy})"
        )
        click.echo(f"  made by   Paiton {env.paiton}, Triton {env.triton}, torch {env.torch}")
        for position, candidate in enumerate(answer.row.shortlist[:4]):
            ratio = candidate.score / answer.row.shortlist[0].score
            click.echo(
                f"  {'shortlist' if position == 0 else '         '} {ratio:5.2f}  {_config_text(candidate.config_json)}"
            )
    space = space_of(problem.kernel)
    feasible = space.enumerate(problem, device)
    click.echo(
        f"  space     {len(feasible)} of {feasible.raw_count} configs are legal on {device.name}; "
        "the rules that forbid the others:"
    )
    for reason, count in sorted(feasible.rejected, key=lambda each: -each[1])[:8]:
        click.echo(f"            {count:7d}  {reason}")
    floor = hbm_floor_us(problem, device)
    click.echo(
        f"  roofline  {floor:.3g} us at {device.name}'s published peaks: no kernel that reads from memory is faster"
    )
    click.echo(
        "  model     terms of the static model for this config, in microseconds unless said (never a measured time):"
    )
    for name, value in explain_us(problem, device, config).items():
        click.echo(f"            {name:24s} {value:.4g}")
    others = [each for each in explanation.considered if each.verdict != "served"]
    if others:
        click.echo(f"  rejected  {len(others)} other rows of this kernel, the nearest:")
        for each in others[:5]:
            click.echo(
                f"            {', '.join(each.differs) or '(same cell)'} differ: {each.row.cell}: {each.verdict}"
            )


def _config_text(config_json: str) -> str:
    from ...search_spaces.config import Config

    return str(Config.from_json(config_json))
