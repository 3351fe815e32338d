"""Which documents deserve a place in the corpus: credibility, relevance and importance."""
