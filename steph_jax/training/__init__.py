"""How a run is configured, trained, resumed and tuned.

`config` checks the settings, `experiment` opens the data, `loop` trains one model, and `epoch` has
its steps.
"""
