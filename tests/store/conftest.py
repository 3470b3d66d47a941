"""The store is tested as it is without adapters, whatever other tests have imported."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _alone(core_alone: None) -> None: ...
