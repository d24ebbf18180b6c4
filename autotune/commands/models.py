"""`autotune models`: the models that are known by name."""

from __future__ import annotations

import click

from .options import json_option


@click.command(short_help="List the built-in models, or the kernels one model needs.")
@click.argument("name", required=False)
@click.option("--tp", type=click.IntRange(1), default=1, show_default=True, help="Tensor-parallel degree.")
@json_option
def models(name: str | None, tp: int, as_json: bool) -> None:
    """List the built-in models. With NAME (or a config.json) show the problems its kernels must solve.

    \b
    Examples:
      autotune models
      autotune models Qwen3-30B-A3B --tp 2
      autotune models ./my-model/config.json
    """
    import dataclasses
    import json

    from rich.table import Table

    from ...search_spaces.presets import PRESETS
    from ..console import make_console
    from .options import model_of

    if name is None:
        if as_json:
            click.echo(json.dumps([dataclasses.asdict(model) for model in PRESETS]))
            return
        table = Table("model", "family", "layers", "hidden", "heads q/kv", "head dim", "experts", box=None)
        for model in PRESETS:
            experts = f"{model.experts}, top {model.top_k}" if model.experts else "dense"
            table.add_row(
                model.name, model.family, str(model.layers), str(model.hidden), f"{model.q_heads}/{model.kv_heads}",
                str(model.head_dim), experts,
            )  # fmt: skip
        make_console().print(table)
        return
    from ...search_spaces.model_spec import ModelError
    from ...search_spaces.workload import problems

    try:
        items = problems(model_of(name), tp=tp)
    except ModelError as error:
        raise click.BadParameter(str(error), param_hint="--tp") from None
    if as_json:
        click.echo(
            json.dumps(
                [
                    {
                        "kernel": item.problem.kernel, "signature": item.problem.signature, "batch": item.problem.batch,
                        "phase": item.phase, "calls_per_step": item.calls_per_step,
                    }
                    for item in items
                ]
            )
        )  # fmt: skip
        return
    shapes: dict[tuple[str, str, str, int], list[int]] = {}
    for item in items:
        key = (item.problem.kernel, item.problem.signature, item.phase, item.calls_per_step)
        shapes.setdefault(key, []).append(item.problem.batch)
    table = Table("kernel", "problem", "phase", "calls per step", "tokens", box=None)
    for (kernel, signature, phase, calls), batches in shapes.items():
        table.add_row(kernel, signature, phase, str(calls), ",".join(map(str, batches)))
    make_console().print(table)
