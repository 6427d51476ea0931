"""The HTTP edge: listeners with limits, operation tables, problems, OpenAPI."""
