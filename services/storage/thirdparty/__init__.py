"""HTTP third-party copy: we pull from, or push to, another site's server."""
