"""Room: streaming. Moves units of weights from disk to a device and back out of the way.

It knows units, bytes, buffers, threads and devices. It knows no tokens and nothing of transformers; planning tells it what lives
where, recipes tell it what a unit is made of.
"""
