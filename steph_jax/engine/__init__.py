"""How a batch of bags goes through a model: chunks, devices, gradients.

Begin with `step.forward`, which training, evaluation and frozen encoders share; `bag_model` is what
it asks of a model, `loader` brings it the batches, and `placement` says on which devices of which
hosts arrays lie.
"""
