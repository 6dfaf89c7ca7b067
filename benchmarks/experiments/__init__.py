"""Questions that were asked once, answered in benchmarks/notes.md; in no wheel, to be run from a checkout."""
