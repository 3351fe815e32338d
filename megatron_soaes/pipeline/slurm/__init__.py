"""A recipe as a chain of Slurm jobs."""
