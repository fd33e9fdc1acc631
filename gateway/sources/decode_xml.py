"""XML of equipment (Hikvision's ISAPI EventNotificationAlert) -> plain values, by expat alone.

Documents of strangers: a DOCTYPE is refused, so there are no entities to expand and nothing to fetch (OWASP, "XML
External Entity Prevention"); depth, elements and documents are bounded. Namespaces are left out; an element is its
text, or an object of its children; what stands more than once is a list; attributes are `@name`. Multipart payloads,
as an alert stream sends them (`multipart/mixed`, RFC 2046), are taken apart, pictures and headers left out. Pure.
"""

from __future__ import annotations

import re
from typing import Any, Final
from xml.parsers import expat

MAX_DEPTH: Final = 32
MAX_ELEMENTS: Final = 5_000
MAX_DOCUMENTS: Final = 32

_BOUNDARY: Final = re.compile(rb"\s*--[^\r\n<]{1,72}\r?\n")
# What expat does not read by itself, and cameras of that part of the world declare.
_DECLARED: Final = re.compile(
    rb"""<\?xml[^>]{0,64}encoding=["'](gb2312|gbk|gb18030|big5|euc-kr|shift_jis)["']""", re.IGNORECASE
)


class BadXml(Exception):
    """`str()` says what is wrong."""


def read_documents(payload: bytes) -> list[Any]:
    """The content of each root element. Raises BadXml if there is none."""
    documents: list[Any] = []
    for part in _parts(payload):
        part, encoding = _in_utf8(part)
        at = part.find(b"<")
        while at >= 0 and len(documents) < MAX_DOCUMENTS:
            try:
                value, end = _Document(encoding).read(part[at:])
            except BadXml:
                if documents:
                    break  # what follows a document that was understood is a picture or the next part's beginning
                raise
            documents.append(value)
            at = part.find(b"<", at + end)
    if not documents:
        raise BadXml("there is no element")
    return documents


def _parts(payload: bytes) -> list[bytes]:
    boundary = _BOUNDARY.match(payload)
    if boundary is None:
        return [payload]
    parts = payload.split(boundary[0].strip())
    return [part for part in parts if b"<" in part]


def _in_utf8(part: bytes) -> tuple[bytes, str | None]:
    declared = _DECLARED.search(part[:1024])
    if declared is None:
        return part, None
    return part.decode(declared[1].decode("ascii"), "replace").encode(), "utf-8"


class _Finished(Exception):
    """The root element has ended; the rest is not ours."""


class _Document:
    def __init__(self, encoding: str | None) -> None:
        self.stack: list[tuple[str, dict[str, Any], list[str]]] = []
        self.root: Any = None
        self.count = 0
        self.end = 0
        self.parser = expat.ParserCreate(encoding)
        self.parser.buffer_text = True
        self.parser.StartElementHandler = self.begins
        self.parser.EndElementHandler = self.ends
        self.parser.CharacterDataHandler = self.says
        self.parser.StartDoctypeDeclHandler = self.refuses
        self.parser.EntityDeclHandler = self.refuses

    def read(self, text: bytes) -> tuple[Any, int]:
        """The value, and where it ends."""
        try:
            self.parser.Parse(text, True)
        except _Finished:
            return self.root, self.end
        except expat.ExpatError as error:
            raise BadXml(f"{expat.errors.messages[error.code]} in line {error.lineno}") from None
        except (ValueError, LookupError) as error:  # an encoding that nobody knows
            raise BadXml(str(error)) from None
        raise BadXml("the root element does not end")

    def refuses(self, *_: Any) -> None:
        raise BadXml("it has a DOCTYPE")

    def begins(self, name: str, attributes: dict[str, str]) -> None:
        self.count += 1
        if self.count > MAX_ELEMENTS or len(self.stack) >= MAX_DEPTH:
            raise BadXml("it is too large or nested too deeply")
        kept = {f"@{_local(key)}": value for key, value in attributes.items() if not key.startswith("xmlns")}
        self.stack.append((_local(name), kept, []))

    def says(self, text: str) -> None:
        if self.stack:
            self.stack[-1][2].append(text)

    def ends(self, _: str) -> None:
        name, children, texts = self.stack.pop()
        said = "".join(texts).strip()
        value: Any = children
        if not self.stack:
            self.root = {**children, "#text": said} if said else children
            self.end = self.parser.CurrentByteIndex + 1
            raise _Finished
        if not children:
            value = said
        elif said:
            value = {**children, "#text": said}
        around = self.stack[-1][1]
        if name not in around:
            around[name] = value
        elif type(around[name]) is list:
            around[name].append(value)
        else:
            around[name] = [around[name], value]


def _local(name: str) -> str:
    return name.rpartition(":")[2]
