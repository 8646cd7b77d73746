"""Image files as bodies: one file alone, or several in a form, with the model's other columns as its fields.

A file is decoded where its record is read, by the code that reads training's images, so that here only parts are told apart.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from lepton_ray.artifacts.signature import Signature
from lepton_ray.serve.arrow_body import MAX_TEXT_BYTES
from lepton_ray.serve.protocol import ProtocolError, refuse_rows

_MAX_HEAD_BYTES = 4096
_BOUNDARY = re.compile(rb';\s*boundary=(?:"([^"\r\n]{1,70})"|([^\s;,"]{1,70}))', re.IGNORECASE)
_NAME = re.compile(rb';\s*name="([^"\r\n]*)"', re.IGNORECASE)
_FILE = re.compile(rb";\s*filename\*?=", re.IGNORECASE)
_END = b"--"


def read_image(body: bytes | bytearray, signature: Signature, max_rows: int) -> list[dict[str, Any]]:
    """Return the one record of an image file; other columns are missing.

    Raises:
        ProtocolError: If the model takes no image.
    """
    return [{_image_column(signature): bytes(body)}]


def read_form(
    body: bytes | bytearray, signature: Signature, max_rows: int, content_type: bytes = b""
) -> list[dict[str, Any]]:
    """Return the records of ``multipart/form-data``: one for each file, in their order.

    A field stands once, for all records, or once for each.

    Raises:
        ProtocolError: If it is none, or has no file, or a field for some of the records.
    """
    image = _image_column(signature)
    most = len(signature.columns) + len(signature.unused)
    values: defaultdict[str, list[Any]] = defaultdict(list)
    for name, content, is_file in _parts(bytes(body), content_type):
        if name == image and not is_file:
            raise ProtocolError(f"{image!r} must be a file of the form, with a filename, got a field")
        if is_file and name != image:
            raise ProtocolError(f"the files of the form must have the name {image!r}, got {name[:80]!r}")
        if len(values) > most + 1:  # a single unknown one is named where records are read
            raise ProtocolError(f"the form must have the names of columns, got more than those {most}")
        if len(values[name]) == max_rows:
            raise refuse_rows(max_rows, "more")
        values[name].append(content if is_file else _text(name, content))
    files = values.pop(image, [])
    if not files:
        raise ProtocolError(f"the form must have a file with the name {image!r}, got none")
    for name, given in values.items():
        if len(given) not in (1, len(files)):
            raise ProtocolError(f"{name[:80]!r} must stand once in the form, or {len(files)} times, got {len(given)}")
    if (len(files) - 1) * sum(len(given[0]) for given in values.values() if len(given) == 1) > MAX_TEXT_BYTES:
        raise ProtocolError(f"the fields that stand once must give at most {MAX_TEXT_BYTES} bytes. Split the request")
    return [
        {image: file, **{name: given[row if len(given) > 1 else 0] for name, given in values.items()}}
        for row, file in enumerate(files)
    ]


def _image_column(signature: Signature) -> str:
    images = signature.of_kind("image")
    if not images:
        raise ProtocolError("the model must have an image among its columns to be sent a file. Send records")
    return next(iter(images))


def _parts(body: bytes, content_type: bytes) -> Iterator[tuple[str, bytes, bool]]:
    """Yield name, content and whether it is a file, of each part.

    Source: RFC 7578 and, for the syntax, RFC 2046, section 5.1.1.
    """
    found = _BOUNDARY.search(content_type)
    if found is None:
        raise ProtocolError("content-type must name the boundary of the form's parts")
    mark = b"\r\n--" + (found[1] or found[2])
    pieces = (b"\r\n" + body).split(mark)
    if len(pieces) == 1 or not pieces[-1].startswith(_END):
        raise ProtocolError("the form must be whole: its boundary stands before each part, and with -- behind the last")
    for piece in pieces[1:-1]:
        head, gap, content = piece.partition(b"\r\n\r\n")
        if not gap or len(head) > _MAX_HEAD_BYTES or head.partition(b"\r\n")[0].strip(b" \t"):
            raise ProtocolError(f"each part of the form must have a head, of at most {_MAX_HEAD_BYTES} bytes")
        yield _read_head(head, content)


def _read_head(head: bytes, content: bytes) -> tuple[str, bytes, bool]:
    fields = dict(line.partition(b":")[::2] for line in head.split(b"\r\n")[1:])
    lower = {name.strip().lower(): value for name, value in fields.items()}
    disposition = lower.get(b"content-disposition", b"")
    name = _NAME.search(disposition)
    if not disposition.strip().lower().startswith(b"form-data") or name is None:
        raise ProtocolError("each part of the form must have the header content-disposition: form-data with a name")
    return _text("a name", name[1]), content, _FILE.search(disposition) is not None


def _text(name: str, content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ProtocolError(f"{name[:80]!r} must be UTF-8 in the form") from error
