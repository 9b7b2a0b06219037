"""What keeps a large model inside the memory at hand. This front imports no torch."""
