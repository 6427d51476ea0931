"""Filter ``edged_site``: the site's VOs as people write them → the tables of edged's configuration."""

from __future__ import annotations


def _of_vo(name, vo):
    """One VO's issuers, mappings and exports. Raises KeyError for a VO without an issuer."""
    shared = {
        key: value for key, value in vo.items() if key in ("audience", "profile", "ca_file", "claims_from")
    }
    issuers = vo.get("issuers") or [{"url": vo["issuer"]}]
    issuers = [{**shared, **issuer, "vo": name} for issuer in issuers]
    first = issuers[0]["url"]
    mappings = [{"issuer": first, **mapping} for mapping in vo.get("mappings", [])]
    exports = [{"vo": name, **export} for export in vo.get("exports", [])]
    limits = [{"vo": name, **limit} for limit in vo.get("limits", [])]
    return issuers, mappings, exports, limits


def edged_site(vos, queues=(), extra=None):
    """The tree of conf.d/site.toml. ``vos``: name → VO, in the order their mappings are tried."""
    tree = {
        "issuer": [],
        "mapping": [],
        "jobs": {"queue": list(queues), "limit": []},
        "storage": {"export": []},
    }
    for name, vo in vos.items():
        issuers, mappings, exports, limits = _of_vo(name, vo)
        tree["issuer"] += issuers
        tree["mapping"] += mappings
        tree["storage"]["export"] += exports
        tree["jobs"]["limit"] += limits
    tree["jobs"] = {key: value for key, value in tree["jobs"].items() if value}
    tree["storage"] = {key: value for key, value in tree["storage"].items() if value}
    return {key: value for key, value in {**tree, **(extra or {})}.items() if value}


def edged_accounts(vos):
    """Every account the mappings name, sorted."""
    return sorted({mapping["account"] for vo in vos.values() for mapping in vo.get("mappings", [])})


class FilterModule:
    """What Ansible looks for."""

    def filters(self):
        return {"edged_site": edged_site, "edged_accounts": edged_accounts}
