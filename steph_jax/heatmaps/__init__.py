"""Where a model looks, and what each patch adds to the risk: numbers, tables and pictures."""
