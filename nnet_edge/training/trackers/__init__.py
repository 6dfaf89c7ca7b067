"""Trackers: MLflow, TensorBoard and Weights & Biases beside a training's own log; one file each."""
