"""The mathematics: NumPy only, no files, no models."""
