"""The rule language: what may stand in a family file, table by table. docs/families.md shows how it is read.

A text that is called an expression is written in the language of `gateway.sources.expressions`. Unknown keys are
errors, so that a misspelt condition never silently holds. Pure.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

TopicKind = Literal["momentary", "alarm_state", "availability", "arming"]
Expression = str
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
Word = Annotated[str, Field(pattern=r"^[^A-Z]+$")]  # what is looked up has been put in lower case


def _several(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


_NAMED_FORMATS: Final = ("unix", "unix_ms", "iso8601", "iso8601_utc", "source")


def _time_format(name: str) -> str:
    if name in _NAMED_FORMATS:
        return name
    allowed = f"allowed: {', '.join(_NAMED_FORMATS)}, or a pattern such as %d.%m.%Y %H:%M:%S (strptime)"
    if "%" not in name:
        raise ValueError(f"is no format of times; {allowed}")
    try:
        datetime.strptime("", name)  # noqa: DTZ007, of no time at all
    except re.error:
        raise ValueError(f"is no pattern of times: one part comes twice; {allowed}") from None
    except ValueError as error:
        if "does not match format" not in str(error):
            raise ValueError(f"is no pattern of times; {allowed}") from None
    return name


TimeFormat = Annotated[str, AfterValidator(_time_format)]
Positive = Annotated[float, Field(gt=0)]


class Time(Table):
    of: Expression
    format: Annotated[tuple[TimeFormat, ...], BeforeValidator(_several), Field(min_length=1)]
    """The first that fits decides: `unix`, `unix_ms`, `iso8601`, `iso8601_utc`, a pattern such as `%d.%m.%Y %H:%M:%S`
    (strptime), or `source`: the pattern that the source has set as `time_format`. What names no zone is of the
    source's time zone, with `iso8601_utc` UTC."""


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


class EventType(Table):
    of: Expression
    words: dict[Word, Literal["alarm", "trouble", "arming"]]
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
    topic: Annotated[tuple[str, ...], BeforeValidator(_several), Field(min_length=1)]
    topic_kind: TopicKind | None = None
    """What a retained value means. Needed, as are `decode`, `event_type` and `status`, unless all is `ignored`."""
    decode: Literal["json", "text", "json_or_text", "onvif", "xml", "binary"] | None = None
    """`binary`: not looked into; `payload` is the number of bytes."""
    ignored: str | None = None
    """The reason why this topic means nothing. Such a rule only explains: its topics are not subscribed."""
    heartbeat: Positive | None = None
    """The equipment says this of each of its cameras about every so many seconds, whatever happens: a sign of life.
    With `ignored` it is nothing but that, and subscribed only where the silence of a camera is watched; `camera` then
    says whose, and may give several."""
    empty: str | None = None
    """The reason for ignoring an empty payload. Without it, an empty payload of something momentary is what `decode`
    makes of it; of a state it means that its retained value was taken away, which is ignored."""
    let: dict[Name, Expression] = Field(default_factory=dict)
    """Names for expressions that are needed more than once; each may use those before it."""
    each: Expression | None = None
    """A list in the message: the rule reads each of its elements, as `item`."""
    when: Expression | None = None
    """The rule is passed over, and the next one tried, unless this holds."""
    also: bool = False
    """Whatever this rule makes of a message, the next ones read it, too."""
    event_type: Literal["alarm", "trouble", "arming"] | EventType | None = None
    status: Literal["active", "inactive"] | Status | None = None
    require: tuple[Expression, ...] = ()
    """A message without a text in each of these is unreadable; the same goes for `camera`."""
    ignore: tuple[Ignore, ...] = ()
    camera: Expression | None = None
    """Absent: it belongs to the recorder or the site."""
    id: Expression | None = None
    """The equipment's own id of the event."""
    state_key: tuple[Expression, ...] = ()
    """What joins beginning and end; default the id, and where there is none the topic."""
    kind: Expression | None = None
    """What was seen; default the rule's name."""
    of_device: Expression | None = None
    """True for a trouble of the device as a whole, such as its disk: where no camera of its name is configured, it is
    the recorder's."""
    away: bool | Expression = False
    """Of a trouble: its camera, without `camera` the recorder, is gone and cannot be heard. Where the recorder is, the
    troubles and the silence of its cameras are no news."""
    opens: Expression | None = None
    """False for what only continues an event; default true."""
    time: Time | None = None
    """When it happened: the beginning for `active`, the end for `inactive`."""
    started: Time | None = None
    """The start as sent, which is part of the identity."""
    sent: Time | None = None
    """The equipment's clock when it sent this message."""
    clock: Expression | None = None
    """Whose clock that is, where the devices of a source have one each; default: the source's."""
    late: Expression | None = None
    """True for what the equipment kept while it could not send: it has its own time, and is of no use after an hour."""
    pulse_seconds: Positive | Expression | None = None
    """No end will come: closed this long after the last message. An expression may say null: an end will come."""
    quiet_seconds: Positive | Expression | None = None
    """The equipment repeats an alarm while it lasts: after this silence it is over, though an end may come, too."""
    repeats: bool | Annotated[float, Field(ge=0)] = True
    """false: the equipment speaks only on change, so every `active` is a new alarm. Seconds: an `active` so soon after
    the last message continues the alarm, a later one is new. true: until the end, or `max_open`."""
    twin: Expression | None = None
    """The same alarm told twice, on two topics, has the same text here and is raised once."""
    details: dict[Name, Expression] = Field(default_factory=dict)
    media: Media | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        needed = ("topic_kind", "decode", "event_type", "status")
        missing = [key for key in needed if getattr(self, key) is None]
        if self.ignored is None and missing:
            raise ValueError(f"needs {', '.join(missing)}; or ignored, with a reason")
        if self.heartbeat is not None and self.camera is None:
            raise ValueError("needs camera with heartbeat: whose sign of life it is")
        return self


class Dialect(Table):
    title: str
    needs: str = ""
    options: tuple[Name, ...] = ()
    topic_prefix: Annotated[tuple[str, ...], BeforeValidator(_several)] | None = None
    """Where it is another one than the family's."""


class FamilyFile(Table):
    title: str
    needs: str
    topic_prefix: Annotated[tuple[str, ...], BeforeValidator(_several)] | None = None
    """The default, or several that are usual; null where the family has no prefix."""
    dialect: str | None = None
    """The default."""
    dialects: dict[str, Dialect] = Field(default_factory=dict)
    options: tuple[Name, ...] = ()
    """Of every dialect."""
    maps: dict[Name, dict[str, str | int | float]] = Field(default_factory=dict)
    """Tables for `look_up`; their keys are compared as words, in lower case."""
    rule: tuple[Rule, ...] = Field(min_length=1)
