"""Results as charts on one self-contained page. Sees records, never a model."""
