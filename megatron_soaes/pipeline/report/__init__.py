"""A run as a page to read and as numbers to compute with."""
