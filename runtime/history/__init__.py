"""History of a line: every verdict in one SQLite file, its labels, its shift, and the report of it."""
