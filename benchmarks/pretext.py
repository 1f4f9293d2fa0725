"""Throughput, memory and parser safety of the pretext library on one core.

    python benchmarks/pretext.py                  all figures, about a minute of CPU
    python benchmarks/pretext.py --fuzz 1000000   with a million random replies (minutes)

Every figure is CPU time of this process, the best of three repetitions; each goal is per core. The script fails if a
figure is below half of its goal, if a random reply raises or earns something without a solution, or if one takes more
than a millisecond. The last line is one JSON object: `value` is the worst figure divided by its goal.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from mmrl.data.pretext.audit.bench import fuzz, throughput


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="CPU seconds per figure and repetition"
    )
    parser.add_argument("--fuzz", type=int, default=20_000, help="random replies to score")
    args = parser.parse_args()
    figures = throughput(args.seconds)
    for figure in figures:
        print(figure.line())
    found = fuzz(args.fuzz)
    print(f"fuzzed {found.replies} replies: {found.errors} raised, {found.unfounded} paid without a solution, "
          f"slowest {found.slowest:.2f} ms (goal ≤ 1)")  # fmt: skip
    safe = found.errors == found.unfounded == 0 and found.slowest <= 1.0
    worst = min(
        f.value / f.goal if f.more_is_better else f.goal / max(f.value, 1e-9) for f in figures
    )
    ok = safe and all(figure.half for figure in figures)
    print(
        json.dumps(
            {
                "name": "pretext",
                "value": round(worst, 3),
                "goal": 1.0,
                "unit": "share of goal",
                "ok": ok,
            }
        )
    )
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
