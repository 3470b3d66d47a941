"""HeadraceXCom: any picklable value as an XCom, through shared memory, with a durable copy behind it.

    AIRFLOW__CORE__XCOM_BACKEND=headrace_airflow.HeadraceXCom

Small plain data stays in the database as stock keeps it (:mod:`headrace_airflow.xcom_native`); everything else goes to
the node's store (:mod:`headrace_airflow.store`), and the database holds a reference
(:mod:`headrace_airflow.xcom_reference`). Values are pickled and unpickled here, so in tasks only: the API server and
the scheduler show the reference's own text. Works under any executor; switched on, it still reads what stock has
written. Importing it also gives generator tasks a value (:mod:`headrace_airflow.generators`).
"""

from __future__ import annotations

import functools
import logging
import os
import weakref
from types import GeneratorType
from typing import Any, Final, NamedTuple

from airflow.sdk.bases.xcom import BaseXCom

from headrace.errors import UnpicklableError
from headrace.store.pickling import pack
from headrace_airflow import generators, rendering, xcom_reducers
from headrace_airflow.store.client import StoreClient
from headrace_airflow.store.ledger import Slot
from headrace_airflow.store.settings import StoreSettings, from_options
from headrace_airflow.unpickling import unpickle
from headrace_airflow.xcom_native import verdict
from headrace_airflow.xcom_reference import (
    describe,
    from_row,
    is_parts,
    is_reference,
    parts_of,
    references_in,
    to_parts,
    to_row,
)

generators.install()

_log = logging.getLogger("airflow.task.headrace")

_COMPARED_BYTES: Final = 1 << 20


class HeadraceXCom(BaseXCom):
    """See the module."""

    @staticmethod
    def serialize_value(
        value: Any,
        *,
        key: str | None = None,
        task_id: str | None = None,
        dag_id: str | None = None,
        run_id: str | None = None,
        map_index: int | None = None,
    ) -> Any:
        """What the database keeps for a value. Large values are in the store when this returns.

        Raises:
            UnpicklableError: the value cannot be pickled; the message has the path to the culprit.
            StoreFullError: neither memory nor disk has room for it.
            StoreUnreachableError: there is no store service and none can be started.
        """
        value = _without_laziness(value, key)
        if None in (key, task_id, dag_id, run_id):
            return BaseXCom.serialize_value(value)
        slot = Slot(str(dag_id), str(run_id), str(task_id), -1 if map_index is None else map_index, str(key))
        return _row_of_parts(value, slot) or _row(value, slot)

    @staticmethod
    def deserialize_value(result: Any) -> Any:
        """The value for what the database keeps. Arrays stand on mapped memory; writing into them changes one copy.

        Raises:
            LostValueError: there is neither memory nor a durable copy; the message says which task to clear.
            UnknownReferenceError: the row was written by another version of Headrace, or is damaged.
            StoreUnreachableError: there is no store service and none can be started.
            Exception: whatever the value's own unpickling raises.
        """
        row = result.value
        if is_reference(row):
            return _get(from_row(row))
        if is_parts(row):
            return {name: _part(part) for name, part in parts_of(row).items()}
        return BaseXCom.deserialize_value(result)

    @classmethod
    def purge(cls, xcom: Any, *args: Any) -> None:
        """Gives a value up when its row goes. Never raises: what stays behind is collected later."""
        for reference in references_in(getattr(xcom, "value", None)):
            try:
                client().delete(from_row(reference))
            except Exception as error:  # it never raises
                _log.warning("the stored value of an XCom stays behind: %s", error)


@functools.cache
def settings() -> StoreSettings:
    """The store's settings, from ``[headrace]`` of Airflow's configuration; read once.

    Raises:
        ConfigError: a value cannot be used.
    """
    from airflow.sdk.configuration import conf

    home = os.environ.get("AIRFLOW_HOME") or os.path.expanduser("~/airflow")
    return from_options(lambda name: conf.get("headrace", name, fallback=None), os.path.expanduser(home))


@functools.cache
def client() -> StoreClient:
    """This process's way to the store; a forked child connects anew. Thread-safe."""
    return StoreClient(settings())


_RETURN_KEY: Final = BaseXCom.XCOM_RETURN_KEY

_pushed: dict[Slot, tuple[weakref.ref[Any], dict[str, Any]]] = {}
"""What this process has stored, and the row for it: a task with multiple outputs pushes each one, then all as one."""


def _row(value: Any, slot: Slot) -> Any:
    if verdict(value, settings().inline_bytes) == "stock":
        try:
            return BaseXCom.serialize_value(value)
        except Exception as error:  # of a kind that stock has turned out not to know
            _log.debug("XCom %r goes to the store: %s", slot.key, error)
    return _put(value, slot)


def _put(value: Any, slot: Slot) -> dict[str, Any]:
    xcom_reducers.register()
    try:
        packed = pack(value, slot.key)
    except UnpicklableError as error:
        hint = ". A generator can be read only once: return a list" if isinstance(value, GeneratorType) else ""
        raise UnpicklableError(f"XCom {slot.key!r} of task {slot.task_id!r} cannot be stored: {error}{hint}") from error
    kind, shape = describe(value)
    row = to_row(client().put(slot, packed, kind, shape))
    try:
        _pushed[slot] = (weakref.ref(value), row)
    except TypeError:  # lists, dicts and bytes know no weak references
        _pushed.pop(slot, None)
    return row


def _row_of_parts(value: Any, slot: Slot) -> dict[str, Any] | None:
    """For the dict of a task with multiple outputs: a row that refers to what was pushed a moment before."""
    if (
        not _pushed
        or slot.key != _RETURN_KEY
        or type(value) is not dict
        or not all(type(name) is str for name in value)
    ):
        return None
    shared = {name: row for name, item in value.items() if (row := _row_if_same(slot._replace(key=name), item))}
    if not shared:
        return None
    rows = {
        name: shared.get(name) or _row(item, slot._replace(key=f"{slot.key}[{name}]")) for name, item in value.items()
    }
    return to_parts(rows)


def _row_if_same(slot: Slot, value: Any) -> dict[str, Any] | None:
    """The row of a value that was pushed as this slot, if it is this very object and was not written to since."""
    found = _pushed.get(slot)
    if found is None or found[0]() is not value:
        return None
    packed = pack(value, slot.key)
    stored = client().get(from_row(found[1]))
    parts = [memoryview(packed.data), *packed.buffers]
    same = len(parts) == len(stored) and all(map(_equal, parts, stored))
    return found[1] if same else None


def _equal(one: memoryview, other: memoryview) -> bool:
    if one.nbytes != other.nbytes:
        return False
    # memoryview compares item by item, bytes compare as fast as memory can be read.
    steps = range(0, one.nbytes, _COMPARED_BYTES)
    return all(bytes(one[at : at + _COMPARED_BYTES]) == bytes(other[at : at + _COMPARED_BYTES]) for at in steps)


def _part(row: Any) -> Any:
    return _get(from_row(row)) if is_reference(row) else BaseXCom.deserialize_value(_Result(row))


class _Result(NamedTuple):
    value: Any


def _get(record: dict[str, Any]) -> Any:
    rendering.install()
    parts = client().get(record)
    try:
        return unpickle(parts)
    except Exception as error:  # unpickling runs users' code
        dag_id, run_id, task_id, _, key = record["slot"]
        _log.error(
            "XCom %r of task %r (DAG %r, run %r) is in the store, but its unpickling raised %s",
            key, task_id, dag_id, run_id, type(error).__name__,
        )  # fmt: skip
        raise


def _without_laziness(value: Any, key: str | None) -> Any:
    """What a mapped upstream hands out is a view of the database; pushed on, it becomes a list, as in stock."""
    kind = type(value)
    if kind.__name__ != "LazyXComSequence" or not kind.__module__.startswith("airflow."):
        return value
    _log.warning("XCom %r is the lazy view of a mapped task's results; all of them are read, to store a list", key)
    return list(value)
