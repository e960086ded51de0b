"""Files that are written whole and read back: JSON with a schema's name and version."""

import errno
import os
from pathlib import Path
from typing import TypeVar

import msgspec

Content = TypeVar("Content")


class _Header(msgspec.Struct):
    schema: str
    schema_version: str


def encode(content: msgspec.Struct) -> bytes:
    """Return the content as indented JSON with a final newline."""
    return msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n"


def decode(data: bytes, kind: type[Content], schema: str, version: str) -> Content:
    """Decode the content of a file.

    Args:
        data: the file.
        kind: what it holds.
        schema: name of the schema that it must have.
        version: of the reader; another major version is refused.

    Raises:
        ValueError: it is not JSON, of another schema, or of another major version.
    """
    header = msgspec.json.decode(data, type=_Header)
    if header.schema != schema:
        raise ValueError(f"schema is {header.schema!r}, not {schema!r}")
    if header.schema_version.split(".")[0] != version.split(".")[0]:
        raise ValueError(f"schema version {header.schema_version} is not readable by {version}")
    return msgspec.json.decode(data, type=kind)


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` by `data` in one step, leaving no temporary file behind."""
    temporary = _temporary(path)
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def probe(path: Path) -> None:
    """Find out whether `write_target` can write, before there is anything to write.

    Raises:
        OSError: it cannot.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "it is a folder")
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, "it is read-only")
    if not _is_stream(path):
        temporary = _temporary(path.resolve())
        temporary.touch()
        temporary.unlink()


def write_target(path: Path, data: bytes, *, last: bool) -> None:
    """Write a version of a file that a user has named.

    A link is followed. A device or a pipe is written once, with the last version.
    """
    if not _is_stream(path):
        write_atomic(path.resolve(), data)
    elif last:
        path.write_bytes(data)


def why(error: OSError) -> str:
    """Return why a file could not be read or written, as part of a sentence."""
    return (error.strerror or str(error)).lower()


def _is_stream(path: Path) -> bool:
    return path.exists() and not path.is_file()


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")
