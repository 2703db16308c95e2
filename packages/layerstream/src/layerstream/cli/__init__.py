"""The command line.

Room: surfaces. One module a command; they use the public API alone, and the other surfaces to draw. Nothing is decided here.
"""
