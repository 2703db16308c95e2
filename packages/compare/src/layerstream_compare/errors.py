"""What goes wrong before anything runs. What goes wrong in a case is no error but a result."""

from __future__ import annotations


class CompareError(Exception):
    """Any failure that this package reports."""


class ExperimentError(CompareError, ValueError):
    """An experiment that makes no sense: an unknown variant, a bad length, nothing to run."""


class ResultsError(CompareError, ValueError):
    """A results file that cannot be read or written."""
