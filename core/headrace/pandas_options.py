"""Has tasks in worker processes see pandas' options as tasks on threads see them: those of the process that computes.

Some of them change results (``mode.string_storage``, ``future.infer_string``), not only how these are shown. This is
pandas' companion (:mod:`headrace.companions`): a worker without pandas does not import it. Values that cannot be
pickled, and those that cannot be unpickled there, stay behind: functions of ``__main__`` for example.
"""

from __future__ import annotations

import contextlib
import pickle
import sys
import warnings
from typing import Any

from headrace import companions

_last: tuple[dict[str, Any], bytes] = {}, b""
"""In the owner: pandas' table of values when it was last looked at, and the state that was made of it."""

_told: dict[str, Any] = {}
"""In a worker: the options that it was told last."""


def _options() -> dict[str, Any]:
    """Name → value; none where pandas is not imported. From pandas' own tables, since who asks its functions for an
    option that is deprecated is warned."""
    config: Any = sys.modules.get("pandas._config.config")
    found = {}
    for name in tuple(getattr(config, "_registered_options", {})):
        value = config._global_config
        for part in name.split("."):
            value = value[part]
        found[name] = value
    return found


def _state() -> bytes:
    global _last
    values = getattr(sys.modules.get("pandas._config.config"), "_global_config", {})
    before, state = _last
    if values != before:
        before = _copied(values)  # first: what changes meanwhile is found the next time
        pickles = {name: _pickled(value) for name, value in _options().items()}
        state = pickle.dumps({name: pickled for name, pickled in pickles.items() if pickled is not None})
        _last = before, state
    return state


def _copied(section: dict[str, Any]) -> dict[str, Any]:
    return {name: _copied(value) if type(value) is dict else value for name, value in list(section.items())}


def _pickled(value: object) -> bytes | None:
    """By itself: what cannot be unpickled keeps no other option from being so."""
    try:
        return pickle.dumps(value)
    except Exception:  # whatever its class raises
        return None


def _unpickled(pickles: dict[str, bytes]) -> dict[str, Any]:
    values = {}
    for name, pickled in pickles.items():
        with contextlib.suppress(Exception):  # whatever its class raises
            values[name] = pickle.loads(pickled)
    return values


def _apply(state: bytes) -> None:
    global _told
    own, now = _options(), _unpickled(pickle.loads(state)) if state else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the program was warned when it set them
        for name, value in now.items():
            if name in own and _told.get(name, own[name]) != value:
                sys.modules["pandas"].set_option(name, value)
    _told = now


companions.accompany("pandas", __name__)
companions.share("pandas.options", _state, _apply)
