"""Looking in: a timeline of a run (timeline.py), and the status of every runtime on this machine (status.py). Never
changes what runs."""
