"""Streamed models in other tools. Each module needs its own extra, so import it by name."""
