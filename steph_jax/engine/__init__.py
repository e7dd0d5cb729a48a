"""How a batch of bags goes through a model: chunks, devices, gradients."""
