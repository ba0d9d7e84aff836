"""A million hours of speech, on paper: machine hours, money, requests and memory.

Nothing is run. What is multiplied stands in this file: rates that other commands here have
measured, or that others have published, and list prices. Give your own by the options.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from benchmarks.figures import command, print_table

# Store requests, in dollars: S3 Standard, us-east-1, 2026; R2's are within a tenth of them.
WRITE_OR_LIST, READ = 0.005 / 1_000, 0.0004 / 1_000
PART_HOURS = 0.5
LIST_PAGE = 1_000  # keys
LISTED_A_SECOND = 15_000  # benchmarks.store, on loopback: the client's own limit
PLAN_BYTES = 38  # a recording that is to be done; benchmarks.planning


@dataclass(frozen=True, slots=True)
class Worker:
    """A machine: how many times real time it transcribes, and its list price an hour."""

    name: str
    model: str
    speed: float
    price: float
    source: str


@dataclass(frozen=True, slots=True)
class Engine:
    """What an engine adds: a share of the workers' time between shards (benchmarks.engines), and
    small machines for its scheduler and for the process that the build is started in."""

    name: str
    waiting: float
    machines: int


SMALL_MACHINE = 0.0816  # an hour: 2 cores, 8 GB
ENGINES: Final = (
    Engine("Kubernetes, by index", 0.0, 0),
    Engine("Dask: scheduler, build", 0.01, 2),
    Engine("Ray: head with the build", 0.01, 1),
    Engine("Spark: driver with the build", 0.01, 1),
)

WORKERS: Final[tuple[Worker, ...]] = (
    Worker("2 x86 cores", "base, int8", 41.7, 0.0816, "measured, benchmarks.transcription"),
    Worker("A10G", "large-v3, fp16", 13 * 60 / 52, 1.006, "published, RTX 2080 Ti"),
    Worker("A10G", "large-v3-turbo, fp16", 13 * 60 / 19.2, 1.006, "published, RTX 2080 Ti"),
)


def main() -> None:
    """Multiply, and print."""
    parser = command("million_hours", __doc__, "--hours 10000 --clip-s 4")
    parser.add_argument("--hours", type=float, default=1e6, help="of speech")
    parser.add_argument("--clip-s", type=float, default=5.0, help="seconds of a recording")
    parser.add_argument("--machines", type=int, default=100, help="at the same time")
    parser.add_argument("--speed", type=float, help="times real time, of your own machine")
    parser.add_argument("--price", type=float, help="its price an hour, in dollars")
    options = parser.parse_args()
    workers = WORKERS
    if options.speed and options.price is not None:
        workers = (Worker("yours", "yours", options.speed, options.price, "yours"),)
    print(f"{options.hours:,.0f} hours of speech, {options.machines} machines")
    rows = []
    for worker in workers:
        machine_hours = options.hours / worker.speed
        rows.append(
            (
                worker.name,
                worker.model,
                worker.source,
                f"{worker.speed:.1f} ×",
                f"{machine_hours:,.0f} h",
                f"{machine_hours / options.machines / 24:,.1f} days",
                f"${machine_hours * worker.price:,.0f}",
            )
        )
    print_table(("machine", "model", "speed from", "speed", "takes", "all", "costs"), rows)
    added = []
    for engine in ENGINES:
        for worker in workers:
            waiting_h = options.hours / worker.speed * engine.waiting
            small = engine.machines * SMALL_MACHINE
            hours = options.hours / worker.speed / options.machines
            added.append(
                (
                    engine.name,
                    f"{worker.name}, {worker.model}",
                    f"{waiting_h:,.0f} h",
                    f"${waiting_h * worker.price:,.0f}",
                    f"${hours * small:,.0f}",
                )
            )
    print("\nWhat an engine adds to that")
    print_table(("engine", "machine, model", "waiting", "which costs", "its own machines"), added)
    recordings = options.hours * 3600 / options.clip_s
    parts = options.hours / PART_HOURS
    lists = recordings / LIST_PAGE
    requests = [
        ("list", f"{lists:,.0f}", f"${lists * WRITE_OR_LIST:,.0f}"),
        ("get recordings", f"{recordings:,.0f}", f"${recordings * READ:,.0f}"),
        ("read and write parts", f"{2 * parts:,.0f}", f"${parts * (READ + WRITE_OR_LIST):,.0f}"),
    ]
    print(f"\n{recordings:,.0f} recordings of {options.clip_s:g} s in {parts:,.0f} parts")
    print_table(("requests", "number", "cost"), requests)
    print(
        f"\none process lists them in {recordings / LISTED_A_SECOND / 3600:,.1f} h at best, and "
        f"holds {recordings * PLAN_BYTES / 1e9:,.1f} GB of plan"
    )


if __name__ == "__main__":
    main()
