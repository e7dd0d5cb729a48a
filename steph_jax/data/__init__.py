"""Survival tables, splits, feature readers, bags and batches; knows nothing of models.

From files to a batch: `features.open` opens the slides of a cohort, `bags` joins those of a patient
(`BagReader`; `cache` streams what memory cannot hold), `chunks` chooses how bags are cut, and
`batches` stacks the chunks. `engine.loader` brings them to the devices.
"""
