"""What a benchmark says of the machine and the versions it ran with."""

from __future__ import annotations

import os
import platform

import psutil
import pytest

from headrace.observe.conditions import describe_machine, describe_versions


def test_the_machine_is_described_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    found = describe_machine()
    assert found["cores"] == len(os.sched_getaffinity(0))
    assert found["memory_gb"] == pytest.approx(psutil.virtual_memory().total / 1e9, abs=0.1)
    assert found["threads_of_blas"] == {"OMP_NUM_THREADS": "3"}
    assert found["cpu"]


def test_versions_are_those_of_what_is_installed() -> None:
    found = describe_versions(["pytest", "nobody-has-this"])
    assert found == {"python": platform.python_version(), "pytest": pytest.__version__}
