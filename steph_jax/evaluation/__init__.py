"""Predictions, metrics of folds and runs, comparisons of methods."""
