"""Turn a checkpoint's config and headers into a model skeleton, recipes and a profile.

The skeleton is transformers' own model on the meta device; recipes say which stored bytes make which tensor;
a `ModelProfile` is plain numbers. Room: architecture, the only room that knows transformers. Buffers, threads
and budgets belong to other rooms.
"""
