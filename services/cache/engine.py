"""From a request to its answer: routes it, and hands it to the CVMFS or the web side."""

from __future__ import annotations

import asyncio
import time

from services.cache.accesslog import hot_text
from services.cache.answers import Answer
from services.cache.cvmfs import Cvmfs
from services.cache.repositories import CvmfsRoute, Route, Routes, WebRoute
from services.cache.requests import Refused, Request
from services.cache.residents import Hot, Resident, Residents
from services.cache.traffic import Outcome, Traffic
from services.cache.web import Web


class Engine:
    """What the listener asks."""

    def __init__(
        self, routes: Routes, residents: Residents, cvmfs: Cvmfs, web: Web, pseudonym: bytes
    ) -> None:
        self.routes = routes
        self.residents = residents
        self._cvmfs = cvmfs
        self._web = web
        self._pseudonym = pseudonym

    def start(self, tasks: asyncio.TaskGroup) -> None:
        """Work that outlives a request runs in ``tasks``."""
        self._cvmfs.start(tasks)
        self._web.start(tasks)

    def route(self, request: Request) -> Route:
        """Where the request goes. Raises Refused."""
        if self._pseudonym in request.fields.values.get(b"via", b""):
            raise Refused(403, "the request has passed this cache before")
        return self.routes.of(request)

    def quick(self, route: Route, request: Request) -> Hot | None:
        """The answer to a plain GET if it can go out at once; its request line is remembered."""
        match route:
            case CvmfsRoute(repository=repository):
                resident, traffic = self._cvmfs.at_hand(route), repository.traffic
            case WebRoute(destination=destination):
                resident, traffic = self._web.at_hand(route), destination.traffic
        if resident is None or resident.expires <= time.time():
            return None
        return self.remember(request, resident, traffic)

    async def answer(self, route: Route, request: Request) -> Answer:
        """The answer to any request. Raises EdgeError."""
        match route:
            case CvmfsRoute():
                return await self._cvmfs.answer(route, request)
            case WebRoute():
                return await self._web.answer(route, request)

    def remember(self, request: Request, resident: Resident, traffic: Traffic) -> Hot:
        """Answer this very request line from ``resident`` from now on."""
        outcome = Outcome.MEMORY if resident.body is not None else Outcome.DISK
        hot = Hot(resident, traffic, hot_text(request.line, resident.size, outcome))
        self.residents.remember(request.line, hot)
        return hot


def traffic_of(route: Route) -> Traffic:
    """Whose figures a request counts in."""
    return route.repository.traffic if isinstance(route, CvmfsRoute) else route.destination.traffic
