"""What deadreckon does, one file a verb: compositions of the rooms below."""
