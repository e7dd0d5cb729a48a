"""Reads and writes PyTorch's files without PyTorch; code in a file never runs."""
