"""RFC 9111 as tables: what is kept, for how long, and when it may still be used."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.cache import freshness
from services.cache.freshness import Stored

T0 = 1_800_000_000.0
DATE = "Fri, 15 Jan 2027 08:00:00 GMT"  # T0
HOUR_EARLIER = "Fri, 15 Jan 2027 07:00:00 GMT"
HOUR_LATER = "Fri, 15 Jan 2027 09:00:00 GMT"


def stored(status: int = 200, received: float = T0, **headers: str) -> Stored:
    pairs = [(name.replace("_", "-"), value) for name, value in headers.items()]
    return Stored(b"h/x", status, pairs, received, received, "", 0)


@pytest.mark.parametrize(
    ("status", "response", "request_fields", "keeps"),
    [
        (200, {"cache-control": "max-age=60"}, {}, True),
        (200, {}, {}, True),
        (302, {}, {}, False),
        (302, {"cache-control": "max-age=60"}, {}, True),
        (500, {"cache-control": "max-age=60"}, {}, False),
        (206, {"cache-control": "max-age=60"}, {}, False),
        (200, {"cache-control": "no-store"}, {}, False),
        (200, {"cache-control": "private, max-age=60"}, {}, False),
        (200, {"cache-control": "public", "set-cookie": "a=b"}, {}, False),
        (200, {"cache-control": "public, max-age=60"}, {"authorization": "Bearer x"}, False),
        (200, {"cache-control": "public, max-age=60"}, {"cookie": "a=b"}, False),
        (200, {"vary": "*"}, {}, False),
        (200, {"cache-control": "max-age=60"}, {"cache-control": "no-store"}, False),
        (404, {}, {}, True),
    ],
)
def test_what_is_kept(
    status: int, response: dict[str, str], request_fields: dict[str, str], keeps: bool
) -> None:
    assert freshness.storable(status, response, request_fields) is keeps


@pytest.mark.parametrize(
    ("answer", "seconds"),
    [
        (stored(cache_control="max-age=60"), 60),
        (stored(cache_control="max-age=60, s-maxage=5"), 5),
        (stored(cache_control='max-age="60"'), 60),
        (stored(cache_control="max-age=-1"), 0),
        (stored(cache_control="max-age=\xb2"), 0),
        (stored(cache_control="max-age=99999999999"), 365 * 86400),
        (stored(date=DATE, expires=HOUR_LATER), 3600),
        (stored(date=DATE, expires="0"), 0),
        (stored(date=DATE, expires=HOUR_EARLIER), 0),
        (stored(date=DATE, last_modified=HOUR_EARLIER), 360),
        (stored(date=DATE), 0),
        (stored(404), 10),
        (stored(404, cache_control="max-age=3"), 3),
    ],
)
def test_lifetimes(answer: Stored, seconds: float) -> None:
    assert freshness.lifetime_s(answer, negative_s=10) == seconds


def test_age_counts_from_the_source() -> None:
    assert freshness.birth(stored(date=HOUR_EARLIER)) == T0 - 3600
    assert freshness.birth(stored(date=DATE, x_edged_age="7")) == T0 - 7
    assert freshness.fresh_until(stored(date=DATE, cache_control="no-cache, max-age=60"), 10) == 0


@pytest.mark.parametrize(
    ("request_fields", "age", "anew"),
    [
        ({}, 50, False),
        ({"cache-control": "no-cache"}, 0, True),
        ({"pragma": "no-cache"}, 0, True),
        ({"pragma": "no-cache", "cache-control": "max-age=60"}, 50, False),
        ({"cache-control": "max-age=0"}, 1, True),
        ({"cache-control": "max-age=60"}, 61, True),
    ],
)
def test_what_a_client_may_insist_on(request_fields: dict[str, str], age: float, anew: bool) -> None:
    assert freshness.asks_anew(request_fields, age) is anew


@pytest.mark.parametrize(
    ("request_fields", "fields", "same"),
    [
        ({"if-none-match": '"a"'}, {"etag": '"a"'}, True),
        ({"if-none-match": 'W/"a", "b"'}, {"etag": 'W/"b"'}, True),
        ({"if-none-match": '"c"'}, {"etag": '"a"'}, False),
        ({"if-none-match": "*"}, {}, True),
        ({"if-none-match": '"c"', "if-modified-since": DATE}, {"etag": '"a"', "last-modified": DATE}, False),
        ({"if-modified-since": DATE}, {"last-modified": DATE}, True),
        ({"if-modified-since": HOUR_EARLIER}, {"last-modified": DATE}, False),
        ({"if-modified-since": "rubbish"}, {"last-modified": DATE}, False),
        ({"if-modified-since": DATE}, {}, False),
    ],
)
def test_conditions_of_clients(request_fields: dict[str, str], fields: dict[str, str], same: bool) -> None:
    assert freshness.not_modified(request_fields, fields) is same


@pytest.mark.parametrize(
    ("control", "seconds"),
    [("", 9), ("must-revalidate", 0), ("stale-if-error=5", 5), ("no-cache", 0), ("s-maxage=1", 0)],
)
def test_how_long_stale_may_stand_in(control: str, seconds: float) -> None:
    assert freshness.stale_allowed_s(stored(cache_control=control), 9) == seconds


def test_fields_of_one_hop_go_no_further() -> None:
    headers = [("Connection", "X-Mine"), ("X-Mine", "1"), ("Keep-Alive", "5"), ("ETag", "x"), ("TE", "y")]
    assert freshness.end_to_end(headers) == [("ETag", "x")]


def test_variants_differ_by_what_vary_names() -> None:
    names = freshness.vary({"vary": "Accept-Encoding, Accept"})
    assert names == ("accept", "accept-encoding")
    one = freshness.variant(b"k", names, {"accept-encoding": "gzip"})
    assert one != freshness.variant(b"k", names, {})
    assert one == freshness.variant(b"k", names, {"accept-encoding": " gzip ", "user-agent": "x"})


def test_a_304_renews_the_fields_it_brings() -> None:
    old = stored(etag='"a"', cache_control="max-age=1", content_type="text/plain")
    new = freshness.refreshed(old, [("Cache-Control", "max-age=99"), ("Content-Type", "lie")], T0 + 5, T0 + 6)
    assert new.fields()["cache-control"] == "max-age=99"
    assert new.fields()["content-type"] == "text/plain"
    assert new.received == T0 + 6


@given(st.text(max_size=100))
def test_no_text_breaks_the_parsers(text: str) -> None:
    freshness.directives(text)
    freshness.http_date(text)
    freshness.lifetime_s(stored(cache_control=text, expires=text, date=text, last_modified=text), 10)
