"""Weight files as their authors publish them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Official:
    """A file as its authors publish it.

    Attributes:
        path: its place in a folder that is laid out like the original, where it is looked for.
        url: where it is downloaded from.
        sha256: of the file.
        size: in bytes.
        licence: under which its authors published it.
        citation: the publication to cite when the file is used.
    """

    path: str
    url: str
    sha256: str
    size: int
    licence: str
    citation: str

    @property
    def file_name(self) -> str:
        """The last part of `path`."""
        return self.path.rsplit("/", 1)[-1]


def torchvision(file: str, sha256: str, *, size: int, citation: str) -> Official:
    """A file of torchvision's, by its name."""
    return Official(file, f"https://download.pytorch.org/models/{file}", sha256, size, "BSD-3-Clause", citation)
