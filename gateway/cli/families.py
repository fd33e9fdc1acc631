"""`chekt-gateway families`: which equipment is known, in which dialects, and what each needs."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from gateway.sources.families import families
from gateway.sources.rules import Family


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        "families",
        help="lists families of equipment and dialects, with what each needs",
        description="Lists families of equipment and dialects, with what each needs in [sources].",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    for name, family in families().items():
        told = describe(name, family)
        if args.json:
            sys.stdout.write(json.dumps(told, ensure_ascii=False) + "\n")
        else:
            sys.stdout.write(_in_words(told))
    return 0


def describe(name: str, family: Family) -> dict[str, Any]:
    facts = family.facts
    return {
        "family": name,
        "title": facts.title,
        "needs": facts.needs,
        "topic_prefix": _first(facts.topic_prefix),
        "default_dialect": facts.dialect,
        "options": list(facts.options),
        "sign_of_life_seconds": family.heartbeat(facts.dialect),
        "dialects": [
            {
                "dialect": d,
                "title": about.title,
                "needs": about.needs,
                "options": list(about.options),
                "sign_of_life_seconds": family.heartbeat(d),
                "topic_prefix": _first(about.topic_prefix or facts.topic_prefix),
            }
            for d, about in facts.dialects.items()
        ],
    }


def _first(prefixes: tuple[str, ...] | None) -> str | None:
    return prefixes[0] if prefixes else None


def _in_words(told: dict[str, Any]) -> str:
    lines = [f"{told['family']}: {told['title']}", f"    needs {told['needs']}"]
    if told["topic_prefix"] is not None:
        lines.append(f'    topic_prefix = "{told["topic_prefix"]}" unless set')
    if told["options"]:
        lines.append(f"    options: {', '.join(told['options'])}")
    if told["sign_of_life_seconds"] and not told["dialects"]:
        lines.append(f"    a sign of life every {told['sign_of_life_seconds']:g} s, for silence_after")
    for dialect in told["dialects"]:
        default = " (the default)" if dialect["dialect"] == told["default_dialect"] else ""
        lines.append(f'    dialect = "{dialect["dialect"]}"{default}: {dialect["title"]}')
        if dialect["topic_prefix"] not in (None, told["topic_prefix"]):
            lines.append(f'        topic_prefix = "{dialect["topic_prefix"]}" unless set')
        if dialect["needs"]:
            lines.append(f"        needs {dialect['needs']}")
        if dialect["options"]:
            lines.append(f"        options: {', '.join(dialect['options'])}")
        if dialect["sign_of_life_seconds"]:
            lines.append(f"        a sign of life every {dialect['sign_of_life_seconds']:g} s, for silence_after")
    return "\n".join(lines) + "\n"
