"""From policy to table, and from table to table."""

from __future__ import annotations

import ipaddress
from datetime import datetime
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from edged.config import parse
from edged.egress import job_environment
from edged.egress.policy import Policy
from edged.identity.words import JobId
from services.egress.netd import ruleset
from services.egress.netd.table import Table, changes

NOON = datetime(2026, 3, 4, 12, 0)


def table(**egress: Any) -> Table:
    config = parse({"site": {"name": "T"}, "egress": {**BASE, **egress}}).egress
    assert config is not None and config.nat is not None
    return ruleset.table(Policy(config), config.nat, NOON)


BASE: dict[str, Any] = {
    "nat": {"inside": ["ib0"]},
    "source": [
        {"name": "nodes", "networks": ["10.0.0.0/8"]},
        {"name": "cms-nodes", "networks": ["10.1.0.0/16"], "vo": "cms"},
    ],
    "destination": [
        {"name": "a", "networks": ["192.0.2.0/24"], "hosts": ["x.org", "*.y.org"]},
        {"name": "b", "networks": ["198.51.100.0/24"]},
    ],
}
RULE = {"name": "r", "to": ["a"]}


def test_no_rule_no_way_out() -> None:
    made = table()
    assert made.chains["decide"].rules == ()
    assert made.chains["outbound"].rules[-1] == "goto refuse"


def test_sources_are_disjoint_as_the_proxys_are() -> None:
    made = table(rule=[{**RULE, "vos": ["cms"]}])
    assert made.sets["src4_cms_dnodes"].elements == frozenset(("10.1.0.0/16",))
    nodes = made.sets["src4_nodes"].elements or frozenset()
    cms = ipaddress.ip_network("10.1.0.0/16")
    assert not any(ipaddress.ip_network(text).overlaps(cms) for text in nodes)
    assert all("@src4_cms_dnodes" in rule for rule in made.chains["decide"].rules if rule.startswith("ip "))


def test_jobs_and_windows_say_nothing_to_nat_when_closed() -> None:
    assert table(rule=[{**RULE, "jobs": ["7"]}]).chains["decide"].rules == ()
    assert table(rule=[{**RULE, "window": {"start": "20:00", "until": "06:00"}}]).chains["decide"].rules == ()
    assert table(rule=[{**RULE, "ways": ["proxy"]}]).chains["decide"].rules == ()


def test_nothing_changes_nothing() -> None:
    assert changes(table(rule=[RULE]), table(rule=[RULE])) == []


def test_one_more_destination_is_one_element() -> None:
    more = [
        {**BASE["destination"][0], "networks": ["192.0.2.0/24", "203.0.113.0/24"]},
        BASE["destination"][1],
    ]
    assert changes(table(rule=[RULE]), table(rule=[RULE], destination=more)) == [
        "add element inet edged net4_a { 203.0.113.0/24 }"
    ]


def test_counters_and_accounts_are_not_touched() -> None:
    done = changes(table(rule=[RULE]), table(rule=[{**RULE, "to": ["a", "b"], "connections": 5}]))
    assert not any(word in line for line in done for word in (" out4", " in4", "counter inet edged rule_r"))
    assert not any(line.startswith("delete table") for line in done)


def test_numbers_of_marks_outlive_a_new_rule() -> None:
    def marks(*rules: dict[str, Any]) -> dict[str, int]:
        config = parse({"site": {"name": "T"}, "egress": {**BASE, "rule": list(rules)}}).egress
        assert config is not None
        return {pair.rule.name: pair.number for pair in ruleset.passings(Policy(config))}

    before, after = marks(RULE), marks({"name": "first", "to": ["b"]}, RULE)
    assert after["r"] == before["r"] and after["first"] != after["r"]


def test_closed_keeps_everything_but_the_way_out() -> None:
    config = parse({"site": {"name": "T"}, "egress": {**BASE, "rule": [RULE]}}).egress
    assert config is not None and config.nat is not None
    shut = ruleset.closed(Policy(config), config.nat, NOON)
    assert shut.chains["outbound"].rules == ("goto refuse",)
    assert shut.sets == table(rule=[RULE]).sets


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(8, 32)), max_size=40))
def test_merging_is_what_ipaddress_says(pairs: list[tuple[int, int]]) -> None:
    nets = [ipaddress.IPv4Network((number >> (32 - n) << (32 - n), n)) for number, n in pairs]
    wanted = {str(net).removesuffix("/32") for net in ipaddress.collapse_addresses(nets)}
    assert ruleset._of(4, nets) == wanted


@given(st.sampled_from("_-."), st.text("ab_-.", max_size=6), st.text("ab_-.", max_size=6))
def test_names_stay_different(_sep: str, one: str, two: str) -> None:
    assert (ruleset.word(one) == ruleset.word(two)) == (one == two)


def test_job_environment_carries_the_pass_and_goes_around() -> None:
    config = parse(
        {
            "site": {"name": "T"},
            "egress": {"listen": ["10.1.0.1:3128"], "no_proxy": [".site.org", "10.0.0.0/8"]},
        }
    )
    told = job_environment(config, JobId("01j/x"), "to:ken@", "edge.site.org")
    assert told["HTTPS_PROXY"] == told["https_proxy"] == "http://01j%2Fx:to%3Aken%40@edge.site.org:3128"
    assert told["NO_PROXY"] == "localhost,127.0.0.1,::1,edge.site.org,.site.org,10.0.0.0/8"
    assert told["EDGED_SOCKS_PROXY"].startswith("socks5h://")
    assert job_environment(parse({"site": {"name": "T"}}), JobId("1"), "t", "h") == {}
