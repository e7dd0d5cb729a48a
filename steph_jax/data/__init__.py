"""Survival tables, splits, feature readers and batches; knows nothing of models."""
