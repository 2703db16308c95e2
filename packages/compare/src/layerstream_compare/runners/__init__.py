"""Run one case: in its own process, or, with weaker memory figures, in this one."""
