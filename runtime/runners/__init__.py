"""Runners: load a graph or an engine and infer."""
