"""The variants of weights and attention: how each one is loaded, and whether it can run here."""
