"""Tensor programs that the speed and the memory of training hang on; each fast one has a plain twin beside it.

They know tensors only: no options, no model, no file.
"""
