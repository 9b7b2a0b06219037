"""Adapters: what is trained on top of a frozen model, and the files that other tools read."""
