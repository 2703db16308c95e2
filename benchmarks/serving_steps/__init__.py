"""The stages of `bench_serving.py`: each starts the real server in a process of its own and asks it."""
