"""The only module that imports dask's internals; everything that changed between dask's releases is settled here.

Supported: dask 2025.1.0 (the first release that fuses into ``dask._task_spec`` nodes only; the one before it still made
``SubgraphCallable``) to 2026.8.0.

Graph nodes are told apart by :data:`kinds`, which maps the *type* of anything that can stand in a graph to a small
number. One look-up an argument is all that translation pays. Only dask's own types get a number of their own: a
subclass may override how it is called, so it is left to dask to run (``OTHER_NODE``).
"""

from __future__ import annotations

import _thread
import concurrent.futures
import datetime
import decimal
import inspect
import multiprocessing.pool
import sys
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

import dask.multiprocessing
import dask.threaded
from dask import _task_spec as spec
from dask.callbacks import local_callbacks, unpack_callbacks
from dask.local import finish_task, nested_get, start_state_from_dask
from dask.utils import SerializableLock, ensure_dict, key_split

Alias = spec.Alias
DataNode = spec.DataNode
Dict = spec.Dict
GraphNode = spec.GraphNode
List = spec.List
Set = spec.Set
Task = spec.Task
TaskRef = spec.TaskRef
Tuple = spec.Tuple
convert_legacy_graph = spec.convert_legacy_graph
convert_legacy_task: Callable[..., Any] = spec.convert_legacy_task
execute_subgraph: Callable[..., Any] = spec._execute_subgraph
identity_cast: Callable[..., Any] = spec._identity_cast

LITERAL, OBJECT, REF, ALIAS, TASK, LIST, TUPLE, SET, DICT, DATA, OTHER_NODE, LOCK = range(12)

KEY_TYPES: tuple[type, ...] = tuple(
    kind
    for kind, sample in ((int, 1), (float, 1.5), (str, "k"), (tuple, ("k", 0)), (bytes, b"k"))
    if isinstance(convert_legacy_task(None, sample, {sample}), GraphNode)
)
"""Types that a legacy graph takes for a key when an equal key exists; ``bytes`` were among them once."""

_ATOMS = (
    *(int, float, complex, bool, str, bytes, type(None), type(Ellipsis), type(NotImplemented), slice, range, type),
    *(datetime.date, datetime.datetime, datetime.timedelta, decimal.Decimal, type(len), type(lambda: 0)),
)
_NODES: dict[type, int] = {Alias: ALIAS, Task: TASK, List: LIST, Tuple: TUPLE, Set: SET, Dict: DICT, DataNode: DATA}
_XARRAY_LOCKS = {("xarray.backends.locks", name) for name in ("SerializableLock", "CombinedLock")}
_STATE_TAKES_KEYS = "keys" in inspect.signature(start_state_from_dask).parameters
_MANY_TYPES = 10_000


class _Kinds(dict[type, int]):
    """type → one of the numbers above. ``LITERAL`` is false: what stays as it is, and is known to be small or cheap."""

    def __missing__(self, kind: type) -> int:
        if len(self) > _MANY_TYPES:  # a program that makes types as it goes must not make this grow for ever
            self.clear()
            self.update(_FIXED)
        code = self[kind] = _classify(kind)
        return code


def _classify(kind: type) -> int:
    if issubclass(kind, GraphNode):
        return DATA if issubclass(kind, DataNode) else OTHER_NODE
    if issubclass(kind, TaskRef) or getattr(kind, "__dask_future__", False):
        return REF
    if issubclass(kind, SerializableLock) or (kind.__module__, kind.__name__) in _XARRAY_LOCKS:
        return LOCK
    return OBJECT


_FIXED: dict[type, int] = {
    **dict.fromkeys(_ATOMS, LITERAL),
    **_NODES,
    TaskRef: REF,
    **dict.fromkeys((type(_thread.allocate_lock()), type(_thread.RLock())), LOCK),
}
kinds = _Kinds(_FIXED)


def mapping_of(graph: Any) -> dict[Hashable, Any]:
    """The low-level graph of whatever dask hands to a scheduler: a dict, a HighLevelGraph or an expression."""
    if type(graph) is dict:
        return graph
    if not isinstance(graph, Mapping):
        graph = graph.__dask_graph__()
    mapping: dict[Hashable, Any] = ensure_dict(graph)
    return mapping


def flat_keys(keys: Any) -> Iterator[Any]:
    """The keys in arbitrarily nested lists of keys, from left to right."""
    if type(keys) is not list and not isinstance(keys, list):
        yield keys
        return
    for key in keys:
        if isinstance(key, list):
            yield from flat_keys(key)
        else:
            yield key


class StoredNode(spec.DataNode):  # type: ignore[misc]  # dask is not annotated
    """A data node whose value is in the store: ours take the handle, every other scheduler reads the value."""

    __slots__ = ("stored",)

    def __init__(self, key: Hashable, stored: Any) -> None:
        for name, value in (("key", key), ("stored", stored), ("typ", object), ("_dependencies", frozenset())):
            setattr(self, name, value)

    @property
    def value(self) -> Any:
        """The value itself."""
        return self.stored.result()

    def result(self) -> Any:
        """The value: whoever looks into a persisted graph takes what has this method for a future and asks it."""
        return self.stored.result()

    def copy(self) -> StoredNode:
        """A node of the same value."""
        return StoredNode(self.key, self.stored)

    def substitute(self, subs: Any, key: Any = None) -> StoredNode:
        """This node, under another key if one is given."""
        return self if key is None or key == self.key else StoredNode(key, self.stored)

    def __reduce__(self) -> Any:
        return DataNode, (self.key, self.value)

    def __repr__(self) -> str:
        return f"StoredNode({self.key!r})"

    def __dask_tokenize__(self) -> Any:
        return type(self).__name__, self.key  # the key of a collection names its contents


def literal_of(node: Any) -> Any:
    """The value that a data node holds, or the handle of one that is kept in the store."""
    if type(node) is DataNode:
        return node.value
    return node.stored if type(node) is StoredNode else node()


def run_node(node: Any, keys: tuple[Hashable, ...], values: list[Any]) -> Any:
    """Runs a node that is not translated as dask itself would: called with a dict of its dependencies' values."""
    return node(dict(zip(keys, values, strict=True)))


def start_state(dsk: dict[Any, Any], cache: Any, priorities: dict[Any, int], keys: list[Any]) -> dict[str, Any]:
    """The state dict of ``dask.local`` for a graph that is about to start; all of ``dsk`` is needed."""
    wanted = {"keys": keys} if _STATE_TAKES_KEYS else {}
    state: dict[str, Any] = start_state_from_dask(dsk, cache=cache, sortkey=priorities.get, **wanted)
    return state


def get_of_pool(pool: Any) -> Any:
    """dask's own scheduler for an executor or pool: the one that pickles, or the one that does not."""
    if isinstance(pool, multiprocessing.pool.Pool):
        separate = not isinstance(pool, multiprocessing.pool.ThreadPool)
    else:
        separate = isinstance(pool, concurrent.futures.ProcessPoolExecutor)
    return dask.multiprocessing.get if separate else dask.threaded.get


def ignores_values(posttask: Any) -> bool:
    """Whether a ``posttask`` callback is known not to look at the value, which then need not be brought here."""
    owner = type(getattr(posttask, "__self__", None))
    return owner.__module__ == "dask.diagnostics.profile" and owner.__name__ == "Profiler"


def is_of_bags(fn: Any) -> bool:
    """Whether it is one of the functions of its own that a bag hands its partitions to."""
    return fn is filter or getattr(fn, "__module__", None) == "dask.bag.core"


def is_reify(fn: Any) -> bool:
    """Whether it makes a list of a bag's partition that is an iterator."""
    return is_of_bags(fn) and getattr(fn, "__name__", None) == "reify"


def writers() -> frozenset[int]:
    """Identities of dask's functions that write into an object handed to them, which may exist in this process only."""
    module = sys.modules.get("dask.array.core")
    names = ("load_store_chunk", "store_chunk", "load_chunk")
    return frozenset(id(getattr(module, name)) for name in names if hasattr(module, name))


__all__ = [
    "ALIAS",
    "DATA",
    "DICT",
    "KEY_TYPES",
    "LIST",
    "LITERAL",
    "LOCK",
    "OBJECT",
    "OTHER_NODE",
    "REF",
    "SET",
    "TASK",
    "TUPLE",
    "Alias",
    "DataNode",
    "Dict",
    "GraphNode",
    "List",
    "SerializableLock",
    "Set",
    "StoredNode",
    "Task",
    "TaskRef",
    "Tuple",
    "convert_legacy_graph",
    "convert_legacy_task",
    "ensure_dict",
    "execute_subgraph",
    "finish_task",
    "flat_keys",
    "get_of_pool",
    "identity_cast",
    "ignores_values",
    "is_of_bags",
    "is_reify",
    "key_split",
    "kinds",
    "literal_of",
    "local_callbacks",
    "mapping_of",
    "nested_get",
    "run_node",
    "start_state",
    "unpack_callbacks",
    "writers",
]
