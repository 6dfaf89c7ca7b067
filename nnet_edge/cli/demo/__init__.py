"""The demo: an example line from nothing to a report."""
