"""Optimizers and learning-rate schedules. This front imports no torch."""
