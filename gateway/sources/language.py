"""The rule language: what may stand in a family file, table by table. docs/families.md shows how it is read.

A text that is called an expression is written in the language of `gateway.sources.expressions`. Unknown keys are
errors, so that a misspelt condition never silently holds. Pure.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

TopicKind = Literal["momentary", "alarm_state", "availability", "arming"]
Expression = str
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
Word = Annotated[str, Field(pattern=r"^[^A-Z]+$")]  # what is looked up has been put in lower case


def _several(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Time(Table):
    of: Expression
    format: Annotated[tuple[Literal["unix", "unix_ms", "iso8601"], ...], BeforeValidator(_several), Field(min_length=1)]
    """The first that fits decides."""


class Ignore(Table):
    when: Expression
    reason: str


class Status(Table):
    of: Expression
    words: dict[Word, Literal["active", "inactive"]]
    ignored: dict[Word, str] = Field(default_factory=dict)
    """Words that mean neither, each with the reason."""
    otherwise: str
    """The reason for ignoring every other word."""


class Media(Table):
    strategy: str
    """How `gateway.media` gets pictures of this family; the rest is for it."""
    values: dict[Name, Expression] = Field(default_factory=dict)
    times: dict[Name, Time] = Field(default_factory=dict)
    """In the equipment's own time; null where there is none yet."""


class Rule(Table):
    name: str
    dialects: tuple[str, ...] = ()
    """Empty: all."""
    topic: str
    topic_kind: TopicKind
    decode: Literal["json", "text"]
    when: Expression | None = None
    """The rule is passed over, and the next one tried, unless this holds."""
    event_type: Literal["alarm", "trouble", "arming"]
    status: Literal["active", "inactive"] | Status
    require: tuple[Expression, ...] = ()
    """A message without a text in each of these is unreadable; the same goes for `camera` and `id`."""
    ignore: tuple[Ignore, ...] = ()
    camera: Expression | None = None
    """Absent: it belongs to the recorder or the site."""
    id: Expression | None = None
    state_key: tuple[Expression, ...] = ()
    """What joins beginning and end; default the id, and where there is none the topic."""
    kind: Expression | None = None
    """What was seen; default the rule's name."""
    opens: Expression | None = None
    """False for what only continues an event; default true."""
    time: Time | None = None
    """When it happened: the beginning for `active`, the end for `inactive`."""
    started: Time | None = None
    """The start as sent, which is part of the identity."""
    sent: Time | None = None
    """The equipment's clock when it sent this message."""
    pulse_seconds: Annotated[float, Field(gt=0)] | None = None
    """No end will come: closed this long after the last message."""
    details: dict[Name, Expression] = Field(default_factory=dict)
    media: Media | None = None


class Dialect(Table):
    title: str
    needs: str = ""
    options: tuple[Name, ...] = ()


class FamilyFile(Table):
    title: str
    needs: str
    topic_prefix: str | None = None
    """The default; null where the family has no prefix."""
    dialect: str | None = None
    """The default."""
    dialects: dict[str, Dialect] = Field(default_factory=dict)
    options: tuple[Name, ...] = ()
    """Of every dialect."""
    rule: tuple[Rule, ...] = Field(min_length=1)
