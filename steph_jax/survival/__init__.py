"""Survival analysis on arrays: labels, time bins, losses, metrics, significance tests."""
