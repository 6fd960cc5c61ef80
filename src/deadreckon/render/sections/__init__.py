"""The parts of a report, one a file: each shows the results that it is about, or is not there."""
