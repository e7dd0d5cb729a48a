"""Models for other programs: files under published names, StableHLO, a folder for a model hub."""
