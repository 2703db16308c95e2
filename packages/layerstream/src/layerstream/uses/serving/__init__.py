"""Answer requests as they come, in shared sweeps."""
