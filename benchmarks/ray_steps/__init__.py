"""What bench_ray.py runs in processes of its own: workers that count, and a driver to kill."""
