"""Worker processes: one loaded model each, reached over shared memory and a socket pair."""
