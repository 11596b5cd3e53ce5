"""What a user reads when GitHub or the network fails, and after how long: a real server on loopback plays each fault.

python benchmarks/gist_faults.py            prints a markdown table
python benchmarks/gist_faults.py --check    also fails where a message lacks what tests/gist_server.py asks
"""

from __future__ import annotations

import platform
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from anyformer.core.errors import SourceError  # noqa: E402
from anyformer.core.gistref import parse_gist  # noqa: E402
from anyformer.models.network.gist import fetch_gist  # noqa: E402
from tests.gist_server import CASES, SLOW, Case, GistServer  # noqa: E402

TIMEOUT = SLOW / 4
"""Seconds without a byte; 15 in use. Waits between tries are as in use."""


def play(case: Case) -> tuple[str, float, int]:
    """What is read (the error, or the findings), the seconds until then, the requests that arrived."""
    with tempfile.TemporaryDirectory() as cache, GistServer() as server:
        server.put()

        def fetch() -> str:
            ref = parse_gist(case.ref)
            assert ref is not None
            gist = fetch_gist(ref, base_url=server.url, token="", cache_dir=cache, timeout=TIMEOUT)
            marks = (f"{f.mark} {f.name}: {f.measured}" + (f" ({f.reason})" if f.reason else "") for f in gist.findings)
            return "loads. " + "\n".join(marks)

        if case.cached:
            fetch()
            server.asked.clear()
        case.arrange(server)
        begin = time.monotonic()
        try:
            said = fetch()
        except SourceError as error:
            said = str(error)
        return said, time.monotonic() - begin, len(server.asked)


def main() -> int:
    missing = []
    print(f"Python {platform.python_version()}, {platform.system()} {platform.machine()}; {len(CASES)} faults, ")
    print(f"client timeout {TIMEOUT} s (15 s in use), waits between tries as in use.\n")
    print("| fault | requests | what the user reads | seconds |\n|---|---:|---|---:|")
    for case in CASES:
        said, seconds, requests = play(case)
        missing += [f"{case.name}: {part!r}" for part in case.says if part not in said]
        if said.startswith("loads. ") != case.loads:
            missing.append(f"{case.name}: {'should' if case.loads else 'should not'} load")
        cell = "<br>".join(line.strip().replace("|", "\\|").replace("<", "&lt;") for line in said.splitlines())
        print(f"| {case.name} | {requests} | {cell} | {seconds:.2f} |")
    if missing and "--check" in sys.argv:
        print("\nmissing:", *missing, sep="\n- ")
    return 1 if missing and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
