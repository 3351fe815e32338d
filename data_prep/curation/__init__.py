"""What stays of a corpus before it is converted: cleaning, duplicates, evaluation sets."""
