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
        parameters_sha256: `digest` of the parameters that the file of a network holds; None where it is not known.
    """

    path: str
    url: str
    sha256: str
    size: int
    licence: str
    citation: str
    parameters_sha256: str | None = None

    @property
    def file_name(self) -> str:
        """The last part of `path`."""
        return self.path.rsplit("/", 1)[-1]


def torchvision(file: str, sha256: str, *, size: int, citation: str, parameters_sha256: str | None = None) -> Official:
    """A file of torchvision's, by its name."""
    url = f"https://download.pytorch.org/models/{file}"
    return Official(file, url, sha256, size, "BSD-3-Clause", citation, parameters_sha256)
