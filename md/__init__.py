"""Molecular dynamics: trajectory files; knows only the ``Potential`` protocol, never a model."""
