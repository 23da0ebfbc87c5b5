"""Slurm: batch scripts, the launcher that renders them, and what runs on each node."""
