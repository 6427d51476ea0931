"""The exports as root://, served by the real xrootd that edged configures, feeds and keeps alive."""
