"""A whole answer as canonical JSON (sorted names, no spaces, ASCII), put together from parts that are canonical text
already: in a large database most of them are shared, and encoding each row anew was most of the time of a merge.

Two forms, both kept for ever, because digests are taken over them: configs as text for the digest of one row, configs
as objects for the lines that are shared. Standard library only.
"""

from __future__ import annotations

from dataclasses import fields
from functools import lru_cache
from typing import TYPE_CHECKING

from .checks import canonical
from .key import Cell, Environment

if TYPE_CHECKING:
    from .rows import Source, TunedRow


def digest_text(row: TunedRow) -> str:
    """The row with env and source spelled out, its configs as text: what `TunedRow.digest` is taken over."""
    config = "null" if row.config_json is None else canonical(row.config_json)
    facts = "null" if row.facts_json is None else canonical(row.facts_json)
    return _joined(row, config, facts, str(int(row.label)), shortlist_text(row))


def line_of(row: TunedRow) -> str:
    """The row as one line to share: the label by name, configs and facts as objects."""
    shortlist = ",".join([f"[{each.config_json},{each.score!r}]" for each in row.shortlist])
    label = canonical(row.label.name.lower())
    return _joined(row, row.config_json or "null", row.facts_json or "null", label, f"[{shortlist}]")


def shortlist_text(row: TunedRow) -> str:
    """The shortlist as the database holds it: pairs of a config's text and its score."""
    return f"[{','.join([f'[{_quoted(each.config_json)},{each.score!r}]' for each in row.shortlist])}]"


def _joined(row: TunedRow, config: str, facts: str, label: str, shortlist: str) -> str:
    # In the order of the names, as canonical JSON has it.
    return (
        f'{{"cell":{_cell(row.cell)},"compute_units":{_number(row.compute_units)},"config":{config},'
        f'"env":{_environment(row.env)},"facts":{facts},"label":{label},'
        f'"model_version":{canonical(row.model_version)},"samples":{_number(row.samples)},'
        f'"score":{_number(row.score)},"score_default":{_number(row.score_default)},"shortlist":{shortlist},'
        f'"source":{_source(row.source)},"ts_ms":{_number(row.ts_ms)},"us_default":{_number(row.us_default)},'
        f'"us_median":{_number(row.us_median)},"us_p10":{_number(row.us_p10)},"us_p90":{_number(row.us_p90)}}}'
    )


def _cell(cell: Cell) -> str:
    return (
        f'{{"arch":{canonical(cell.arch)},"batch":{_number(cell.batch)},"device":{canonical(cell.device)},'
        f'"dtype":{canonical(cell.dtype)},"kernel":{canonical(cell.kernel)},'
        f'"kernel_digest":{canonical(cell.kernel_digest)},"signature":{canonical(cell.signature)}}}'
    )


def _number(value: float | None) -> str:
    """As JSON has it; a row holds exact ints and finite floats only."""
    return "null" if value is None else repr(value)


@lru_cache(maxsize=1 << 14)
def _quoted(config_json: str) -> str:
    return canonical(config_json)


@lru_cache(maxsize=1024)
def _environment(env: Environment) -> str:
    return canonical({f.name: getattr(env, f.name) for f in fields(env)})


@lru_cache(maxsize=1024)
def _source(source: Source) -> str:
    return canonical({f.name: getattr(source, f.name) for f in fields(source)})
