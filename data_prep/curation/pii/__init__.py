"""Personal data in texts: found by form, confirmed by checksums, replaced by typed placeholders."""
