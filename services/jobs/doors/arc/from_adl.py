"""What an EMI-ES activity description (ADL, with ARC's additions) wishes for. Pure.

The XML may come from anybody: no document types and no entities, and its size is bounded before. Elements
are told by their local name. The language's own rule for what a service does not know: an element with
``optional="true"`` is left out (and noted), any other is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from xml.etree.ElementTree import Element, ParseError, tostring

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from edged.errors import BadRequest, EdgeError
from services.jobs.doors.arc.times import period
from services.jobs.doors.arc.wish import Environment, Wish

MAX_ELEMENTS = 200_000
_ACCESS = {"inbound": {"inbound"}, "outbound": {"outbound"}, "inoutbound": {"inbound", "outbound"}}

Take = Callable[[Wish, Element], None]


def wishes(text: bytes) -> list[tuple[Wish | EdgeError, str]]:
    """One outcome for each description, with its own text. Raises BadRequest for what is no ADL."""
    try:
        root = fromstring(text, forbid_dtd=True)
    except DefusedXmlException:
        raise BadRequest("XML with a document type or entities is refused") from None
    except (ParseError, ValueError, LookupError) as error:
        raise BadRequest(f"not well-formed XML: {error}") from None
    if sum(1 for _ in root.iter()) > MAX_ELEMENTS:
        raise BadRequest(f"more than {MAX_ELEMENTS} XML elements")
    if local(root) == "ActivityDescription":
        return [(_tried(root), text.decode("utf-8", "replace"))]
    if local(root) != "ActivityDescriptions":
        raise BadRequest(f"an ActivityDescription is expected, not {local(root)[:64]!r}")
    found = [(_tried(one), tostring(one, encoding="unicode")) for one in root]
    if not found:
        raise BadRequest("no ActivityDescription in it")
    return found


def local(element: Element) -> str:
    """The name without its namespace."""
    return str(element.tag).rpartition("}")[2]


def _tried(element: Element) -> Wish | EdgeError:
    try:
        if local(element) != "ActivityDescription":
            raise BadRequest(f"an ActivityDescription is expected, not {local(element)[:64]!r}")
        wish = Wish()
        _each(wish, element, _SECTIONS)
        if not wish.executable:
            raise BadRequest("Executable/Path: missing")
        return wish
    except EdgeError as error:
        return error


def _each(wish: Wish, parent: Element, known: Mapping[str, Take]) -> None:
    for child in parent:
        take = known.get(local(child))
        if take is not None:
            try:
                take(wish, child)
            except BadRequest:
                if not _optional(child):
                    raise
                wish.notes.append(f"ADL {local(child)}: optional, and not possible here")
        elif _optional(child):
            wish.notes.append(f"ADL {local(child)}: optional, and not known here")
        else:
            raise BadRequest(f"{local(parent)}/{local(child)[:64]}: this site does not know the element")


def _optional(element: Element) -> bool:
    return element.get("optional", "").lower() in ("true", "1")


def _text(element: Element) -> str:
    return (element.text or "").strip()


def _child(element: Element, name: str) -> str:
    found = next((child for child in element if local(child) == name), None)
    return _text(found) if found is not None else ""


def _section(known: Callable[[], Mapping[str, Take]]) -> Take:
    return lambda wish, element: _each(wish, element, known())


def _word(field: str) -> Take:
    return lambda wish, element: setattr(wish, field, _text(element))


def number(element: Element) -> int:
    """A whole number of at most 18 digits. Raises BadRequest."""
    text = _text(element)
    if not text.isdecimal() or len(text) > 18:
        raise BadRequest(f"{local(element)}: not a number: {text[:32]!r}")
    return int(text)


def _count(field: str) -> Take:
    return lambda wish, element: setattr(wish, field, number(element))


def _true(element: Element) -> bool:
    text = _text(element).lower()
    if text not in ("true", "false", "1", "0"):
        raise BadRequest(f"{local(element)}: true or false")
    return text in ("true", "1")


def _note(wish: Wish, element: Element) -> None:
    wish.notes.append(f"ADL {local(element)}: no meaning here")


def _refuse(wish: Wish, element: Element) -> None:
    raise BadRequest(f"{local(element)}: not supported here")


def _executable(wish: Wish, element: Element) -> None:
    wish.executable = _child(element, "Path")
    wish.arguments = tuple(child.text or "" for child in element if local(child) == "Argument")
    for child in element:
        if local(child) == "FailIfExitCodeNotEqualTo" and _text(child) != "0":
            raise BadRequest("FailIfExitCodeNotEqualTo: only 0 counts as success here")
        if local(child) not in ("Path", "Argument", "FailIfExitCodeNotEqualTo"):
            raise BadRequest(f"Executable/{local(child)[:64]}: this site does not know the element")


def _variable(wish: Wish, element: Element) -> None:
    name = _child(element, "Name")
    value = next((child.text or "" for child in element if local(child) == "Value"), "")
    wish.environment[name] = value


def _wipe(wish: Wish, element: Element) -> None:
    wish.keep_s = period(_text(element))


def _dry(_wish: Wish, element: Element) -> None:
    if _true(element):
        raise BadRequest("DryRun: not supported")


def _runtime(wish: Wish, element: Element) -> None:
    version = _child(element, "Version")
    name = _child(element, "Name")
    options = tuple(_text(child) for child in element if local(child) == "Option")
    wish.environments.append(Environment(f"{name}-{version}" if version else name, "=", options))


def _access(wish: Wish, element: Element) -> None:
    found = _ACCESS.get(_text(element).lower())
    if found is None:
        raise BadRequest("NodeAccess: inbound, outbound or inoutbound")
    wish.node_access |= found


def _slots(wish: Wish, element: Element) -> None:
    for child in element:
        match local(child):
            case "NumberOfSlots":
                wish.slots = number(child)
            case "SlotsPerHost":
                whole = child.get("useNumberOfSlots", "").lower() in ("true", "1")
                wish.slots_per_node = -1 if whole else number(child)
            case "ExclusiveExecution":
                wish.exclusive = _true(child)
            case other:
                raise BadRequest(f"SlotRequirement/{other[:64]}: this site does not know the element")
    if wish.slots_per_node < 0:
        wish.slots_per_node = wish.slots


def _parallel(wish: Wish, element: Element) -> None:
    """Only what says nothing more than the slots do."""
    kind = _child(element, "Type")
    wish.notes.append(f"ADL ParallelEnvironment {kind[:64]}: the site's batch system decides")


def _input(wish: Wish, element: Element) -> None:
    name = _named(element)
    sources = [_child(child, "URI") for child in element if local(child) == "Source"]
    wish.inputs.append((name, next((source for source in sources if source), "")))
    if any(local(child) == "IsExecutable" and _true(child) for child in element):
        wish.programs.append(name)


def _output(wish: Wish, element: Element) -> None:
    name = _named(element)
    targets = [_child(child, "URI") for child in element if local(child) == "Target"]
    wish.outputs.append((name, next((target for target in targets if target), "")))


def _named(element: Element) -> str:
    name = _child(element, "Name")
    if not name:
        raise BadRequest(f"{local(element)}: its Name is missing")
    return name


def _noted(names: str) -> Iterator[tuple[str, Take]]:
    return ((name, _note) for name in names.split())


_IDENTIFICATION: Mapping[str, Take] = {
    "Name": _word("name"),
    **dict(_noted("Description Type Annotation ActivityOldID")),
}
_APPLICATION: Mapping[str, Take] = {
    "Executable": _executable,
    "Input": _word("stdin"),
    "Output": _word("stdout"),
    "Error": _word("stderr"),
    "Environment": _variable,
    "WipeTime": _wipe,
    "DryRun": _dry,
    "Rerun": _count("reruns"),
    "PreExecutable": _refuse,
    "PostExecutable": _refuse,
    **dict(_noted("LoggingDirectory RemoteLogging ExpirationTime Notification AccessControl Account")),
    **dict(_noted("Priority CredentialService")),
}
_RESOURCES: Mapping[str, Take] = {
    "RuntimeEnvironment": _runtime,
    "ParallelEnvironment": _parallel,
    "Coprocessor": _word("coprocessor"),
    "NodeAccess": _access,
    "IndividualPhysicalMemory": _count("memory"),
    "SlotRequirement": _slots,
    "QueueName": _word("queue"),
    "IndividualCPUTime": lambda wish, element: setattr(wish, "wall_s", wish.wall_s or number(element)),
    "TotalCPUTime": _count("cpu_s"),
    "WallTime": _count("wall_s"),
    **dict(_noted("OperatingSystem Platform NetworkInfo IndividualVirtualMemory DiskSpaceRequirement")),
    **dict(_noted("RemoteSessionAccess Benchmark")),
}
_STAGING: Mapping[str, Take] = {
    "ClientDataPush": lambda wish, element: None,
    "InputFile": _input,
    "OutputFile": _output,
    "DelegationID": _word("delegation"),
}
_SECTIONS: Mapping[str, Take] = {
    "ActivityIdentification": _section(lambda: _IDENTIFICATION),
    "Application": _section(lambda: _APPLICATION),
    "Resources": _section(lambda: _RESOURCES),
    "DataStaging": _section(lambda: _STAGING),
}
