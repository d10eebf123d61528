"""Experiments: one script per environment, the pipeline they share, and the command line."""
