"""The mathematics: ABMIL, task vectors, hypernetworks, merging rules; jax and flax only."""
