"""Checkpoint files as bytes: headers, the tensor index, the Hub, and a parallel positional reader.

Room: bytes. It knows files, offsets and dtype names. It deliberately knows no torch, no transformers, no model and no plan.
"""
