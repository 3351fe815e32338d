"""A team's own project: a recipe, an environment file and a README to start from."""
