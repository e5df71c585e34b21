"""From what each file says to what is in force: which of two equal objects counts, and what a broken one leaves behind.

    readings (by file)  --assemble-->  Assembly  --changes-->  Change(section, key, value) ...
                            ^              |
                            +-- the last --+   remembers the last good state of objects that are broken now

For sound files the result depends on what they say alone, not on the order in which they came to say it.
"""

from collections.abc import Hashable, Iterable, Mapping
from types import MappingProxyType
from typing import TypeVar

import msgspec

from federation.model import Finding, Pod, PodKey, Service, ServiceExport, ServiceKey, ServicePolicy
from federation.snapshot import Change, Section
from federation.sources.annotations import NO_WISHES, Wishes, combine
from federation.sources.objects import Kind, ObjectKey, Reading, ReadObject, Value, cross_check

Objects = Mapping[ObjectKey, ReadObject]
_Key = TypeVar("_Key", bound=Hashable)


class Assembly(msgspec.Struct, frozen=True):
    """What is in force. `in_force` has the sound objects, and the last good state of broken ones.

    `claims` says, of files that could not be read whole, which objects they may still hold.
    """

    in_force: Objects = MappingProxyType({})
    findings: Mapping[str, tuple[Finding, ...]] = MappingProxyType({})
    claims: Mapping[str, frozenset[ObjectKey]] = MappingProxyType({})


NOTHING = Assembly()


def assemble(readings: Mapping[str, Reading], before: Assembly = NOTHING) -> Assembly:
    """Returns what is in force now. Of equal objects, the first sound one counts: by path, then by line.

    An object that is broken everywhere keeps its last good state as long as some file names it, or cannot be read whole
    and held it before. What no file names is gone.
    """
    ordered = [readings[where] for where in sorted(readings)]
    named: dict[ObjectKey, list[ReadObject]] = {}
    for reading in ordered:
        for read in reading.objects:
            named.setdefault(read.key, []).append(read)
    claims = {reading.where: _claims(reading, before) for reading in ordered if not reading.is_complete}
    in_force: dict[ObjectKey, ReadObject] = {}
    unusable: dict[ObjectKey, ReadObject] = {}
    findings = {reading.where: list(reading.findings) for reading in ordered}
    for key, reads in named.items():
        chosen = next((read for read in reads if not read.is_broken), None) or before.in_force.get(key)
        if chosen is not None:
            in_force[key] = _with_last_wishes(chosen, before.in_force.get(key))
        else:
            unusable[key] = reads[0]
        for read in reads:
            findings[read.where] += [*read.findings, *_duplicate(read, chosen or reads[0], reads)]
    for key in frozenset().union(*claims.values()) - named.keys():
        if key in before.in_force:
            in_force[key] = before.in_force[key]
    for finding in cross_check({**unusable, **in_force}):
        if finding.where in findings:  # the last good state of an object may be from a file that is gone
            findings[finding.where].append(finding)
    return Assembly(
        in_force=in_force,
        findings={where: tuple(sorted(found, key=_by_line)) for where, found in findings.items() if found},
        claims=claims,
    )


def removed(before: Assembly, after: Assembly) -> frozenset[ObjectKey]:
    """Returns the objects that were in force and are gone."""
    return frozenset(before.in_force.keys() - after.in_force.keys())


def changes(before: Assembly, after: Assembly) -> list[Change]:
    """Returns the differences between two assemblies as changes of the picture."""
    differences: list[Change] = []
    old, new = listing(before), listing(after)
    for section in new:
        differences += _differences(section, old[section], new[section])
    return [*differences, *_differences(Section.FINDINGS, before.findings, after.findings)]


def listing(assembly: Assembly) -> dict[Section, dict[ServiceKey | PodKey, Value | ServicePolicy]]:
    """Returns all values in force by section; the sections of findings, which have other writers too, are left out."""
    sections: dict[Section, dict[ServiceKey | PodKey, Value | ServicePolicy]] = {
        Section.SERVICES: {},
        Section.EXPORTS: {},
        Section.PODS: {},
        Section.POLICIES: dict(_policies(assembly.in_force)),
    }
    for read in assembly.in_force.values():
        match read.value:
            case Service() as service:
                sections[Section.SERVICES][service.key] = service
            case ServiceExport() as export:
                sections[Section.EXPORTS][export.key] = export
            case Pod() as pod:
                sections[Section.PODS][pod.key] = pod
            case None:
                pass
    return sections


def _policies(in_force: Objects) -> Iterable[tuple[ServiceKey, ServicePolicy]]:
    """Yields what is wished of each service: a ServiceImport has the last word before the Service of its name."""
    said = {key: read.wishes for key, read in in_force.items() if read.wishes != NO_WISHES}
    for namespace, name in {(key.namespace, key.name) for key in said}:
        of_import = said.get(ObjectKey(Kind.SERVICE_IMPORT, namespace, name), NO_WISHES)
        policy = combine(of_import, said.get(ObjectKey(Kind.SERVICE, namespace, name), NO_WISHES))
        if policy is not None:
            yield ServiceKey(namespace, name), policy


def _with_last_wishes(chosen: ReadObject, before: ReadObject | None) -> ReadObject:
    """Returns an object with its last good wishes, annotation by annotation, where the new ones are broken."""
    if not chosen.are_wishes_broken or before is None or chosen is before:
        return chosen
    now, last = chosen.wishes, before.wishes
    kept = Wishes(now.when_stale or last.when_stale, last.weights if now.weights is None else now.weights)
    return msgspec.structs.replace(chosen, wishes=kept)


def _differences(section: Section, before: Mapping[_Key, object], after: Mapping[_Key, object]) -> list[Change]:
    keys = before.keys() | after.keys()
    return [Change(section, key, after.get(key)) for key in keys if before.get(key) != after.get(key)]


def _claims(reading: Reading, before: Assembly) -> frozenset[ObjectKey]:
    held = {key for key, read in before.in_force.items() if read.where == reading.where}
    return frozenset(held | before.claims.get(reading.where, frozenset()) | {read.key for read in reading.objects})


def _duplicate(read: ReadObject, chosen: ReadObject, reads: list[ReadObject]) -> Iterable[Finding]:
    """Yields the finding about an object that another one, in this list, stands in for."""
    if read is chosen or chosen not in reads:
        return
    message = f"{read.key} is also in {chosen.where}, line {chosen.line}, and that one counts"
    yield Finding(read.where, read.line, str(read.key), "metadata.name", message, "keep one of the two")


def _by_line(finding: Finding) -> tuple[int, str, str]:
    return finding.line, finding.field, finding.message
