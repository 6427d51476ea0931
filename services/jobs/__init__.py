"""The job engine, its batch systems and its doors."""
