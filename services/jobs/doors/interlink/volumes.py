"""Volumes of a pod: which files they hold, which directories of the node they are. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from edged.errors import BadRequest, Denied
from services.jobs.doors.interlink.contents import Content, Contents, check_path
from services.jobs.doors.interlink.environment import pod_field, resource_field
from services.jobs.doors.interlink.names import check_label
from services.jobs.doors.interlink.pods import Container, FilesSource, Item, Mount, Pod, Volume

OWNER_ONLY = 0o700


@dataclass(frozen=True, slots=True)
class VolumeFile:
    """One file of a volume, made on the node with ``mode``."""

    path: str
    content: bytes
    mode: int


@dataclass(frozen=True, slots=True)
class PlannedVolume:
    """``host``: a directory of the node; else a directory of the session with ``files`` in it."""

    name: str
    files: tuple[VolumeFile, ...] = ()
    host: str = ""


@dataclass(frozen=True, slots=True)
class PlannedMount:
    """Where a container sees a volume, or a part of it."""

    volume: str
    path: str
    sub_path: str
    read_only: bool


def volumes(pod: Pod, contents: Contents, host_paths: Sequence[str]) -> list[PlannedVolume]:
    """All volumes that a container mounts. Raises BadRequest and Denied."""
    known = {volume.name: volume for volume in pod.spec.volumes or ()}
    used = {m.name for c in (*pod.init_containers, *pod.containers) for m in c.volume_mounts or ()}
    return [_volume(pod, known[name], contents, host_paths) for name in known if name in used]


def _volume(pod: Pod, volume: Volume, contents: Contents, host_paths: Sequence[str]) -> PlannedVolume:
    name = check_label(volume.name, "volume")
    if volume.host_path is not None:
        return PlannedVolume(name, host=allowed_host(volume.host_path.path, host_paths))
    if volume.empty_dir is not None:
        return PlannedVolume(name)
    if volume.config_map is not None:
        source = volume.config_map
        return PlannedVolume(name, _files(name, source, contents.config_maps.get(source.name), ~0))
    if volume.secret is not None:
        source = volume.secret
        secret = contents.secrets.get(source.secret_name)
        return PlannedVolume(name, _files(name, source, secret, OWNER_ONLY))
    if name in contents.projected:  # service account tokens, and downward API as of interLink 0.6.2
        return PlannedVolume(name, _whole(contents.projected[name], volume.projected, OWNER_ONLY))
    if volume.downward_api is not None:
        return PlannedVolume(name, _downward(pod, volume.downward_api))
    if volume.projected is not None:
        raise BadRequest(f"volume {name}: its projected files did not come with the pod")
    raise BadRequest(f"volume {name}: this kind of volume does not exist here")


def _whole(content: Content, source: object, mask: int) -> tuple[VolumeFile, ...]:
    mode = _mode(getattr(source, "default_mode", None), mask)
    return tuple(VolumeFile(path, value, mode) for path, value in content.items())


def _mode(mode: int | None, mask: int) -> int:
    """Kubernetes' mode, for nobody but the account where ``mask`` says so; the account can always read."""
    return ((0o644 if mode is None else mode) & 0o777 & mask) | 0o400


def _files(name: str, source: FilesSource, content: Content | None, mask: int) -> tuple[VolumeFile, ...]:
    if content is None:
        if source.optional:
            return ()
        raise BadRequest(f"volume {name}: its ConfigMap or Secret did not come with the pod")
    if not source.items:
        return _whole(content, source, mask)
    return tuple(
        _item(name, source, item, content, mask) for item in source.items if _there(item, source, content)
    )


def _there(item: Item, source: FilesSource, content: Content) -> bool:
    return item.key in content or not source.optional


def _item(name: str, source: FilesSource, item: Item, content: Content, mask: int) -> VolumeFile:
    if item.key not in content:
        raise BadRequest(f"volume {name}: no key {item.key[:64]!r}")
    mode = _mode(source.default_mode if item.mode is None else item.mode, mask)
    return VolumeFile(check_path(item.path), content[item.key], mode)


def _downward(pod: Pod, source: FilesSource) -> tuple[VolumeFile, ...]:
    files = []
    for item in source.items or ():
        value: str | None = None
        if item.field_ref is not None:
            value = pod_field(pod, item.field_ref.field_path)
        elif item.resource_field_ref is not None:
            ref = item.resource_field_ref
            container = next((c for c in pod.containers if c.name == ref.container_name), None)
            value = resource_field(container, ref.resource) if container else None
        if value is None:
            raise BadRequest(f"file {item.path[:64]!r} of the downward API is not known here")
        mode = _mode(source.default_mode if item.mode is None else item.mode, ~0)
        files.append(VolumeFile(check_path(item.path), value.encode(), mode))
    return tuple(files)


def mounts(container: Container, planned: Sequence[PlannedVolume]) -> list[PlannedMount]:
    """What a container sees where. Raises BadRequest."""
    known = {volume.name for volume in planned}
    if container.volume_devices:
        raise BadRequest(f"container {container.name}: block devices do not exist here")
    return [_mount(container, mount, known) for mount in container.volume_mounts or ()]


def _mount(container: Container, mount: Mount, known: set[str]) -> PlannedMount:
    if mount.name not in known:
        raise BadRequest(f"container {container.name}: no volume {mount.name[:64]!r}")
    if mount.sub_path_expr:
        raise BadRequest(f"container {container.name}: subPathExpr is not possible here")
    target = check_target(mount.mount_path)
    sub_path = check_path(mount.sub_path.strip("/")) if mount.sub_path else ""
    return PlannedMount(mount.name, target, sub_path, bool(mount.read_only))


def check_target(path: str) -> str:
    """Where something is mounted: absolute, plain, and nothing a mount option could be made of."""
    if not path.startswith("/"):
        path = f"/{path}"
    if any(c in ":,\\" or not c.isprintable() for c in path) or ".." in path.split("/") or len(path) > 1024:
        raise BadRequest(f"not a place to mount: {path[:64]!r}")
    return path


def allowed_host(path: str, allowed: Sequence[str]) -> str:
    """A path of the node beneath one the site allows. Raises Denied. Links are the account's own risk."""
    plain = check_target(path)
    if path.startswith("/") and any(PurePosixPath(plain).is_relative_to(one) for one in allowed):
        return plain
    raise Denied(f"the site does not let pods mount {path[:64]!r} of its nodes")
