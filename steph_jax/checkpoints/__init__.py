"""Models on disk: our own, pools of them, and PyTorch's."""
