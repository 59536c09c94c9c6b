"""The data of finished runs, compared with the published sizes: what a caption says of incomplete data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from reproduce.data import inventory
from reproduce.data.inventory import NUM_IMAGES
from reproduce.report.observe import Finished
from reproduce.spec import Pretrain, Spec


def tag_of(prefix: str, spec: Spec, split: str) -> str:
    """Return the name of the tag of a run about a split; a pretraining has only one."""
    return inventory.tag(prefix, "" if isinstance(spec, Pretrain) else split)


def incomplete(specs: Iterable[Spec], finished: Mapping[str, Finished]) -> list[str]:
    """Return a phrase for each split that did not have exactly the published images in a finished run."""
    found: dict[str, None] = {}
    for spec in specs:
        facts = finished[spec.id].facts if spec.id in finished else {}
        for split in spec.splits:
            number = facts.get(tag_of(NUM_IMAGES, spec, split))
            found[inventory.shortfall(spec.dataset, split, None if number is None else int(number))] = None
    return [phrase for phrase in found if phrase]
