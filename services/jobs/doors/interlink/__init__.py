"""The interLink door: Kubernetes pods as jobs. ``door.py`` has the paths, ``plan.py`` the translation."""
