"""Small files that ask for much: what they declare, or unpack to, is far beyond their own size."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

CENTRAL = "<4s6H3I5H2I"  # of a zip's list of members, after it name and extra field
LOCAL = "<4s5H3I2H"


def zip_of(members: list[tuple[str, bytes, int, int]], at: list[int], body: bytes) -> bytes:
    """A zip of local headers and contents `body` whose list says of each member what it is told.

    Args:
        members: name, extra field, declared packed size, declared size.
        at: where in the body each member begins.
    """
    listed = b""
    for (name, extra, packed, size), offset in zip(members, at, strict=True):
        numbers = (20, 20, 0, 8, 0, 0, 0, packed, size, len(name), len(extra), 0, 0, 0, 0, offset)
        listed += struct.pack(CENTRAL, b"PK\1\2", *numbers) + name.encode() + extra
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, len(members), len(members), len(listed), len(body), 0)
    return body + listed + end


def local(name: str) -> bytes:
    """The header before a member's content in a zip."""
    return struct.pack(LOCAL, b"PK\3\4", 20, 0, 8, 0, 0, 0, 0, 0, len(name), 0) + name.encode()


def deflated(content: bytes) -> bytes:
    """Deflate's own stream."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(content) + packer.flush()


def lying_zip(name: str, content: bytes, declared: int, extra: bytes = b"") -> bytes:
    """A zip of one member that declares another size than its content has."""
    packed = deflated(content)
    return zip_of([(name, extra, len(packed), declared)], [0], local(name) + packed)


def overlapping_zip(count: int, size: int) -> bytes:
    """A zip of `count` images that share one content of `size` bytes: each quotes the next one's header before it."""
    body, members, at = deflated(bytes(size)), [], []
    total = size
    for number in reversed(range(count)):
        name = f"{number:04}.png"
        members.insert(0, (name, b"", len(body), total))
        body = local(name) + body
        if number:  # as a stored block of the member before
            header = len(local(name))
            total += header
            body = struct.pack("<BHH", 0, header, header ^ 0xFFFF) + body
        at = [0, *(place + len(local(name)) + 5 * bool(number) for place in at)]
        if number:
            at[0] = 5
    return zip_of(members, at, body)


def tar_header(name: str, size: int, kind: bytes = b"0", size_field: bytes | None = None) -> bytes:
    """A member's header in a tar, whatever its size."""
    info = tarfile.TarInfo(name)
    info.type = kind
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = size_field or b"%011o\0" % size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def sparse_tar(size: int) -> bytes:
    """A tar with a GNU sparse member of that size of which 512 bytes are stored."""
    block = bytearray(tar_header("a.png", 512, b"S"))
    block[386:398], block[398:410], block[482] = b"%011o\0" % 0, b"%011o\0" % 512, 0
    block[483:495] = b"\x80" + size.to_bytes(11, "big")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + bytes(512 + 1024)


def pax_tar(name: str = "a.png", **keys: str) -> bytes:
    """A tar of one empty member whose pax headers say what they are told."""
    file, info = io.BytesIO(), tarfile.TarInfo(name)
    info.pax_headers = {key.replace("_", "."): value for key, value in keys.items()}
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info)
    return file.getvalue()


def packed(path: Path, *pieces: tuple[bytes, int]) -> Path:
    """A .gz of pieces, each repeated as often as told, and never held whole."""
    with gzip.open(path, "wb", 6) as file:
        for piece, times in pieces:
            for _ in range(times):
                file.write(piece)
    return path


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *chunks: bytes, pixels: bytes = b"") -> bytes:
    """A PNG of that size, RGB, with further chunks before its pixels; without pixels it declares them only."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    content = zlib.compress(pixels, 9)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (chunk(b"IHDR", head), *chunks, chunk(b"IDAT", content), chunk(b"IEND", b""))
    )


def bmp(width: int, height: int) -> bytes:
    """A BMP that declares that size."""
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + head + bytes(64)


def gif(width: int, height: int, frames: int) -> bytes:
    """A GIF of that size, of empty frames."""
    frame = b"\x2c" + struct.pack("<4HB", 0, 0, 1, 1, 0) + b"\2\2\x44\1\0"
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6) + frame * frames + b";"


def tiff(frames: int, repeated: int = 0) -> bytes:
    """A TIFF of so many pages of one pixel, or one whose tags all name the same bytes of the file."""
    tags = [(256, 4, 1, 1), (257, 4, 1, 1), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8)]
    tags += [(277, 3, 1, 1), (278, 4, 1, 1), (279, 4, 1, 1)] + [(40000 + k, 7, 10**6, 8) for k in range(repeated)]
    size = 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    pages = b"".join(
        struct.pack("<H", len(tags)) + entries + struct.pack("<I", 12 + size * (k + 1) if k + 1 < frames else 0)
        for k in range(frames)
    )
    return b"II*\0" + struct.pack("<I", 12) + bytes(4) + pages + bytes(10**6 if repeated else 0)


def webp(width: int, height: int) -> bytes:
    """A WebP that declares that size, up to 2¹⁴ a side."""
    frame = b"\x2f" + struct.pack("<I", (width - 1) | (height - 1) << 14) + bytes(16)
    return b"RIFF" + struct.pack("<I", 12 + len(frame)) + b"WEBPVP8L" + struct.pack("<I", len(frame)) + frame + b"\0"


def safetensors(header: bytes) -> bytes:
    """A safetensors file of that header."""
    return struct.pack("<Q", len(header)) + header


def npy(shape: tuple[int, ...], kind: str = "|u1") -> bytes:
    """The header of an .npy file that declares that shape, without its values."""
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape!r}}}".encode()
    text += b" " * (-(10 + len(text) + 1) % 64) + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text


def npz(path: Path, **arrays: bytes) -> Path:
    """An .npz of such files."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in arrays.items():
            archive.writestr(f"{name}.npy", content)
    return path


def nested(depth: int) -> bytes:
    """JSON of lists in lists."""
    return b"[" * depth + b"]" * depth


def changed(path: Path, **values: object) -> Path:
    """A JSON file with other values."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return path
