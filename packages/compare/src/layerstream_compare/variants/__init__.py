"""The variants of weights and attention."""
