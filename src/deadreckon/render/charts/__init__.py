"""Altair charts of plain rows, one kind a file: they see numbers and names, and lay no claim on what these mean."""
