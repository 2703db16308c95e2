"""Errors raised before anything runs. A failure inside a case is not an error but a result."""

from __future__ import annotations


class CompareError(Exception):
    """Any failure that this package reports."""


class ExperimentError(CompareError, ValueError):
    """The experiment is invalid: an unknown variant, a bad length, nothing to run."""


class ResultsError(CompareError, ValueError):
    """A results file cannot be read or written."""
