"""The published curriculum at a size that two cores train: what of its two claims can be shown."""
