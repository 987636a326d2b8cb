"""The 1000 classes of ImageNet as items: what a classifier over them calls its rows. No image is needed."""

from __future__ import annotations

import runpy
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from registry import errors
from registry.datasets import content
from registry.datasets.base import Modality
from registry.encoders.base import Item

_PACKAGES = {"timm": "timm", "open_clip": "open_clip_torch"}


class ImagenetClasses:
    """The classes of ImageNet-1k in the order of every classifier's outputs; keys are WordNet ids (``n01440764``).

    Columns, all texts: ``name``, one in plain English (open_clip's; two of them stand for two classes each);
    ``definition``, the WordNet synonyms and definition (timm's); ``wnid``, the key itself, which the encoder
    ``classifier-rows`` takes.
    """

    name = "imagenet-classes"
    labels = None
    groups = None
    columns: dict[str, Modality] = dict.fromkeys(("name", "definition", "wnid"), "text")

    def __init__(self) -> None:
        self.check()
        self.keys = list(wnids())
        synonyms, definitions = _table("imagenet_synset_to_lemma.txt"), _table("imagenet_synset_to_definition.txt")
        # Run by itself, this file of lists spares the import of the package, which imports torch.
        names = runpy.run_path(str(_package("open_clip") / "zero_shot_metadata.py"))["IMAGENET_CLASSNAMES"]
        self._texts = {
            "name": list(names),
            "definition": [f"{synonyms[key]}: {definitions[key]}" for key in self.keys],
            "wnid": self.keys,
        }

    @staticmethod
    def check() -> None:
        """Raise `MissingPackage` if a package that carries the texts is not installed."""
        for module in _PACKAGES:
            _package(module)

    def fingerprint(self, column: str) -> str:
        """SHA-256 (hex) of the keys and of the column's texts."""
        content.check_column(self.name, column, self.columns)
        return content.digest(self.keys, self._texts[column])

    def read(self, column: str, index: int) -> Item:
        """One text."""
        content.check_column(self.name, column, self.columns)
        return self._texts[column][index]


@cache
def wnids() -> tuple[str, ...]:
    """The WordNet id of each class, by class index. Raises `MissingPackage` without timm."""
    return tuple(_info("imagenet_synsets.txt").split())


def _table(file: str) -> dict[str, str]:
    return dict(line.split("\t", 1) for line in _info(file).splitlines())


def _info(file: str) -> str:
    return (_package("timm") / "data" / "_info" / file).read_text("utf-8")


def _package(module: str) -> Path:
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise errors.MissingPackage("data set 'imagenet-classes'", _PACKAGES[module], "models")
    return Path(spec.submodule_search_locations[0])
