"""Room: architecture, the only one that knows transformers.

It turns a checkpoint's config and headers into a model skeleton on the meta device, the recipes that say which stored bytes make
which tensor, and a `ModelProfile` of plain numbers. It knows no buffers, no threads and no budget.
"""
