"""Read checkpoint files as bytes: headers, the tensor index, the Hub, and a parallel positional reader.

Room: bytes. It knows files, offsets and dtype names, but no torch, no transformers, no model and no plan.
"""
