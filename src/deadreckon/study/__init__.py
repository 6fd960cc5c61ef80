"""Many models: sweeps, their store, and the table of full-size models."""
