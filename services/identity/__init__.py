"""The identity service: the signer, the fetcher of issuers' keys, and the public identity API."""
