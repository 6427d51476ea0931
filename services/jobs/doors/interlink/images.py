"""Which image a container means, and whether the site lets it be used. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from edged.config.doors import Runtime
from edged.errors import BadRequest, Denied

_REFERENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]{0,511}")
_SCHEMES = {"podman": ("docker",), "apptainer": ("docker", "oras", "library", "shub")}
_ARCHIVE = {"podman": "tar", "apptainer": "sif"}


@dataclass(frozen=True, slots=True)
class Image:
    """``file`` on the node, or ``reference`` (``docker://…``) with a ``cached`` file that goes before it."""

    file: str = ""
    reference: str = ""
    cached: str = ""


def resolve(image: str, root: str, runtime: Runtime) -> Image:
    """The image to run. ``root``: the image-root annotation. Raises BadRequest and Denied."""
    if runtime.kind == "none":
        return Image()
    if not image:
        raise BadRequest("a container without an image")
    scheme, name = _named(image, root, runtime)
    if name.startswith("/"):
        _check(name[1:], image)
        if ":" in name:  # podman would take what follows for a name inside the archive
            raise BadRequest(f"not a file of an image: {image[:128]!r}")
        _allow(name, image, runtime)
        return Image(file=name)
    _check(name, image)
    if scheme not in _SCHEMES[runtime.kind]:
        raise BadRequest(f"image {image[:128]!r}: {scheme}:// is not possible with {runtime.kind} here")
    _allow(name if scheme == "docker" else f"{scheme}://{name}", image, runtime)
    cached = (
        f"{runtime.image_cache}/{cache_name(name)}.{_ARCHIVE[runtime.kind]}" if runtime.image_cache else ""
    )
    return Image(reference=f"{scheme}://{name}", cached=cached)


def cache_name(name: str) -> str:
    """The image's file in the cache, without its ending: ``docker.io/library/alpine+3.20``.

    Archives with a colon in their name are read by no tool; a plus is in no name of an image.
    """
    return name.replace("@", "+").replace(":", "+")


def _named(image: str, root: str, runtime: Runtime) -> tuple[str, str]:
    """Scheme and name; a name that is a path begins with a slash."""
    if image.startswith("/"):
        return "", image
    if "://" in image:
        scheme, _, name = image.partition("://")
        return scheme, name
    if not root and _has_registry(image):
        return "docker", image
    prefix = root or runtime.image_prefix
    return (
        _named(prefix + image, "", runtime)
        if prefix.startswith("/") or "://" in prefix
        else ("docker", prefix + image)
    )


def _has_registry(image: str) -> bool:
    """Docker's rule: the first part is a host when it has a dot or a port, or is localhost."""
    first, slash, _ = image.partition("/")
    return bool(slash) and ("." in first or ":" in first or first == "localhost")


def _check(name: str, image: str) -> None:
    if not _REFERENCE.fullmatch(name) or ".." in name.split("/"):
        raise BadRequest(f"not an image: {image[:128]!r}")


def _allow(name: str, image: str, runtime: Runtime) -> None:
    if not any(name.startswith(prefix) for prefix in runtime.images):
        raise Denied(f"the site does not run image {image[:128]!r}")
