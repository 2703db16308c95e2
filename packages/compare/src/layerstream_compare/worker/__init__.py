"""The worker's side: one case run and measured in a process of its own. Here, and in the variants, torch is at home."""
