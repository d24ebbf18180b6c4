"""A launch that fails: torch computes the call, one warning, one count, and the config is not tried again."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources

from paiton.compiler import failures, selection
from paiton.compiler.ops.registry import OPERATORS
from paiton.kernels_triton.launch import Launch
from paiton.search_spaces.registry import space_of

from .stored import row, write

RMS_NORM = OPERATORS["rms_norm"].overload


pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Exception | None]], list[Launch]]:
    """Let every launch raise what a function gives, if it gives anything; returns the list of launches tried."""

    def install(fault: Callable[[], Exception | None]) -> list[Launch]:
        tried: list[Launch] = []
        run = Launch.run

        def faulty(self: Launch) -> None:
            tried.append(self)
            error = fault()
            if error is not None:
                raise error
            run(self)

        monkeypatch.setattr(Launch, "run", faulty)
        return tried

    return install


def call(rows: int = 3) -> None:
    """The operator on the launcher's path; its value is that of the body."""
    x, weight = torch.randn(rows, 64), torch.randn(64)
    with torch.no_grad():
        expected = RMS_NORM(x, weight, 1e-6)
        with selection.use_device("MI300X"):
            got = RMS_NORM(x, weight, 1e-6)
    torch.testing.assert_close(got, expected)


def out_of_resources() -> Exception:
    return OutOfResources(99999, 65536, "shared memory")


FAULTS: list[Callable[[], Exception]] = [
    out_of_resources,
    lambda: CompilationError("def kernel(): ...", None, "a bad kernel"),  # type: ignore[arg-type]
    lambda: RuntimeError("PassManager::run failed"),
]


@pytest.mark.parametrize("fault", FAULTS)
def test_torch_computes_it_and_the_config_is_out(
    fault: Callable[[], Exception], launches: Any, caplog: pytest.LogCaptureFixture
) -> None:
    tried = launches(fault)
    with caplog.at_level(logging.WARNING, "paiton"):
        for _ in range(4):
            call()
    assert len(tried) == 1
    assert failures.counts() == {"rms_norm": 1} and selection.counts()["failed"] == 1
    said = [record.getMessage() for record in caplog.records if "could not be launched" in record.getMessage()]
    assert len(said) == 1 and "torch computes it" in said[0] and "\n" not in said[0]
    assert selection.counts()["torch"] == 3


def test_after_a_stored_config_the_default_is_tried(launches: Any, database: Path) -> None:
    problem = space_of("rms_norm").problem(dtype="fp32", batch=3, hidden=64)
    write(database, row(problem))
    faults: list[Exception | None] = [out_of_resources(), None, None]
    tried = launches(lambda: faults.pop(0))
    for _ in range(3):
        call()
    stored, default, again = ((each.constexprs, each.options) for each in tried)
    assert stored != default == again
    assert selection.counts()["default"] == 2
    (miss,) = selection.misses()
    assert "failed to launch in this process" in miss.reason


def test_a_plan_that_refuses_the_tensors_keeps_its_config(launches: Any) -> None:
    launches(lambda: None)
    x, weight = torch.randn(3, 64), torch.randn(128)[::2]
    with torch.no_grad():
        expected = RMS_NORM(x, weight, 1e-6)
        with selection.use_device("MI300X"):
            got = RMS_NORM(x, weight, 1e-6)
    torch.testing.assert_close(got, expected)
    assert failures.counts() == {"rms_norm": 1}
    call()
    assert failures.counts() == {"rms_norm": 1} and selection.counts()["default"] == 2


@pytest.mark.parametrize(
    "fault",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
        KeyError("a fault of ours"),
        KeyboardInterrupt(),
    ],
    ids=lambda fault: type(fault).__name__,
)
def test_what_the_user_must_see_goes_through(fault: BaseException, launches: Any) -> None:
    launches(lambda: fault)
    with pytest.raises(type(fault)):
        call()
    assert failures.counts() == {}


def test_the_in_place_operator_falls_back_whole(launches: Any) -> None:
    """A first launch may have written the caches before a second one fails."""
    from .op_calls import calls, copied

    *_, arguments = next(each for each in calls() if each[0] == "attention_decode_fused")
    operator = OPERATORS["attention_decode_fused"].overload
    mine, theirs = copied(arguments), copied(arguments)
    launches(out_of_resources)
    with torch.no_grad():
        expected = operator(*theirs)
        with selection.use_device("H100"):
            got = operator(*mine)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(mine, theirs)


def test_a_reload_lets_every_config_be_tried_again(launches: Any) -> None:
    tried = launches(out_of_resources)
    call()
    selection.reload()
    call()
    assert len(tried) == 2 and failures.counts() == {"rms_norm": 1}
