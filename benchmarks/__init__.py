"""Measurements: speed, accuracy, other methods, the line."""
