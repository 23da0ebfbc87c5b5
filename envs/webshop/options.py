"""The options of the WebShop environment, checked before anything is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from envs.base import unknown_options
from envs.webshop import nouns
from envs.webshop.catalogue import CATALOGUES, CatalogueFiles
from envs.webshop.goals import HUMAN, SYNTHETIC

OFFICIAL, CORRECTED = "official", "corrected"
AUTOMATIC = "auto"
_CHOICES: Mapping[str, Sequence[str]] = {
    "catalogue": tuple(CATALOGUES),
    "goals": (SYNTHETIC, HUMAN),
    "reward": (OFFICIAL, CORRECTED),
    "nouns": (AUTOMATIC, nouns.SPACY, nouns.APPROXIMATE),
}


@dataclass(frozen=True)
class ShopOptions:
    """`env.data` and `env.options` of WebShop.

    data: the folder of the official files. cache: the folder of what is made of them once; empty: `<data>/cache`.
    catalogue: small (the files ending in _1000) or full. goals: synthetic (made of products' attributes and options) or
    human (items_human_ins.json). seed: of prices, upper prices and the goals' order. validation_goals: how many goals
    are held out. nouns: auto takes spaCy where its model is installed. reward: corrected repairs the comparison of
    options (reward.judge).
    """

    data: str
    cache: str = ""
    catalogue: str = "small"
    goals: str = SYNTHETIC
    seed: int = 233
    validation_goals: int = 500
    nouns: str = AUTOMATIC
    reward: str = OFFICIAL

    @property
    def files(self) -> CatalogueFiles:
        return CatalogueFiles.of(Path(self.data), self.catalogue)

    @property
    def cache_folder(self) -> Path:
        return Path(self.cache) if self.cache else Path(self.data) / "cache"

    @property
    def noun_method(self) -> str:
        """spacy or approximate."""
        if self.nouns != AUTOMATIC:
            return self.nouns
        return nouns.SPACY if nouns.has_spacy() else nouns.APPROXIMATE


def option_faults(options: Mapping[str, Any]) -> list[str]:
    """Unknown names, values out of range, and official files that are not in `data`."""
    known = asdict(ShopOptions(data=""))
    faults = unknown_options(options, known=tuple(known))
    values = {**known, **options}
    for name, choices in _CHOICES.items():
        if values[name] not in choices:
            faults.append(f"env.options.{name}={values[name]!r} is unknown; set it to one of {', '.join(choices)}")
    for name, lowest in (("seed", 0), ("validation_goals", 1)):
        if isinstance(values[name], bool) or not isinstance(values[name], int) or values[name] < lowest:
            faults.append(f"env.options.{name}={values[name]!r} is not a whole number from {lowest} on")
    if values["nouns"] == nouns.SPACY and not nouns.has_spacy():
        faults.append(f"env.options.nouns=spacy needs spacy and {nouns.SPACY_MODEL}; install them or set approximate")
    if values["catalogue"] in CATALOGUES:
        files = CatalogueFiles.of(Path(str(values["data"])), values["catalogue"])
        faults += [
            f"env.data={values['data']!r} has no file {path.name}; set env.data to the folder of WebShop's files, "
            "or make some by tools.make_webshop_catalogue"
            for path in files.paths
            if not path.is_file()
        ]
    return faults
