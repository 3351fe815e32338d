"""How far the source of a document can be trusted: tiers of sources that experts write down."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, model_validator

from data_prep.curation.selection.fields import Document, text_field
from data_prep.curation.strict_yaml import Location, read_strict, refuse

Name = Annotated[str, Field(pattern=r"\S")]
Score = Annotated[float, Field(ge=0.0, le=1.0)]
ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*:)?//")
HOST = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)+")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DefaultTier(_Section):
    """The tier of every source that stands in no other."""

    name: Name
    score: Score


class Tier(_Section):
    """Sources that are trusted alike."""

    name: Name
    score: Score
    hosts: list[Name] = []
    """Names of hosts or domains, without `https://` and path; their subdomains belong to them."""
    sources: list[Name] = []
    """Names of publishers as the field `source` gives them; case and width do not matter."""


class SourceTiers(_Section):
    """A whitelist as experts write it: `default`, and `tiers` that share no source."""

    default: DefaultTier
    tiers: list[Tier]

    @model_validator(mode="after")
    def _every_entry_is_a_host_once(self) -> Self:
        names = {self.default.name: "the default tier"}
        hosts: dict[str, str] = {}
        sources: dict[str, str] = {}
        for number, tier in enumerate(self.tiers):
            place = ("tiers", number)
            _once((*place, "name"), tier.name, tier.name, names, f"tier {number + 1}")
            for index, entry in enumerate(tier.hosts):
                location = (*place, "hosts", index)
                host = host_of(entry)
                if host is None or host != _ascii(entry.lower()):
                    refuse(location, entry, "not a host such as 'stats.example.cn'")
                _once(location, entry, host, hosts, f"tier '{tier.name}'")
            for index, entry in enumerate(tier.sources):
                location = (*place, "sources", index)
                _once(location, entry, folded(entry), sources, f"tier '{tier.name}'")
        return self


@dataclass(frozen=True)
class Credibility:
    """The score of a document's source, and why."""

    score: float
    tier: str
    entry: str | None
    """The entry of the whitelist that matched; None for the default tier."""
    field: str | None
    """The field of the document it matched: `url` or `source`."""


class SourceList:
    """A whitelist, ready to be asked."""

    def __init__(self, tiers: SourceTiers) -> None:
        self._default = Credibility(tiers.default.score, tiers.default.name, None, None)
        self._hosts = dict(_entries(tiers, lambda tier: tier.hosts, host_of))
        self._sources = dict(_entries(tiers, lambda tier: tier.sources, folded))

    def judge(self, document: Document) -> Credibility:
        """The tier of a document: by the host of its `url`, or else by its `source`.

        A `source` is a publisher's name, or a host or URL. Of a host and its domain, both listed,
        the longer name decides.
        """
        url, source = text_field(document, "url"), text_field(document, "source")
        found = self._by_host(url, "url")
        if found is None and source and (named := self._sources.get(folded(source))):
            tier, entry = named
            found = Credibility(tier.score, tier.name, entry, "source")
        return found or self._by_host(source, "source") or self._default

    def _by_host(self, address: str | None, field: str) -> Credibility | None:
        host = host_of(address) if address else None
        while host:
            if host in self._hosts:
                tier, entry = self._hosts[host]
                return Credibility(tier.score, tier.name, entry, field)
            host = host.partition(".")[2]
        return None


def read_source_list(path: Path) -> SourceList:
    """Read a whitelist. Raises UserError with the line and field of everything wrong in it."""
    return SourceList(read_strict(path, SourceTiers))


def host_of(address: str) -> str | None:
    """The host of a URL, or of a URL without its scheme, in ASCII; None where there is none.

    >>> host_of("HTTPS://news.example.cn:443/2024/1.html")
    'news.example.cn'
    """
    try:
        host = urlsplit(address if ADDRESS.match(address) else f"//{address}").hostname
    except ValueError:
        return None
    host = _ascii((host or "").removesuffix("."))
    return host if HOST.fullmatch(host) else None


def folded(name: str) -> str:
    """A publisher's name without differences of case, width and white space around it."""
    return unicodedata.normalize("NFKC", name).casefold().strip()


def _ascii(host: str) -> str:
    try:
        return host.encode("idna").decode("ascii")
    except UnicodeError:
        return ""


def _once(location: Location, entry: str, key: str, seen: dict[str, str], here: str) -> None:
    if key in seen:
        refuse(location, entry, f"stands in {seen[key]} already")
    seen[key] = here


def _entries(
    tiers: SourceTiers, listed: Callable[[Tier], list[str]], key: Callable[[str], str | None]
) -> Iterator[tuple[str, tuple[Tier, str]]]:
    for tier in tiers.tiers:
        for entry in listed(tier):
            # A whitelist that was read holds hosts only.
            yield key(entry) or entry, (tier, entry)
