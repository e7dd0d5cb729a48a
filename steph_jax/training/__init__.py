"""How a run is configured, trained, resumed and tuned."""
