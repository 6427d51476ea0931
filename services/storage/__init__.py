"""The WebDAV endpoint. ``service.py`` is the table of contents."""
