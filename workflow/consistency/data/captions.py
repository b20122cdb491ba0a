"""Images with captions, of a user's folder or archive."""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ..errors import StorageError
from ..files import bounds
from . import archives
from .account import Account
from .archives import IMAGE_TYPES, kind_of, of_type, reading, short, where
from .images import decode

METADATA = {"metadata.csv", "metadata.jsonl"}
TEXTS = ("text", "caption")  # keys of a caption, the first that is there


def _text(data: bytes) -> str:
    """The characters of a text file: UTF-8, or UTF-16 with its byte order mark.

    Raises:
        ValueError: another encoding.
    """
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{error}; save it as UTF-8") from error
    if "\0" in text:
        raise ValueError("holds zero bytes; allowed: UTF-8, or UTF-16 with a byte order mark")
    return text


def _lines(data: bytes) -> Iterator[str]:
    """The lines of a text file, one after the other: a file in memory takes four bytes for each character."""
    _text(data)
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    for number, line in enumerate(io.TextIOWrapper(io.BytesIO(data), "utf-16" if wide else "utf-8-sig", newline=""), 1):
        if len(line) > bounds.ROW:
            raise ValueError(f"line {number}: {len(line):,} characters, allowed: at most {bounds.ROW:,}")
        yield line


def _rows(lines: Iterator[str], table: bool) -> Iterator[dict[str, Any]]:
    """The rows of a metadata.csv or metadata.jsonl."""
    if not table:
        yield from (json.loads(line) for line in lines if line.strip())
        return
    rows = (fields for fields in csv.reader(lines, strict=True) if fields)
    header = next(rows, [])
    if len(set(header)) < len(header):
        raise ValueError(f"a column stands twice in {', '.join(header)}; allowed: once")
    for number, fields in enumerate(rows, 1):
        if len(fields) != len(header):
            raise ValueError(
                f"row {number}: {len(fields)} fields, the header has {len(header)}; put a caption with commas in quotes"
            )
        yield dict(zip(header, fields, strict=True))


def _metadata(data: bytes, archive: Path, name: str, account: Account) -> Iterator[tuple[str, str]]:
    """File name and caption of each row of a metadata.csv or metadata.jsonl."""
    unused: set[str] = set()
    with reading(where(archive, name)):
        for number, row in enumerate(_rows(_lines(data), name.endswith(".csv")), 1):
            key = next((key for key in TEXTS if key in row), None)
            if key is None or not isinstance(row[key], str) or not isinstance(row.get("file_name"), str):
                raise ValueError(f"row {number} without file_name and text; allowed: file_name, and text or caption")
            unused |= row.keys() - {"file_name", key}
            yield row["file_name"], row[key]
    for key in sorted(unused):
        account.remark("columns that are not used", f"{short(archive, name)}: {key}")


def _caption(image: str, beside: dict[str, bytes | None]) -> str:
    """The caption beside an image of a webdataset: its .txt, else `caption` or `text` in its .json."""
    with reading(image):
        if "txt" in beside:
            return _text(beside["txt"]).strip()
        entry = json.loads(_text(beside.get("json", b"{}")))
        caption = entry.get("caption", entry.get("text"))
        if not isinstance(caption, str):
            raise ValueError("no caption beside it; allowed: .txt, or .json with caption or text")
        return caption


def _pairs(archive: Path, account: Account) -> Iterator[tuple[str, bytes, str]]:
    """Name, encoded image and caption of each captioned image, in the archive's order."""
    beside = {"txt", "json"} if archives.is_tar(archive) else set()

    def is_table(name: str) -> bool:
        return PurePosixPath(name).name in METADATA

    listed = dict(archives.members(archive, lambda name: is_table(name) or kind_of(name) in beside, account))
    texts: dict[str, str] = {}
    for name in filter(is_table, listed):
        for file, text in _metadata(listed[name], archive, name, account):
            path = str(PurePosixPath(name).parent / file)
            if path in texts:
                raise StorageError(f"{where(archive, name)}: {file} has two captions, allowed: one")
            texts[path] = text
    if absent := sorted(texts.keys() - listed.keys()):
        raise StorageError(f"{where(archive, absent[0])}: named in the metadata, but not there")
    for name in listed if texts else ():
        if name not in texts and not is_table(name):
            why = "not named in the metadata" if kind_of(name) in IMAGE_TYPES else of_type(name)
            account.pass_over(short(archive, name), why)
    if not texts and beside:
        samples = archives.together(archive, listed, beside, account)
        texts = {name: _caption(where(archive, name), files) for name, files in samples.items()}
    if not texts:
        allowed = "metadata.csv or .jsonl (file_name, and text or caption), or a tar with .txt or .json beside images"
        raise StorageError(f"{archive}: holds no images with captions; allowed: {allowed}")
    for name, data in archives.members(archive, texts.__contains__):
        if name in texts:
            if not texts[name].strip():
                account.remark("empty captions", short(archive, name))
            yield name, data, texts[name]


def captioned(source: str, side: int, account: Account | None = None) -> Iterator[tuple[str, np.ndarray, str]]:
    """Name, image uint8 (3, side, side) and caption, one after the other; the largest square, resized as in `images`.

    Args:
        source: a folder, zip or tar with metadata.csv or metadata.jsonl (file_name, relative to it, and text or
            caption; images that it does not name are passed over), a webdataset tar (.txt, or .json with caption or
            text, beside each image), or a pattern of such archives. Text is UTF-8, or UTF-16 with its byte order mark.
        account: what is passed over is told to it.

    Raises:
        StorageError: nothing there, a damaged archive or image, a named image or a caption missing.
    """
    account = account or Account(source)
    for archive in archives.archives(source):
        for name, data, caption in _pairs(archive, account):
            yield name, decode(data, archive, name, side, None, account), caption
