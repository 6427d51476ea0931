"""Slurm behind a slurmrestd."""
