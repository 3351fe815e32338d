"""What a recipe costs, by arithmetic: parameters, memory, time, the best layout. No torch."""
