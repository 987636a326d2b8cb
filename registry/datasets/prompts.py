"""Class names put into sentences: the texts whose embeddings become a class's prototype."""

from __future__ import annotations

from collections.abc import Sequence

from registry import errors
from registry.datasets import content
from registry.datasets.base import Modality
from registry.encoders.base import Item


class Prompts:
    """The column ``prompt``: every label in every template, in the order given, labels first.

    The key of label ``cat`` in the first template is ``cat|0``; ``labels`` has the class of each item, so
    that it is len(labels) * len(templates) long. Raises `UserError` for a template without ``{}`` and for
    duplicate or empty labels.
    """

    name = "prompts"

    def __init__(self, labels: Sequence[str], templates: Sequence[str]) -> None:
        for template in templates:
            if "{}" not in template:
                raise errors.UserError(f"the template '{template}' has no {{}} where the class name goes")
        for label in labels:
            if not label.strip():
                raise errors.UserError("a class name is empty")
        repeated = [label for place, label in enumerate(labels) if label in labels[:place]]
        if repeated:
            raise errors.UserError(f"the class name '{repeated[0]}' is there twice")
        pairs = [(label, place) for label in labels for place in range(len(templates))]
        self.keys = [f"{label}|{place}" for label, place in pairs]
        content.check_keys(self.name, self.keys)
        self.labels = [label for label, _ in pairs]
        self.groups = self.labels
        self.columns: dict[str, Modality] = {"prompt": "text"}
        self._texts = [templates[place].replace("{}", label) for label, place in pairs]

    def fingerprint(self, column: str) -> str:
        """SHA-256 (hex) of the keys and of the prompts."""
        content.check_column(self.name, column, self.columns)
        return content.digest(self.keys, self._texts)

    def read(self, column: str, index: int) -> Item:
        """One prompt."""
        content.check_column(self.name, column, self.columns)
        return self._texts[index]
