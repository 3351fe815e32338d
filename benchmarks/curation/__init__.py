"""What curation costs and finds, against datatrove's own blocks on the same text."""
