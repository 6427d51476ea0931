"""Becoming local accounts: the broker ``accountd``, the accounts' workers, and the fronts' client.

``api`` is what services use; ``client`` is the real thing behind it. ``accountd`` admits signed
grants and starts workers through ``zygote``; ``worker`` runs as the account and enforces each grant
per message (``rules``), with ``files`` for file calls and ``batch`` for batch verbs.
"""
