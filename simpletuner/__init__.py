"""SimpleTuner fine-tunes FLUX.1 text-to-image models."""

__version__ = "1.0.0.dev0"
