"""The site's page: is it working, who is using it, what is refused and why."""
