"""The worker: runs and measures one case in its own process. Only this and `variants` import torch."""
