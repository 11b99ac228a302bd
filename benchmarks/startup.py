"""Time of `moe-probe --help` against that of importing typer, which it cannot do without.

Runs the two alternately and prints the median CPU time of each, and the median of the ratios.
Example: python -m benchmarks.startup --brief
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

COMMAND = [str(Path(sys.executable).with_name("moe-probe")), "--help"]
BASELINE = [sys.executable, "-c", "import typer"]
LIMIT = 2.0


def cpu_seconds(command: list[str]) -> float:
    """Run a command and return the processor time that it and its children took."""
    before = os.times()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    return (after.children_user + after.children_system) - (
        before.children_user + before.children_system
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--brief", action="store_true", help="7 pairs instead of 41")
    pairs = 7 if parser.parse_args().brief else 41
    # The first run of each pays for cold files.
    cpu_seconds(COMMAND)
    cpu_seconds(BASELINE)
    times = [(cpu_seconds(COMMAND), cpu_seconds(BASELINE)) for _ in range(pairs)]
    ratio = statistics.median(command / baseline for command, baseline in times)
    print(f"moe-probe --help  {statistics.median(t[0] for t in times):.3f} s")
    print(f"import typer      {statistics.median(t[1] for t in times):.3f} s")
    print(f"ratio             {ratio:.2f} (at most {LIMIT}), {pairs} pairs")


if __name__ == "__main__":
    main()
