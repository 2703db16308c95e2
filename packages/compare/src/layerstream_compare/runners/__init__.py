"""How one case is run: in a process of its own, or, weaker, in this one."""
