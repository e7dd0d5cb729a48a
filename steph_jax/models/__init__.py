"""The mathematics: ABMIL, task vectors, hypernetworks, merging; jax and flax only.

Parameters are trees. `steph` computes coefficients from what `hypernetworks` give, `task_vectors`
sums models by them, after `preparation` where that is asked for; the layers of `abmil` and the
online softmax of `pooling` run the sum.
"""
