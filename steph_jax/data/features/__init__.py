"""Patch features of slides: a reader for each file format behind one interface."""
