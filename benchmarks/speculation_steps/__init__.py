"""The stages of `bench_speculation.py`.

`job` is what they share: the model, the prompts, and the lines that keep what was found. `generation` opens
models and generates. Each stage has a module that measures and one function that makes its table, in a module
of its own where it is long. `wall_child` is a process that stays loaded.
"""
