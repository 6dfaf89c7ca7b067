"""Formats of labelling tools, one file each; what they share is in nnet_edge/data/labels.py."""
