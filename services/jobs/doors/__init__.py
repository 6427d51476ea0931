"""Doors: broker-facing protocols onto the one job engine. They translate, they never decide."""
