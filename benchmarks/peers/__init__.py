"""Side by side with the peers: layerstream, and others that run a model larger than memory.

`worker.py` and the modules beside it whose names end in `_peer` run in a process of one peer's own
environment; the others run in the process that measures.
"""
