"""Record visits to a simulated platform as HAR files, with real browsers: python3 tests/recording [DIALECT ...].

For each dialect, a page logs in to the simulated platform, looks at centres, patients and a tube, and renews an expired
token. The developer tools of Chromium and Firefox record its calls, as they do for a person. The files in
tests/recording/har/ are the test data of check_platform.py --har, and contain no real data.

It needs the browsers: apt-get install chromium firefox-esr
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS), str(TESTS / "simulation")]

from environment import environment_python, stop  # noqa: E402

RECORDINGS = Path(__file__).resolve().parent / "har"
PLAIN = "as-assumed"
BY_FIREFOX = (PLAIN, "token-names", "dead-token-302", "pages-from-0", "moved-all")
PLATFORM = ("--centres", "3", "--patients", "60")


def main() -> int:
    from dialects import DIALECTS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = [PLAIN, *DIALECTS]
    parser.add_argument("dialects", nargs="*", metavar="DIALECT", help=f"default: all of {', '.join(every)}")
    wanted = parser.parse_args().dialects or every
    if unknown := [name for name in wanted if name not in every]:
        stop(f"there is no dialect {', '.join(unknown)}")
    python = environment_python("recording/requirements.txt", "-recording")
    if Path(sys.prefix).resolve() != python.parent.parent.resolve():
        return subprocess.run([str(python), __file__, *wanted]).returncode
    RECORDINGS.mkdir(exist_ok=True)
    for dialect in wanted:
        record(dialect)
    return 0


def record(dialect: str) -> None:
    from browsers import Failed, by_chromium, by_firefox
    from server import Simulator
    from web import served

    options = [] if dialect == PLAIN else ["--dialect", dialect]
    visits = {f"chromium-{dialect}": lambda url: by_chromium(url, sanitize=False)}
    if dialect == PLAIN:
        visits["chromium-sanitized"] = lambda url: by_chromium(url, sanitize=True)
    if dialect in BY_FIREFOX:
        visits[f"firefox-{dialect}"] = by_firefox
    for name, visit in visits.items():
        with Simulator(sys.executable, *PLATFORM, *options) as platform, served(platform, dialect) as url:
            try:
                har = json.loads(visit(url))
            except Failed as problem:
                stop(f"{name}: {problem}")
        write(RECORDINGS / f"{name}.har.gz", har)
        print(f"{name}: {len(har['log']['entries'])} entries", flush=True)


def write(path: Path, har: object) -> None:
    """Store a recording as the browser wrote it, but without white space, and compressed."""
    text = json.dumps(har, separators=(",", ":"), ensure_ascii=False)
    part = path.with_suffix(".part")
    part.write_bytes(gzip.compress(text.encode("utf-8"), mtime=0))
    os.replace(part, path)


if __name__ == "__main__":
    sys.exit(main())
