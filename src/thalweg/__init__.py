"""thalweg: watch a training run, name what happens, apply the published remedy, see what it really does."""

__version__ = "0.1.0"
