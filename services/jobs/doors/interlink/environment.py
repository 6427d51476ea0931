"""A container's variables and words, with Kubernetes' references resolved. Pure.

The virtual kubelet resolves most references before we see the pod. What is left over is resolved
from what came with the pod, or refused: a job must not start with half of its environment.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from edged.errors import BadRequest
from services.jobs.doors.interlink.contents import Content, Contents
from services.jobs.doors.interlink.pods import Container, EnvSource, EnvVar, KeyRef, ObjectRef, Pod

_NAME = re.compile(r"[-._a-zA-Z][-._a-zA-Z0-9]{0,255}")
_KEYED = re.compile(r"metadata\.(annotations|labels)\['([^']{1,317})'\]")
_REFERENCE = re.compile(r"\$\$|\$\(([-._a-zA-Z][-._a-zA-Z0-9]*)\)")


def environment(pod: Pod, container: Container, contents: Contents) -> dict[str, str]:
    """The variables of a container, in order. Raises BadRequest for what cannot be resolved."""
    found: dict[str, str] = {}
    for source in container.env_from or ():
        prefix = source.prefix or ""
        for ref, objects in (
            (source.config_map_ref, contents.config_maps),
            (source.secret_ref, contents.secrets),
        ):
            if ref is not None:
                found |= {prefix + key: text for key, text in _all(container, ref, objects)}
    for variable in container.env or ():
        value = _value(pod, container, variable, contents)
        if value is not None:
            found[variable.name] = expanded(value, found)
    for name, value in found.items():
        if not _NAME.fullmatch(name):
            raise BadRequest(f"container {container.name}: not a name of a variable: {name[:64]!r}")
        if "\0" in value:
            raise BadRequest(f"container {container.name}: variable {name} has a NUL byte")
    return found


def _all(container: Container, ref: ObjectRef, objects: Mapping[str, Content]) -> Iterable[tuple[str, str]]:
    content = objects.get(ref.name)
    if content is None:
        if ref.optional:
            return ()
        raise BadRequest(f"container {container.name}: envFrom {ref.name!r} did not come with the pod")
    return ((key, value.decode("utf-8", "replace")) for key, value in content.items() if _NAME.fullmatch(key))


def _value(pod: Pod, container: Container, variable: EnvVar, contents: Contents) -> str | None:
    source = variable.value_from
    if source is None or variable.value:
        return variable.value or ""
    where = f"container {container.name}: variable {variable.name[:64]}"
    for ref, objects in (
        (source.config_map_key_ref, contents.config_maps),
        (source.secret_key_ref, contents.secrets),
    ):
        if ref is not None:
            return _of_key(where, ref, objects)
    return _of_pod(where, pod, container, source)


def _of_key(where: str, ref: KeyRef, objects: Mapping[str, Content]) -> str | None:
    value = objects.get(ref.name, {}).get(ref.key)
    if value is not None:
        return value.decode("utf-8", "replace")
    if ref.optional:
        return None
    raise BadRequest(f"{where}: {ref.name!r} with key {ref.key!r} did not come with the pod")


def _of_pod(where: str, pod: Pod, container: Container, source: EnvSource) -> str:
    if source.field_ref is not None:
        value = pod_field(pod, source.field_ref.field_path)
        if value is not None:
            return value
        raise BadRequest(f"{where}: {source.field_ref.field_path[:64]!r} is not known here")
    if source.resource_field_ref is not None:
        value = resource_field(container, source.resource_field_ref.resource)
        if value is not None:
            return value
    raise BadRequest(f"{where}: its value was not resolved by the virtual kubelet")


def pod_field(pod: Pod, path: str) -> str | None:
    """A field by the downward API's path; None when this side cannot know it."""
    if keyed := _KEYED.fullmatch(path):
        words = pod.metadata.annotations if keyed[1] == "annotations" else pod.metadata.labels
        return (words or {}).get(keyed[2], "")
    simple = {
        "metadata.name": pod.metadata.name,
        "metadata.namespace": pod.metadata.namespace,
        "metadata.uid": pod.metadata.uid,
        "spec.nodeName": pod.spec.node_name or "",
        "spec.serviceAccountName": pod.spec.service_account_name or "",
        "status.podIP": pod.annotations.get("interlink.eu/pod-ip"),
        "metadata.labels": _lines(pod.metadata.labels),
        "metadata.annotations": _lines(pod.metadata.annotations),
    }
    return simple.get(path)


def resource_field(container: Container, resource: str) -> str | None:
    """``limits.cpu`` and its kin, as the container gives it."""
    which, _, name = resource.partition(".")
    needs = container.resources
    if needs is None or which not in ("limits", "requests"):
        return None
    found = ((needs.limits if which == "limits" else needs.requests) or {}).get(name)
    return None if found is None else str(found)


def _lines(words: Mapping[str, str] | None) -> str:
    """The downward API's format of labels: one ``key="value"`` a line."""
    escaped = {key: value.replace("\\", "\\\\").replace('"', '\\"') for key, value in (words or {}).items()}
    return "\n".join(f'{key}="{value}"' for key, value in sorted(escaped.items()))


def expanded(text: str, variables: Mapping[str, str]) -> str:
    """``$(NAME)`` becomes its value, ``$$`` a dollar; unknown names stay as they are."""

    def value(match: re.Match[str]) -> str:
        name = match[1]
        return "$" if name is None else variables.get(name, match[0])

    return _REFERENCE.sub(value, text)
