"""Make a placement plan from a profile, a budget, a workload and a machine. Pure: no torch, no I/O."""
