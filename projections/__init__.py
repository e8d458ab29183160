"""WHAT IS TRUE NOW: pure folds of events."""
