"""A recipe played through in small on this machine, from its first file to its last report."""
