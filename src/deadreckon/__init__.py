"""Read a transformer's dead directions from its parameters, and verify them in one forward pass."""

__version__ = "0.1.0"
