"""The mathematics: ABMIL, task vectors, hypernetworks, merging rules; jax and flax only.

Parameters are trees. `steph` and `merging` compute merged ones from `task_vectors`; the layers of
`abmil` and the online softmax of `pooling` run them.
"""
