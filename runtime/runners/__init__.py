"""Runners: a graph or an engine, and `infer`."""
