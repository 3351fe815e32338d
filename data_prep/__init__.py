"""Text into training data: curation and the converter to Megatron datasets. No torch."""
