"""Slurm behind a login node: clients by SSH, session directories by SFTP."""
