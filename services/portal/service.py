"""Wiring of the portal: the figures it keeps, who may see them, one listener."""

from __future__ import annotations

from edged.config import Config
from edged.http.server import HttpServer
from edged.identity.client import IdentityClient
from edged.identity.words import ServiceName
from edged.lifecycle import Service
from edged.services import Context
from edged.tls import ServerTls
from services.portal.figures import Figures
from services.portal.front import PortalFront
from services.portal.oidc import Provider
from services.portal.sessions import admin_token

NAME = ServiceName("portal")


def build(config: Config, context: Context) -> list[Service]:
    """The services of [portal]; none when it is not configured."""
    if config.portal is None:
        return []
    settings = config.portal
    figures = Figures(config, settings)
    provider = Provider(settings.oidc, config.tls, settings.url) if settings.oidc is not None else None
    identity = IdentityClient(config, NAME) if provider is not None else None
    front = PortalFront(
        config,
        settings,
        figures,
        admin_token=admin_token(settings.admin_token_file),
        provider=provider,
        unbanned=identity.require_unbanned if identity is not None else None,
    )
    if identity is not None:
        identity.on_ban(front.banned)
    server = HttpServer(
        NAME,
        settings,
        front.handle,
        tls=ServerTls(config.tls) if settings.tls else None,
        inherited=context.inherited.get(NAME),
        stop_deadline_s=config.runtime.stop_deadline_s,
    )
    return [*([identity] if identity is not None else []), figures, server]
