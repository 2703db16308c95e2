"""The steps of `bench_gpu.py`.

`lines` and `table` know the results file, `children` the processes; these three need Python alone, so that
the driver outlives whatever a step does to torch. `child` runs one step in a process of its own; the other
modules are one step each, and what they share.
"""
