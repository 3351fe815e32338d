"""What is done with indexed datasets after they are made: look into, verify, merge, split."""
