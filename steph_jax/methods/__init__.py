"""One small file per method: what differs between methods, and nothing else.

`base.Method` is what a method provides, `registry` lists them by name, `sources` gathers the models
of other cancers from the pool.
"""
