"""Print what trackio has stored of the one run of the project "mem1", as JSON: from the directory that TRACKIO_DIR names."""

import json

from trackio.sqlite_storage import SQLiteStorage

(run,) = SQLiteStorage.get_runs("mem1")
stored = {"logs": SQLiteStorage.get_logs("mem1", run), "traces": SQLiteStorage.get_traces("mem1", run)}
print(json.dumps(stored, default=str))
