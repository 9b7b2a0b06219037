"""Places for bytes. Datasets are read from a Source; our own caches live in a Store."""
