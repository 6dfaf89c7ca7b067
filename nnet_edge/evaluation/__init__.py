"""Evaluation: any artefact against a test set, and its pictures."""
