"""Runs when another DAG has updated an asset."""

from __future__ import annotations

from airflow.sdk import Asset, dag, task


@dag(schedule=[Asset("headrace_features")])
def consumes():
    @task
    def rows(triggering_asset_events=None):
        return [event.extra["rows"] for events in triggering_asset_events.values() for event in events]

    rows()


consumes()
