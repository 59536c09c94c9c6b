"""Records of runs from the tracking store, for the report and for the pages of runs.

publish(..., records=records_of(store, site))
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import pkgutil
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from reproduce import identity
from reproduce.data import inventory
from reproduce.messages import UNPRINTABLE
from reproduce.nn import compiled
from reproduce.report.record import Records, RunRecord
from reproduce.settings import Settings
from reproduce.site import Site
from reproduce.tracking.errors import StoreError
from reproduce.tracking.portable import PortableRun
from reproduce.tracking.tags import ATTEMPTS, ENCODER, TRAINED

if TYPE_CHECKING:
    from reproduce.tracking.store import Store


LOG, MOST_LOG = "log.txt", 20_000
"""Name of a run's log in its folder, and the maximum number of its last bytes on the run's page."""
COMPONENTS = ("reproduce.data", "reproduce.methods", "reproduce.protocols")
"""Packages whose modules define settings; the other classes are imported by these."""


def records_of(store: Store, site: Site) -> Records:
    """Return the function that reads records, each once, and those of the pretrainings upstream."""
    known: dict[str, RunRecord | None] = {}

    def records(ids: Iterable[str]) -> Mapping[str, RunRecord | None]:
        found: dict[str, RunRecord | None] = {}
        wanted = sorted(set(ids), reverse=True)
        while wanted:
            spec_id = wanted.pop()
            if spec_id not in known:
                try:
                    known[spec_id] = record(
                        store.portable(spec_id), _address(store, spec_id), _log(site, spec_id)
                    )
                except StoreError:
                    continue
                except (LookupError, ValueError):
                    known[spec_id] = None
            found[spec_id] = known[spec_id]
            needs = getattr(found[spec_id], "needs", "")
            wanted += [needs] if needs and needs not in found else []
        return found

    return records


def _address(store: Store, spec_id: str) -> str:
    """Return the address of a run's page on a tracking server; empty if the store is a file."""
    found = store.record_of(spec_id) if store.connection.server else None
    return found.address if found else ""


def _log(site: Site, spec_id: str) -> str:
    """Return the last lines of a run's log without this machine's folders; empty if this machine has none."""
    try:
        with (site.runs / spec_id / LOG).open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - MOST_LOG))
            text = file.read(MOST_LOG).decode("utf-8", "replace")
    except OSError:
        return ""
    lines = text.splitlines()[size > MOST_LOG :]
    return site.without_places("\n".join(UNPRINTABLE.sub("", line) for line in lines))


def record(run: PortableRun, address: str = "", log: str = "") -> RunRecord:
    """Return the part of a portable record that pages show."""
    paths = dict(_leaves(run.settings))
    attempts = run.tags.get(ATTEMPTS, "")
    return RunRecord(
        spec_id=run.spec_id,
        title=run.name,
        is_pretraining=run.is_pretraining,
        started=run.started,
        ended=run.ended,
        attempts=int(attempts) if attempts.isdecimal() else None,
        commit=run.tags.get("commit", "unknown"),
        dirty=run.tags.get("dirty") == "True",
        settings={path: _text(value) for path, (value, _) in paths.items()},
        changed=frozenset(path for path, (_, changed) in paths.items() if changed),
        final=dict(sorted(run.final.items())),
        histories=dict(sorted(run.histories.items())),
        environments=[run.environments[name] for name in sorted(run.environments, key=_attempt)],
        facts={
            key: value
            for key, value in sorted(run.tags.items())
            if key in (ENCODER, TRAINED, compiled.TAG) or key.startswith(inventory.PREFIXES)
        },
        needs=run.needs or "",
        address=address,
        log=log,
    )


def _attempt(name: str) -> int:
    """Return the number of the attempt whose environment has this name: `environment-2.json`."""
    return int("".join(filter(str.isdecimal, name)) or 1)


def _leaves(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, tuple[Any, bool]]]:
    """Yield every setting by its dotted path, with True if it differs from the default of its class."""
    defaults = _defaults(str(settings.get("component")))
    for key, value in settings.items():
        if key == "component":
            continue
        changed = key not in defaults or defaults[key] != value
        if isinstance(value, dict):
            component = value.get("component")
            known = defaults.get(key)
            yield f"{prefix}{key}", (component, not known or known.get("component") != component)
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", (value, changed)


def _defaults(component: str) -> Mapping[str, Any]:
    """Return the defaults of a settings class as JSON data; empty if no loaded class has that name."""
    cls: Any = _class(component)
    fields = dataclasses.fields(cls) if cls else ()
    return {
        field.name: identity.canonical(field.default)
        for field in fields
        if field.default is not dataclasses.MISSING
    }


@cache
def _class(component: str) -> Any:
    """Return the settings class of that name; None if there is none.

    Most are loaded with the table. The others are looked for in all components, which takes seconds.
    """
    return _loaded().get(component) or _all_components().get(component)


@cache
def _all_components() -> Mapping[str, type]:
    """Return every settings class by its name, after all components are imported."""
    for package in COMPONENTS:
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
            importlib.import_module(f"{package}.{module.name}")
    return _loaded()


def _loaded() -> Mapping[str, type]:
    return {vars(cls)["name"]: cls for cls in _below(Settings) if "name" in vars(cls)}


def _below(cls: type[Any]) -> Iterator[type[Any]]:
    for each in cls.__subclasses__():
        yield each
        yield from _below(each)


def _text(value: object) -> str:
    return "none" if value is None else str(value)
