"""Turn pickled and GGUF weights into safetensors, piece by piece.

Room: conversion. Sources know how weights are stored and give their values in small pieces; the target knows
the folder that is written. `convert.py` lets them meet.
"""
