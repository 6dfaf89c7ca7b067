"""Questions that were asked once; in no wheel."""
