"""A folder of images by class: root/class/image.png, the class being the name of the folder."""

from __future__ import annotations

from pathlib import Path

from registry import errors
from registry.datasets import content
from registry.datasets.base import Modality
from registry.datasets.images import decode
from registry.encoders.base import Item

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


class Folder:
    """The column ``image``, and ``class``: the folder's name with spaces for underscores.

    Keys are paths relative to the root (``cat/1.png``), labels and groups the folders' names. Only files
    with one of `SUFFIXES` straight inside a class's folder count; hidden ones do not. Raises `UserError` if
    there are none, or if a symbolic link leads out of the root.
    """

    def __init__(self, path: str | Path) -> None:
        self.check(path)
        self._root = Path(path).expanduser().resolve()
        self.name = self._root.name
        files = [
            file
            for folder in sorted(self._root.iterdir())
            if self._inside(folder).is_dir() and not folder.name.startswith(".")
            for file in sorted(folder.iterdir())
            if file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and self._inside(file).is_file()
        ]
        if not files:
            raise errors.UserError(f"no images in {path}: they are looked for as class/image.png inside it")
        self.keys = [file.relative_to(self._root).as_posix() for file in files]
        self.labels = [file.parent.name for file in files]
        self.groups = self.labels
        self.columns: dict[str, Modality] = {"image": "image", "class": "text"}
        self._fingerprints: dict[str, str] = {}

    @staticmethod
    def check(path: str | Path) -> None:
        """Raise `UserError` if there is no such folder."""
        if not Path(path).expanduser().is_dir():
            raise errors.UserError(f"data set 'folder': there is no folder {path}")

    def fingerprint(self, column: str) -> str:
        """SHA-256 (hex) of the relative paths and, for images, of every file's bytes."""
        content.check_column(self.name, column, self.columns)
        if column not in self._fingerprints:
            parts = map(self._bytes, self.keys) if column == "image" else map(_words, self.labels)
            self._fingerprints[column] = content.digest(self.keys, parts)
        return self._fingerprints[column]

    def read(self, column: str, index: int) -> Item:
        """The picture, or the name of its class. Raises `BadItem` if the file cannot be read or decoded."""
        content.check_column(self.name, column, self.columns)
        key = self.keys[index]
        return decode(key, self._bytes(key)) if column == "image" else content.text(key, _words(self.labels[index]))

    def _bytes(self, key: str) -> bytes:
        try:
            return (self._root / key).read_bytes()
        except OSError as error:
            raise errors.BadItem(key, f"its file cannot be read ({error.strerror})") from error

    def _inside(self, path: Path) -> Path:
        if path.is_symlink() and not path.resolve().is_relative_to(self._root):
            raise errors.UserError(f"{path} is a link that leads out of {self._root}: not followed")
        return path


def _words(label: str) -> str:
    return label.replace("_", " ")
