"""The training loop, its checkpoints, and how a run starts, stops and resumes. This front imports no torch."""
