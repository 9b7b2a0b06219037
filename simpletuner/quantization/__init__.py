"""A frozen base in fewer bits: kinds to choose from, matrices packed while they are read, and kept for the next start.

This front and `kinds` and `shelf` load no torch.
"""
