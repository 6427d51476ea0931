"""X.509: proxies of proxies, expired, revoked, independent, forged and foreign ones; bans; delegations."""

from __future__ import annotations

import asyncio
import ssl
from datetime import timedelta

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tests.real.doors.arc.fixtures import ALICE, ArcSite
from tests.support.gridca import INDEPENDENT, NOW, Credential, GridCa, limited, proxy

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def status(arc: ArcSite, credential: Credential) -> tuple[int, str]:
    """What a caller with this credential is told; 0 when the handshake already refuses it."""
    try:
        async with arc.http(None, credential) as rest, rest.session.get(f"{rest.base}/jobs") as answer:
            return answer.status, answer.reason or ""
    except (aiohttp.ClientConnectionError, ssl.SSLError) as error:
        return 0, str(error)


async def test_the_owner_and_proxies_of_any_depth_are_alice(arc: ArcSite) -> None:
    first = proxy(arc.alice)
    for credential in (arc.alice, first, proxy(proxy(first)), limited(first)):
        assert (await status(arc, credential))[0] == 200


async def test_a_subject_the_site_does_not_know(arc: ArcSite) -> None:
    assert await status(arc, proxy(arc.grid.user("mallory"))) == (
        403,
        "your certificate's subject is not known at this site",
    )


async def test_proxies_that_prove_nothing(arc: ArcSite) -> None:
    assert (await status(arc, proxy(arc.alice, hours=-1)))[0] == 0
    assert (await status(arc, proxy(arc.alice, policy=INDEPENDENT)))[0] == 403
    victim = x509.Name([*arc.alice.certificate.subject, *list(arc.alice.certificate.subject)[-1:]])
    forged = proxy(arc.grid.user("mallory"), subject=victim)  # named after alice, signed by mallory
    assert (await status(arc, forged))[0] in (0, 403)


async def test_mallory_may_not_show_alices_certificate_in_her_chain(arc: ArcSite) -> None:
    mine = proxy(arc.grid.user("mallory"))
    mixed = Credential(mine.certificate, mine.key, (arc.alice.certificate, *mine.chain))
    assert (await status(arc, mixed))[0] in (0, 403)


async def test_another_ca_of_the_same_name(arc: ArcSite) -> None:
    other = GridCa(arc.site.root / "other", "Test Grid CA")
    assert (await status(arc, proxy(other.user("alice"))))[0] == 0


async def test_nobody_at_all(arc: ArcSite) -> None:
    async with arc.http(None) as rest:
        await rest.call("GET", "/jobs", 403)
        assert (await rest.call("GET", "", 404)) is not None
        async with rest.session.get(rest.base.rpartition("/")[0]) as answer:
            assert await answer.json() == {"version": ["1.0", "1.1"]}


async def test_a_token_goes_before_a_certificate(arc: ArcSite) -> None:
    async with arc.http(arc.site.token("compute.read"), arc.alice) as rest:
        await rest.call("POST", "/jobs?action=new", 403, data=b"&(executable=/bin/true)")


async def test_a_revoked_certificate_and_its_proxies_are_refused(arc: ArcSite) -> None:
    """Last of its kind: the list is read again within seconds, so a new connection must see it."""
    bob = arc.grid.user("alice")  # the same subject, another certificate
    assert (await status(arc, proxy(bob)))[0] == 200
    arc.grid.revoked.append(bob.certificate.serial_number)
    arc.grid.crl()
    async with asyncio.timeout(45):
        while (await status(arc, proxy(bob)))[0] != 403:
            await asyncio.sleep(1)
    assert (await status(arc, proxy(arc.alice)))[0] == 200


# -- delegations ------------------------------------------------------------------------------------------


async def delegate(rest: object, owner: Credential, **more: object) -> tuple[str, int]:
    """Ask, sign, send; the id and the status of the last step."""
    call = rest.session  # type: ignore[attr-defined]
    base = rest.base  # type: ignore[attr-defined]
    async with call.post(f"{base}/delegations?action=new") as answer:
        assert answer.status == 201
        assert "location" in {name.decode() for name, _ in answer.raw_headers}  # arc_gahp compares case
        name = answer.headers["location"].rpartition("/")[2]
        csr = x509.load_pem_x509_csr(await answer.read())
    assert csr.is_signature_valid
    signed = _sign(csr, owner, **more)  # type: ignore[arg-type]
    async with call.put(f"{base}/delegations/{name}", data=signed) as answer:
        return name, answer.status


def _sign(csr: x509.CertificateSigningRequest, owner: Credential, *, hours: float = 12) -> bytes:
    template = proxy(owner, hours=hours)
    builder = x509.CertificateBuilder().subject_name(template.certificate.subject)
    builder = builder.issuer_name(owner.certificate.subject).public_key(csr.public_key())
    builder = builder.serial_number(template.certificate.serial_number)
    builder = builder.not_valid_before(NOW - timedelta(days=2)).not_valid_after(NOW + timedelta(hours=hours))
    for extension in template.certificate.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    made = builder.sign(owner.key, template.certificate.signature_hash_algorithm)  # type: ignore[arg-type]
    chain = (made, owner.certificate, *owner.chain)
    return b"".join(one.public_bytes(Encoding.PEM) for one in chain)


async def test_a_delegation_from_request_to_deletion(arc: ArcSite) -> None:
    mine = proxy(arc.alice)
    async with arc.http(None, mine) as rest:
        name, answer = await delegate(rest, mine)
        assert answer == 200
        assert {"id": name, "type": "x509"} in (await rest.call("GET", "/delegations"))["delegation"]
        assert "BEGIN CERTIFICATE" in await rest.call("POST", f"/delegations/{name}?action=get")
        assert "PRIVATE" not in await rest.call("POST", f"/delegations/{name}?action=get")
        renewed = await rest.call("POST", f"/delegations/{name}?action=renew", 201)
        signed = _sign(x509.load_pem_x509_csr(renewed.encode()), mine)
        await rest.call("PUT", f"/delegations/new/{name}", data=signed)
        await rest.call("POST", f"/delegations/{name}?action=delete", 202)
        await rest.call("POST", f"/delegations/{name}?action=get", 404)


async def test_delegations_that_are_refused(arc: ArcSite) -> None:
    mine = proxy(arc.alice)
    async with arc.http(None, mine) as rest, arc.http() as other:
        name, answer = await delegate(rest, mine, hours=-1)
        assert answer == 400
        (row,) = await rest.submit(f'&(executable=/bin/true)(delegationid="{name}")')
        assert row["status-code"] == "500" and "not finished" in row["reason"]
        _, answer = await delegate(rest, proxy(arc.grid.user("mallory")))
        assert answer == 400  # somebody else's identity
        await rest.call("PUT", f"/delegations/{name}", 400, data=b"garbage")
        await rest.call("PUT", f"/delegations/{name}", 413, data=b"-" * 300_000)
        await rest.call("PUT", "/delegations/nosuch", 404, data=mine.pem())
        await other.call("PUT", f"/delegations/{name}", 404, data=b"x")  # another principal, same account
        (row,) = await other.submit(f'&(executable=/bin/true)(delegationid="{name}")')
        assert row["status-code"] == "500" and "no such delegation" in row["reason"]


async def test_a_renewed_proxy_reaches_the_running_job(arc: ArcSite) -> None:
    mine = proxy(arc.alice)
    script = 'cp "$X509_USER_PROXY" first; while cmp -s "$X509_USER_PROXY" first; do sleep 0.1; done'
    async with arc.http(None, mine) as rest:
        name, _ = await delegate(rest, mine)
        (row,) = await rest.submit(
            f"&(executable=/bin/sh)(arguments=-c '{script}')(stdout=o)(runtimeenvironment=ENV/PROXY)"
            f"(delegationid={name})"
        )
        await rest.reached(row["id"], ("RUNNING",))
        assert (await rest.act("delegations", row["id"]))[0]["delegation_id"] == [name]
        async with asyncio.timeout(20):
            while "first" not in (await rest.call("GET", f"/jobs/{row['id']}/session/"))["file"]:
                await asyncio.sleep(0.1)
        renewed = await rest.call("POST", f"/delegations/{name}?action=renew", 201)
        await rest.call(
            "PUT", f"/delegations/{name}", data=_sign(x509.load_pem_x509_csr(renewed.encode()), mine)
        )
        assert await rest.reached(row["id"]) == "FINISHED"
        await rest.call("GET", f"/jobs/{row['id']}/session/.edged/proxy.pem", 404)


async def test_a_banned_subject_is_out_within_a_second(arc: ArcSite) -> None:
    carol = arc.grid.user("alice")
    async with arc.http(None, proxy(carol)) as rest:
        (row,) = await rest.submit("&(executable=/bin/sleep)(arguments=100)")
        await rest.reached(row["id"], ("RUNNING",))
        admin = arc.site.token(groups=("/cms", "/site/admins"))
        async with arc.site.api("identity-api", admin) as identity:
            ban = await identity.call("POST", "/v1/bans", body={"issuer": "edged:jobs", "subject": ALICE})
            try:
                async with asyncio.timeout(3):
                    while True:
                        async with rest.session.get(f"{rest.base}/jobs") as answer:
                            if answer.status == 403:
                                break
                        await asyncio.sleep(0.05)
            finally:
                await identity.call("DELETE", f"/v1/bans/{ban['id']}")
        async with arc.http() as other:
            assert await other.reached(row["id"], ("KILLED",)) == "KILLED"
