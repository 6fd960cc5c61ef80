"""Loaded models: capture, moments, spectra. The only room that imports torch."""
