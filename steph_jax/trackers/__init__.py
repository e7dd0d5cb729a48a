"""Trackers of experiments beside history.csv, which stays the record of a training."""
