"""Room: streaming. Moves units of weights from disk to a device and out of the way again.

It works with units, bytes, buffers, threads and devices, and knows neither tokens nor transformers. Planning
decides where each unit lives; recipes say what a unit is made of.
"""
