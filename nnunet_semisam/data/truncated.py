"""Finds what SimpleITK reads as 0 without a word: the missing end of cut-off NIfTI files, NaN and infinite voxels."""

from __future__ import annotations

import gzip
import io
import math
import os
import struct
import zlib
from collections.abc import Sequence

import numpy as np

CHUNK = 1 << 22
HEADER = 352
FLOATS = {16: 4, 64: 8}  # NIfTI's code: bytes


def truncation_problems(files: Sequence[str]) -> list[str]:
    """One sentence per `.nii` or `.nii.gz` file that ends too early; other formats are left to their readers.

    Reads the file once. NIfTI-1: sides in bytes 40 to 55, bits per voxel in 72, start of the voxels in 108
    (https://nifti.nimh.nih.gov/nifti-1).
    """
    problems = []
    for file in files:
        if not file.endswith((".nii", ".nii.gz")) or not os.path.isfile(file):
            continue  # not for us, or for the reader to say
        try:
            size, header = _length(file)
        except (EOFError, OSError, zlib.error) as error:
            problems.append(f"{file}: the file is cut off or damaged ({error}); copy it again.")
            continue
        wanted = _wanted(header)
        if wanted is not None and size < wanted:
            problems.append(f"{file}: {size} bytes where its header promises {wanted}: it is cut off; copy it again.")
    return problems


def _length(file: str) -> tuple[int, bytes]:
    """Number of (uncompressed) bytes and the first `HEADER` of them."""
    with _opened(file) as stream:
        size = len(header := stream.read(HEADER))
        wanted = _wanted(header) or 0
        try:
            while chunk := stream.read(min(CHUNK, wanted - size) if size < wanted else CHUNK):
                size += len(chunk)
        except gzip.BadGzipFile as error:  # no second archive after the first, but other bytes: readers do not mind
            if size < max(1, wanted) or "Not a gzipped file" not in str(error):
                raise
    return size, header


def _opened(file: str) -> gzip.GzipFile | io.BufferedReader:
    """The uncompressed bytes; a name that ends in .gz may be all that is compressed about it, as for readers."""
    with open(file, "rb") as stream:
        compressed = stream.read(2) == b"\x1f\x8b"
    return gzip.GzipFile(file) if compressed else open(file, "rb")


def not_finite_files(files: Sequence[str]) -> list[str]:
    """Those NIfTI files that hold NaN or infinite values; each is read once."""
    return [file for file in files if _has_not_finite(file)]


def _has_not_finite(file: str) -> bool:
    """Data type in bytes 70 and 71 of the header: 16 and 64 are floating-point numbers of 4 and 8 bytes."""
    if (found := nifti_header(file)) is None:
        return False
    order, header = found
    (kind,), (start,) = struct.unpack_from(f"{order}h", header, 70), struct.unpack_from(f"{order}f", header, 108)
    if kind not in FLOATS or not math.isfinite(start):
        return False
    with _opened(file) as stream:
        stream.seek(int(start))
        left = _voxels(order, header) * FLOATS[kind]
        while chunk := stream.read(min(CHUNK, left)):
            left -= len(chunk)
            whole = len(chunk) // FLOATS[kind] * FLOATS[kind]
            if not np.isfinite(np.frombuffer(chunk[:whole], f"{order}f{FLOATS[kind]}")).all():
                return True
    return False


def nifti_header(file: str) -> tuple[str, bytes] | None:
    """Byte order ("<" or ">") and header of a NIfTI-1 file; None if it is another kind of file, or damaged."""
    if not file.endswith((".nii", ".nii.gz")) or not os.path.isfile(file):
        return None
    try:
        with _opened(file) as stream:
            header = stream.read(HEADER)
    except (EOFError, OSError, zlib.error):
        return None
    order = _byte_order(header)
    return None if order is None else (order, header)


def _byte_order(header: bytes) -> str | None:
    fits = [order for order in "<>" if len(header) >= 348 and struct.unpack_from(f"{order}i", header)[0] == 348]
    return fits[0] if fits else None


def _wanted(header: bytes) -> int | None:
    """The size that a NIfTI-1 header promises; None if it is another kind of file."""
    order = _byte_order(header)
    if order is None:
        return None
    (bits,) = struct.unpack_from(f"{order}h", header, 72)
    (start,) = struct.unpack_from(f"{order}f", header, 108)
    if not math.isfinite(start):
        return None
    return int(start) + _voxels(order, header) * bits // 8


def _voxels(order: str, header: bytes) -> int:
    """As readers count them: a side of less than 1 is 1."""
    dims = struct.unpack_from(f"{order}8h", header, 40)
    return math.prod(max(1, side) for side in dims[1 : 1 + max(0, dims[0])])
