"""Run a language model that does not fit in memory, exactly."""
