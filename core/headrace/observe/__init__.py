"""Looking in: a timeline of a run, the ``status`` of every runtime on this machine, the ``conditions`` of a
measurement. Never changes what runs."""
