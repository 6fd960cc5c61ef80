"""Checkpoint files, read without torch: formats, names, the atlas of architectures."""
