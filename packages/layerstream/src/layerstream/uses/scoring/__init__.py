"""Score many continuations of shared prefixes in shared sweeps."""
