"""A complete driver as its author would write it, for a small batch system of the example's own."""
