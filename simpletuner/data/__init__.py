"""From a dataset file to training batches: stores, discovery, buckets, captions, the two caches and the plan."""
