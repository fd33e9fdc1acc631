"""explain with every family at once, on everything that the tests of the families say, with memory and without."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from gateway.cli import main
from tests.fakes.configuration import GOOD, Place
from tests.unit.test_families import SAYS
from tests.unit.test_families_outside import BROKEN, OUTSIDE

HEAD = GOOD[: GOOD.index("[sources.s]")]
SAID = [*SAYS, *OUTSIDE]


def config(tmp_path: Path) -> Path:
    """One source for each way of speaking; overlapping ones are as a site may have them."""
    spoken = dict.fromkeys(said[0] for said in SAID)
    sources = ""
    for number, one in enumerate(spoken):
        family, _, dialect = one.partition("/")
        sources += f'\n[sources.s{number}]\nfamily = "{family}"\n' + (f'dialect = "{dialect}"\n' if dialect else "")
    return Place(tmp_path).write(HEAD + sources)


def lines() -> list[str]:
    said: list[dict[str, object]] = []
    for second, (_, topic, payload, _) in enumerate(SAID):
        text = payload if isinstance(payload, str) else json.dumps(payload)
        coded = base64.b64encode(text.encode("latin-1", "replace")).decode()
        at = f"2026-03-01T12:{second // 60 % 60:02d}:{second % 60:02d}Z"
        said.append({"topic": topic, "payload": coded, "encoding": "base64", "received_at": at})
        said += [
            {
                "topic": topic,
                "payload": base64.b64encode(broken[:4000]).decode(),
                "encoding": "base64",
                "received_at": at,
            }
            for broken in BROKEN.values()
        ]
    return [json.dumps(one) for one in said]


@pytest.mark.parametrize("stateful", [False, True], ids=["one by one", "with memory"])
def test_every_message_has_its_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str], stateful: bool) -> None:
    given = lines()
    (tmp_path / "messages").write_text("\n".join(given))
    options = ["--stateful"] if stateful else []
    assert main(["explain", str(tmp_path / "messages"), "--config", str(config(tmp_path)), *options]) == 0
    out = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    answers = [one for one in out if "after_waiting" not in one]
    assert len(answers) == len(given)
    for answer in out:
        assert len(answer.keys() & {"event", "ignored", "unreadable"}) == 1
        for event in [answer[key] for key in ("event",) if key in answer] + answer.get("then", []):
            assert event["event_type"] in ("alarm", "trouble", "arming")
            assert event["event_time"].startswith("20")
