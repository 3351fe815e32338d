"""The curation of a corpus as datatrove pipelines: what is read, in which order, the account."""
