"""First match decides, nothing matches is no; windows, words and limits."""

from __future__ import annotations

import ipaddress
from datetime import datetime
from typing import Any

import pytest

from edged.config import parse, warnings
from edged.config.egress import EgressRule, Way, Window
from edged.egress.destinations import HostSet, Place
from edged.egress.outcomes import Outcome
from edged.egress.policy import Asker, Policy, window_open
from edged.errors import ConfigError
from services.egress.limits import Meter, Meters

CMS = Asker("cms-nodes", "10.1.0.5", vo="cms", account="cmsprd", job_class="production", job="7")
ATLAS = Asker("nodes", "10.2.0.5", vo="atlas")
NOON = datetime(2026, 3, 4, 12, 0)  # a Wednesday


def policy(*rules: dict[str, Any]) -> Policy:
    egress = {
        "source": [
            {"name": "nodes", "networks": ["10.0.0.0/8"]},
            {"name": "cms-nodes", "networks": ["10.1.0.0/16"], "vo": "cms"},
        ],
        "destination": [
            {"name": "cern", "hosts": ["*.cern.ch", "cern.ch"], "ports": [443, "9000-9100"]},
            {"name": "net", "networks": ["192.0.2.0/24", "2001:db8::/32"], "ports": [443]},
            {"name": "bad", "networks": ["192.0.2.66/32"], "ports": ["1-65535"]},
        ],
        "rule": list(rules),
    }
    config = parse({"site": {"name": "T"}, "egress": egress}).egress
    assert config is not None
    return Policy(config)


def place(host: str = "", address: str = "192.0.2.1", port: int = 443) -> Place:
    return Place(host, ipaddress.ip_address(address), port)


def test_default_is_no() -> None:
    assert policy().decide(CMS, Way.PROXY, place(), NOON).outcome is Outcome.NO_RULE


def test_first_match_decides_on_the_address() -> None:
    both = policy({"name": "no", "action": "refuse", "to": ["bad"]}, {"name": "yes", "to": ["net", "cern"]})
    assert both.decide(CMS, Way.PROXY, place(), NOON).allowed
    said = both.decide(CMS, Way.PROXY, place("www.cern.ch", "192.0.2.66"), NOON)
    assert (said.outcome, said.rule, said.destination) == (Outcome.RULE, "no", "bad")


@pytest.mark.parametrize(
    ("words", "asker", "allowed"),
    [
        ({"vos": ["cms"]}, CMS, True),
        ({"vos": ["cms"]}, ATLAS, False),
        ({"sources": ["cms-nodes"]}, CMS, True),
        ({"sources": ["cms-nodes"]}, ATLAS, False),
        ({"accounts": ["cmsprd"], "classes": ["production"]}, CMS, True),
        ({"accounts": ["cmsprd"], "classes": ["pilot"]}, CMS, False),
        ({"jobs": ["7"]}, CMS, True),
        ({"jobs": ["8"]}, CMS, False),
        ({"ways": ["nat"]}, CMS, False),
    ],
)
def test_who(words: dict[str, Any], asker: Asker, allowed: bool) -> None:
    assert (
        policy({"name": "r", "to": ["net"], **words}).decide(asker, Way.PROXY, place(), NOON).allowed
        == allowed
    )


def test_observe_passes_and_says_so() -> None:
    said = policy({"name": "learn", "action": "observe", "to": ["net"]}).decide(CMS, Way.PROXY, place(), NOON)
    assert said.allowed and said.outcome is Outcome.OBSERVED


def test_the_most_specific_source_is_asked() -> None:
    found = policy()
    assert found.source_of(ipaddress.ip_address("10.1.2.3")) is found._sources["cms-nodes"]
    assert found.source_of(ipaddress.ip_address("::ffff:10.2.0.1")) is found._sources["nodes"]
    assert found.source_of(ipaddress.ip_address("192.0.2.1")) is None


def test_names_nobody_may_reach_are_not_looked_up() -> None:
    named = policy({"name": "r", "to": ["cern"]})
    assert named.may_resolve(CMS, Way.PROXY, "www.cern.ch", 443, NOON).allowed
    assert not named.may_resolve(CMS, Way.PROXY, "www.example.org", 443, NOON).allowed
    assert not named.may_resolve(CMS, Way.PROXY, "www.cern.ch", 22, NOON).allowed


@pytest.mark.parametrize(
    ("host", "inside"),
    [
        ("cern.ch", True),
        ("a.b.cern.ch", True),
        ("xcern.ch", False),
        ("cern.ch.evil.org", False),
        ("ch", False),
    ],
)
def test_host_patterns_go_by_label(host: str, inside: bool) -> None:
    assert (host in HostSet(["cern.ch", "*.cern.ch"])) == inside


def test_a_pattern_alone_does_not_hold_its_parent() -> None:
    assert "cern.ch" not in HostSet(["*.cern.ch"])


@pytest.mark.parametrize(
    ("window", "moment", "is_open"),
    [
        ({"start": "08:00", "until": "18:00"}, NOON, True),
        ({"start": "20:00", "until": "06:00"}, NOON, False),
        ({"start": "20:00", "until": "06:00"}, NOON.replace(hour=23), True),
        ({"start": "20:00", "until": "06:00"}, NOON.replace(hour=5), True),
        ({"start": "20:00", "until": "06:00", "days": ["tue"]}, NOON.replace(hour=5), True),
        ({"start": "20:00", "until": "06:00", "days": ["wed"]}, NOON.replace(hour=5), False),
        ({"days": ["wed"]}, NOON, True),
    ],
)
def test_windows(window: dict[str, Any], moment: datetime, is_open: bool) -> None:
    assert window_open(Window.model_validate(window), moment) == is_open


def test_configuration_names_what_is_wrong() -> None:
    with pytest.raises(ConfigError) as caught:
        policy({"name": "r", "to": ["nowhere"], "sources": ["nobody"]})
    assert "rule[0].to: no [[egress.destination]] is named 'nowhere'" in str(caught.value)
    assert "rule[0].sources" in str(caught.value)


class Clock:
    """Time that only a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def rule(**words: Any) -> EgressRule:
    return EgressRule.model_validate({"name": "r", "to": ["x"], **words})


def test_rate_fills_with_time() -> None:
    clock = Clock()
    meter = Meter(rule(rate=100_000), clock)
    assert meter.allowance(1 << 20) == 100_000
    meter.moved(100_000)
    assert meter.allowance(1 << 20) == 0
    clock.now += 0.5
    assert meter.allowance(1 << 20) == 50_000


def test_quota_ends_and_begins_again() -> None:
    clock = Clock()
    meter = Meter(rule(quota=1000, quota_s=60), clock)
    meter.moved(meter.allowance(5000))
    assert meter.exhausted and meter.refuses() is not None
    clock.now += 61
    assert meter.refuses() is None


def test_setups_per_second() -> None:
    clock = Clock()
    meter = Meter(rule(connects_per_s=2), clock)
    assert [meter.refuses() is None for _ in range(3)] == [True, True, False]
    clock.now += 0.5
    assert meter.refuses() is None


def test_meters_are_per_subject_and_forgotten_when_idle() -> None:
    clock = Clock()
    meters = Meters((rule(connections=1, per="job"),), clock)
    one = meters.of("r", CMS)
    assert one is meters.of("r", CMS) and one is not meters.of("r", ATLAS)
    assert meters.of("other", CMS) is None
    meters.sweep()
    assert one is not meters.of("r", CMS)


def test_check_warns_of_the_unwise() -> None:
    egress = {
        "inside": ["127.0.0.0/8"],
        "nat": {"inside": ["ib0"]},
        "destination": [{"name": "d", "hosts": ["*.cern.ch"]}],
        "rule": [{"name": "r", "to": ["d"]}],
    }
    told = "\n".join(warnings(parse({"site": {"name": "T"}, "egress": egress})))
    assert "egress.inside[0]: 127.0.0.0/8" in told and "egress.destination[0].hosts: NAT" in told
