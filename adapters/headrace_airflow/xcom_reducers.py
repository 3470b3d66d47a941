"""How values of libraries travel that would put their data into the pickle, copy upon copy.

polars frames and series travel as Arrow data, torch's CPU tensors as numpy arrays: both stand on the mapped memory
again when they are read. Nothing is imported here that the task has not imported itself.
"""

from __future__ import annotations

import sys
from typing import Any

from headrace.store.pickling import register_reducer


def register() -> None:
    """Has the store pickle these. May be called again."""
    register_reducer(("polars.dataframe.frame", "DataFrame"), reduce_frame)
    register_reducer(("polars.series.series", "Series"), reduce_series)
    register_reducer(("torch", "Tensor"), reduce_tensor)


def reduce_frame(frame: Any) -> Any:
    """A ``polars.DataFrame``; one that Arrow cannot take as it is (objects) goes polars' own way."""
    polars = sys.modules["polars"]
    if any(dtype == polars.Object for dtype in frame.dtypes):
        return frame.__reduce_ex__(5)
    return _frame, (_arrow(frame),)


def reduce_series(series: Any) -> Any:
    """A ``polars.Series``, likewise."""
    polars = sys.modules["polars"]
    if series.dtype == polars.Object:
        return series.__reduce_ex__(5)
    return _series, (series.name, _arrow(series.to_frame()))


def reduce_tensor(tensor: Any) -> Any:
    """A dense ``torch.Tensor`` of numbers on the CPU; any other goes torch's own way."""
    torch = sys.modules["torch"]
    plain = tensor.device.type == "cpu" and tensor.layout == torch.strided and not tensor.is_quantized
    if not plain or tensor.is_conj() or tensor.is_neg() or tensor._backward_hooks or tensor.__dict__:
        return tensor.__reduce_ex__(5)
    bare = tensor.detach()
    view = {torch.bfloat16: torch.int16}.get(bare.dtype)
    try:
        array = (bare.view(view) if view is not None else bare).numpy()
    except (RuntimeError, TypeError):
        return tensor.__reduce_ex__(5)
    return _tensor, (array, str(bare.dtype).removeprefix("torch.") if view is not None else "", tensor.requires_grad)


def _arrow(frame: Any) -> Any:
    polars = sys.modules["polars"]
    return frame.to_arrow(compat_level=polars.CompatLevel.oldest())


def _frame(table: Any) -> Any:
    import polars

    return polars.from_arrow(table, rechunk=False)


def _series(name: str, table: Any) -> Any:
    return _frame(table).to_series(0).alias(name)


def _tensor(array: Any, dtype: str, requires_grad: bool) -> Any:
    import torch

    tensor = torch.from_numpy(array) if array.ndim else torch.tensor(array)
    if dtype:
        tensor = tensor.view(getattr(torch, dtype))
    return tensor.requires_grad_(requires_grad)
