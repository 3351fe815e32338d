"""What a serving team starts a target and its draft with. No serving package is imported."""
