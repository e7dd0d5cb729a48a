"""How a batch of bags goes through a model: chunks, devices, gradients.

Begin with `step.forward`, which training, evaluation and frozen encoders share; `bag_model` is what
it asks of a model, and `loader` brings it the batches.
"""
