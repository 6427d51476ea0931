"""The ARC REST door: `/arex/rest`. See README.md."""
