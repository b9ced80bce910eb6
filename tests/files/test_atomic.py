"""Files are whole, or as they were before."""

from pathlib import Path

import pytest

from rlpips_jax.files.atomic import replacing


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_is_replaced_when_all_is_written(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "new" / "folder" / ("x" * 255)
    for content in (b"first", b"second"):
        with replacing(path, durable=durable) as file:
            file.write(content)
            assert not path.exists() or path.read_bytes() == b"first"
        assert path.read_bytes() == content

    def interrupted() -> None:
        with replacing(path, durable=durable) as file:
            file.write(b"third")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"second"
    assert list(path.parent.iterdir()) == [path]


def test_what_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"), replacing(tmp_path / "file" / "inner") as file:
        file.write(b"")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"), replacing(tmp_path / "folder") as file:
        file.write(b"")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
