"""`chekt-gateway simulator`: a CHeKT cloud to practise against, on this machine, until Ctrl-C.

Prints to stdout a configuration that fits it (`--json`: one JSON object), to stderr what arrives.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from gateway.simulator.cloud import Cloud
    from gateway.simulator.terms import Terms

_LEAST_SHARED_BYTES: Final = 32  # RFC 7518, 3.2


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "simulator",
        help="a CHeKT cloud to practise against",
        description="A strict CHeKT cloud on this machine: token endpoint, Event API, storage, callbacks, and a page "
        "that shows what arrives. Faults on request: POST /_simulator/faults.",
    )
    parser.add_argument("--port", type=int, default=8443, metavar="N", help="port on 127.0.0.1 (default 8443; 0: any)")
    keys = parser.add_mutually_exclusive_group()
    keys.add_argument("--key", metavar="FILE", help="the practice private key; written if there is no such file")
    keys.add_argument("--public-key", metavar="FILE", help="register your own public key (PEM)")
    parser.add_argument("--key-id", metavar="KID", help="the key's id (default practice-key)")
    parser.add_argument(
        "--algorithm",
        choices=("RS256", "RS384", "PS256", "ES256", "HS256"),
        default="RS256",
        help="of the assertion (default RS256; HS256 signs with the secret)",
    )
    parser.add_argument(
        "--auth",
        choices=("assertion", "client_secret", "api_key"),
        default="assertion",
        help="how the gateway proves who it is (default assertion)",
    )
    parser.add_argument(
        "--event-header",
        choices=("bearer", "x-api-key", "both"),
        default="bearer",
        help="where an event carries the credential (default bearer)",
    )
    parser.add_argument("--secret", metavar="FILE", help="the client secret; written if there is no such file")
    parser.add_argument("--api-key", metavar="FILE", help="the API key; written if there is no such file")
    parser.add_argument("--lenient", action="store_true", help="takes unknown fields and chunked bodies")
    parser.add_argument("--token-life", type=int, default=3600, metavar="SECONDS", help="of access tokens")
    parser.add_argument("--slot-life", type=int, default=900, metavar="SECONDS", help="of upload addresses")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the configuration")
    return parser


def run(args: argparse.Namespace) -> int:
    try:
        return asyncio.run(_serve(args))
    except OSError as problem:
        print(f"chekt-gateway simulator: {problem}", file=sys.stderr)
        return 1
    except ValueError as problem:
        print(f"chekt-gateway simulator: the key or secret cannot be used: {problem}", file=sys.stderr)
        return 1


async def _serve(args: argparse.Namespace) -> int:
    from gateway.simulator.cloud import Cloud

    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    with tempfile.TemporaryDirectory(prefix="chekt-practice-") as folder:
        terms, files = _terms(args, Path(folder))
        cloud = Cloud(terms)
        await cloud.start(args.port)
        try:
            _introduce(cloud, files, as_json=args.json)
            telling = asyncio.create_task(_tell(cloud), name="tell what arrives")
            await stop.wait()
            telling.cancel()
            await asyncio.gather(telling, return_exceptions=True)
        finally:
            await cloud.stop()
    return 0


def _terms(args: argparse.Namespace, folder: Path) -> tuple[Terms, dict[str, str]]:
    """The terms, and the files for the configuration by its keys. Raises OSError and ValueError."""
    from gateway.simulator.practice import write_private_key
    from gateway.simulator.terms import (
        PRACTICE_KID,
        PRACTICE_SHARED_SECRET,
        RegisteredKey,
        Terms,
        public_half,
        read_public_key,
    )

    if args.public_key:
        public, key_file = read_public_key(Path(args.public_key).read_bytes()), "YOUR-PRIVATE-KEY"
    else:
        path = Path(args.key).absolute() if args.key else folder / "practice-private-key.pem"
        private = path.read_bytes() if path.exists() else write_private_key(path)
        public, key_file = public_half(private), str(path)
    secret_file = Path(args.secret or folder / "practice-client-secret").absolute()
    api_key_file = Path(args.api_key or folder / "practice-api-key").absolute()
    secret, api_key = _secret(secret_file, PRACTICE_SHARED_SECRET), _secret(api_key_file, Terms.api_key)
    files = {
        "private_key_file": key_file,
        "client_secret_file": str(secret_file),
        "api_key_file": str(api_key_file),
    }
    signs_with_secret = args.auth == "assertion" and args.algorithm == "HS256"
    if signs_with_secret and len(secret) < _LEAST_SHARED_BYTES:
        raise ValueError(f"HS256 needs a secret of at least {_LEAST_SHARED_BYTES} bytes")
    # A secret that signs has no public half to register.
    key = RegisteredKey(public, "RS256" if args.algorithm == "HS256" else args.algorithm, args.key_id or PRACTICE_KID)
    terms = Terms(
        strict=not args.lenient,
        keys=(key,),
        shared_secret=secret if signs_with_secret else None,
        auth=args.auth,
        client_secret=secret,
        api_key=api_key,
        event_header=args.event_header,
        expires_in=args.token_life,
        slot_seconds=args.slot_life,
    )
    return terms, files


def _secret(path: Path, content: str) -> str:
    from gateway.simulator.practice import write_secret

    said = path.read_bytes() if path.exists() else write_secret(path, content.encode() + b"\n")
    return said.decode("ascii").strip()


def _introduce(cloud: Cloud, files: dict[str, str], *, as_json: bool) -> None:
    from gateway.simulator.practice import Place, cloud_table

    place = Place(
        cloud.url,
        cloud.token_url,
        files["private_key_file"],
        client_secret_file=files["client_secret_file"],
        api_key_file=files["api_key_file"],
    )
    key_id = cloud.terms.keys[0].kid
    configuration = cloud_table(place, cloud.terms, key_id)
    if as_json:
        said = {
            "url": cloud.url,
            "token_url": cloud.token_url,
            "audience": cloud.terms.audience,
            "client_id": cloud.terms.client_id,
            "key_id": key_id,
            **files,
            "page": f"{cloud.url}/",
            "configuration": configuration,
        }
        print(json.dumps(said), flush=True)
    else:
        print(
            f"# A practice cloud: nothing that arrives there reaches a monitoring station.\n{configuration}", flush=True
        )
    print(f"page: {cloud.url}/   (Ctrl-C ends)", file=sys.stderr, flush=True)


async def _tell(cloud: Cloud) -> None:
    """One line to stderr for each request."""
    version, told = -1, 0
    while True:
        version = await cloud.changed(version)
        while told < len(cloud.requests):
            request = cloud.requests[told]
            told += 1
            when = datetime.fromtimestamp(request.received_at / 1000).astimezone()
            path = request.target.partition("?")[0]
            line = f"{when:%H:%M:%S} {request.method} {path} -> {request.status or 'no answer'}"
            with contextlib.suppress(BrokenPipeError):
                print(line + (f": {request.refusal}" if request.refusal else ""), file=sys.stderr, flush=True)
