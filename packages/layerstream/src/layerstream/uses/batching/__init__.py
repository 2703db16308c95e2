"""Generate for many requests in shared sweeps."""
