"""Rows are checked when made: what is not a valid row never reaches the database."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from paiton.cache.checks import MAX_ERROR_CHARS, canonical
from paiton.cache.errors import RowRefused
from paiton.cache.row_text import digest_text, line_of, shortlist_text
from paiton.cache.rows import Candidate, CompiledRow, Source, TrialState

BAD_NUMBERS = [math.nan, math.inf, -math.inf, 0.0, -1.0, True, "1.0", np.float32(1.0), 10**400]


@pytest.mark.parametrize("value", BAD_NUMBERS)
@pytest.mark.parametrize("name", ["us_median", "us_p10", "us_p90", "us_default", "score", "score_default"])
def test_tuned_takes_finite_positive_numbers_only(build: Any, name: str, value: object) -> None:
    with pytest.raises(RowRefused, match=f"{name}=.*expected a finite positive number"):
        build.measured(**{name: value})


@pytest.mark.parametrize("value", BAD_NUMBERS)
@pytest.mark.parametrize("name", ["us", "score", "samples_us"])
def test_trial_takes_finite_positive_numbers_only(build: Any, name: str, value: object) -> None:
    with pytest.raises(RowRefused, match=f"{name}="):
        build.trial(**{name: (1.0, value) if name == "samples_us" else value})


@pytest.mark.parametrize("value", [math.nan, math.inf, None, "1", True])
def test_told_is_always_finite(build: Any, value: object) -> None:
    with pytest.raises(RowRefused, match="told="):
        build.trial(told=value)
    assert build.trial(told=-0.5).told == -0.5


@pytest.mark.parametrize("text", ["", "[]", "1", "{", '{"a":NaN}', '{"a":Infinity}', "[" * 100_000, None])
@pytest.mark.parametrize("name", ["config_json", "facts_json"])
def test_json_fields_are_objects(build: Any, name: str, text: str | None) -> None:
    if text is None:
        assert getattr(build.estimated(**{name: None}), name) is None
        return
    with pytest.raises(RowRefused):
        build.estimated(**{name: text})


def test_json_is_made_canonical(build: Any) -> None:
    row = build.estimated(config_json='{ "num_warps": 4,\n "BLOCK_M": 16 }')
    assert row.config_json == '{"BLOCK_M":16,"num_warps":4}'
    assert row.digest == build.estimated(config_json='{"BLOCK_M":16,"num_warps":4}').digest


def test_label_says_what_a_row_must_hold(build: Any) -> None:
    with pytest.raises(RowRefused, match="us_median and samples > 0 are required"):
        build.measured(samples=0)
    with pytest.raises(RowRefused, match="us_median and samples > 0 are required"):
        build.measured(us_median=None)
    with pytest.raises(RowRefused, match="a score is required"):
        build.estimated(score=None)
    with pytest.raises(RowRefused, match="microseconds are not accepted"):
        build.estimated(us_median=3.0)
    with pytest.raises(RowRefused, match="label 7: expected one of 0 PRIOR"):
        build.estimated(label=7)


def test_state_is_one_of_the_known(build: Any) -> None:
    assert build.trial(state="timeout").state is TrialState.TIMEOUT
    with pytest.raises(RowRefused, match="state 'slow': expected one of ok, illegal"):
        build.trial(state="slow")


def test_long_or_broken_error_text_is_kept_within_bounds(build: Any) -> None:
    row = build.trial(state=TrialState.COMPILE_ERROR, error="begin" + "x" * 10**6 + "\udcffend")
    assert len(row.error) <= MAX_ERROR_CHARS
    assert row.error.startswith("begin") and row.error.endswith("?end")


def test_compile_key_has_16_bytes() -> None:
    with pytest.raises(RowRefused, match="expected 16 bytes"):
        CompiledRow(key=b"short", state=TrialState.OK, seconds=1.0)


def test_texts_are_canonical_json(build: Any) -> None:
    """Put together from parts, they must be what encoding the whole would give: digests are taken over them."""
    names = ("us_median", "us_p10", "us_p90", "samples", "us_default", "score", "score_default", "model_version")
    rows = [
        build.measured(build.cell(signature='a"\\b', device="\u00e9\U0001f600"), facts_json='{"mfma":[["x",1.5e-7]]}'),
        build.estimated(score=1e22, shortlist=[Candidate(config_json='{"A":"\\u00e9"}', score=3)], ts_ms=2**62),
        build.measured(config_json=None, us_p10=0.1, compute_units=304, source=Source(name="v", licence='"\n')),
    ]
    for row in rows:
        configs = (row.config_json, row.facts_json)
        plain = {
            **{name: getattr(row, name) for name in (*names, "compute_units", "ts_ms")},
            **{name: {f.name: getattr(getattr(row, name), f.name) for f in fields(getattr(row, name))}
               for name in ("cell", "env", "source")},
        }  # fmt: skip
        shortlist = [[each.config_json, each.score] for each in row.shortlist]
        as_text = plain | {"config": configs[0], "facts": configs[1], "label": int(row.label), "shortlist": shortlist}
        assert digest_text(row) == canonical(as_text)
        config, facts = (None if each is None else json.loads(each) for each in configs)
        shortlist = [[json.loads(each.config_json), each.score] for each in row.shortlist]
        label = row.label.name.lower()
        assert line_of(row) == canonical(
            plain | {"config": config, "facts": facts, "label": label, "shortlist": shortlist}
        )
        assert shortlist_text(row) == canonical(as_text["shortlist"])


def test_the_digest_covers_the_whole_row(build: Any) -> None:
    base = build.measured(ts_ms=5)
    changed = [
        build.measured(ts_ms=6),
        build.measured(ts_ms=5, us_median=20.5),
        build.measured(ts_ms=5, us_p10=19.0),
        build.measured(ts_ms=5, us_p90=21.0),
        build.measured(ts_ms=5, us_default=25.0),
        build.measured(ts_ms=5, samples=101),
        build.measured(ts_ms=5, score=1.0),
        build.measured(ts_ms=5, score_default=1.0),
        build.measured(ts_ms=5, model_version="2"),
        build.measured(ts_ms=5, compute_units=304),
        build.measured(ts_ms=5, config_json=None),
        build.measured(ts_ms=5, facts_json='{"registers":128}'),
        build.measured(ts_ms=5, shortlist=(Candidate(config_json="{}", score=1.0),)),
        build.measured(ts_ms=5, source=Source(name="vllm")),
        build.measured(ts_ms=5, env=build.env(driver="6.12")),
        build.measured(build.cell(batch=16), ts_ms=5),
    ]
    assert len({row.digest for row in [base, *changed]}) == 1 + len(changed)
    assert build.measured(ts_ms=5, us_median=20).digest == base.digest
