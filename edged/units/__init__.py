"""``edged units``: systemd's side of the suite, with what this site's configuration says about it."""
