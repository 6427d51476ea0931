"""Fetching from stratum servers and destinations: pooled connections, circuit breaking, racing."""
