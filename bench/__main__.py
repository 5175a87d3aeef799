"""What is measured: `uv run python -m bench` for figures about the template, or `… -m bench faults` and the like."""

import runpy
import sys

PARTS = ("enqueue", "figures", "faults", "probes", "redis_window", "throughput")


def main() -> None:
    """Run the part that is named first; what follows is for it."""
    part = sys.argv.pop(1) if len(sys.argv) > 1 else "figures"
    if part not in PARTS:
        sys.exit(f"There is nothing called {part!r} to measure; choose one of {', '.join(PARTS)}.")
    runpy.run_module(f"bench.{part}", run_name="__main__")


if __name__ == "__main__":
    main()
