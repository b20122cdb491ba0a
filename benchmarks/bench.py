"""`make bench`: what precomputed targets buy, and how near each stage is to what the network alone costs.

    python benchmarks/bench.py                   all that fits into nine minutes on two CPU cores
    python benchmarks/bench.py --only memory     some sections; see `sections` for their names
    python benchmarks/bench.py --small           tiny sizes, for tests: its numbers say nothing

On a GPU the same command measures there, with larger networks and SDXL's UNet. It writes
results/benchmark.{csv,md,pdf,png}.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "workflow"), str(HERE.parent / "workflow" / "scripts")]
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")  # as the workflow's jobs on small networks

import dag  # noqa: E402
import distances  # noqa: E402
import memory  # noqa: E402
import networks  # noqa: E402
import online  # noqa: E402
import pandas as pd  # noqa: E402
import sdxl  # noqa: E402
import torch  # noqa: E402
from _surroundings import KEEP_FREED, keep_freed_memory  # noqa: E402
from consistency.files.storage import atomic, write_table, write_text  # noqa: E402
from networks import Case  # noqa: E402
from timing import Row, machine  # noqa: E402

Sections = dict[str, Callable[[], Iterator[Row]]]


def sections(small: bool, folder: Path, sizes: list[int], largest: int) -> Sections:
    """Name → the function that measures it."""
    gpu = torch.cuda.is_available()
    cases = [Case.of(name) for name in (("fashion", "cifar10") if gpu else ("digits", "fashion-small"))]
    cases = [case.smaller() for case in cases] if small else cases
    first, second = cases
    rounds = 2 if small else 3 if gpu else 7

    def steps() -> Iterator[Row]:
        for n_steps, guidance in ((10, 1.0), (10, 4.0), (50, 4.0)):
            yield from online.direct_step(first, n_steps, guidance, rounds)
        yield from online.direct_step(second, 10, 1.0 if gpu else 4.0, 2)

    def solving() -> Iterator[Row]:
        several = 2 if small or gpu else 5
        for case, n_steps, guidance, count, again in (
            (first, 10, 1.0, first.count // (4 if gpu else 1), several),
            (first, 50, 4.0, first.count // (8 if gpu else 4), 1 if gpu else 2),
            (second, 10, 1.0, 4 * second.solve_batch, 2),
            (second, 50 if gpu else 10, 1.0 if gpu else 4.0, 4 * second.solve_batch, 1 if gpu else 2),
        ):
            yield from networks.solving(case, n_steps, guidance, count, again)

    def training() -> Iterator[Row]:
        if gpu:
            yield from networks.training_on_gpu(first, rounds, 8 if small else 40)
            yield from networks.training_on_gpu(second, 2, 8 if small else 16)
            return
        yield from networks.training_step(first, rounds, 8 if small else 200)
        yield from networks.training_step(second, 2, 4 if small else 10)

    def model() -> Iterator[Row]:
        yield from networks.cost_model(
            first, 64 if small else 8192, (8, 32, 64) if small else (64, 256, 512), 1 if gpu else min(rounds, 5)
        )
        if not small:
            sizes = (2048, (64, 128, 256), 1) if gpu else (32, (16, 64, 96), 2)
            yield from networks.cost_model(second, *sizes)

    def sampling() -> Iterator[Row]:
        yield from networks.sampling(first, rounds)
        yield from networks.sampling(second, rounds if gpu else 1)

    def metrics() -> Iterator[Row]:
        yield from distances.features(4 if small else 256 if gpu else 32, 2)
        if gpu:
            return  # the distance is the CPU's
        yield from distances.frechet(200, 64, 2)
        if not small:
            yield from distances.frechet(2500, 512, 2)
            yield from distances.frechet(2500, 2048, 1)

    def workflow() -> Iterator[Row]:
        yield from dag.last_run(folder, os.cpu_count() or 1)
        yield from dag.small_file(20)
        yield from dag.nothing_to_do(3)
        yield from dag.dry_runs([10] if small else sizes)

    return {
        "steps": steps,
        "solving": solving,
        "training": training,
        "sampling": sampling,
        "model": model,
        "metrics": metrics,
        "dag": workflow,
        "memory": lambda: memory.stages([1000] if small else [10**k for k in range(3, 7) if 10**k <= largest]),
        "sdxl": lambda: sdxl.rows([1, 4, 16] if gpu and not small else [1], 2 if small else 3 if gpu else 5, not gpu),
    }


def text(table: pd.DataFrame, about: dict[str, str], seconds: float, command: str) -> str:
    """The table as Markdown, with the machine above it."""
    lines = [
        "# Benchmark",
        "",
        *(f"- {key}: {value}" for key, value in about.items()),
        f"- command: `{command}`, {seconds / 60:.1f} minutes",
        "",
        "Medians [quartiles] of paired measurements (A B A B …); ratios are medians of the ratios round by round.",
    ]
    for section, part in table.groupby("section", sort=False):
        lines += [
            "",
            f"## {section}",
            "",
            "| case | setting | quantity | value | rounds | note |",
            "|---|---|---|---|---|---|",
        ]
        for entry in part.itertuples():
            spread = "" if entry.rounds < 2 else f" [{entry.low:.3g}, {entry.high:.3g}]"
            number = f"{entry.value:,.4g}" if entry.value < 1e6 else f"{entry.value:,.0f}"
            value = f"{number}{spread} {entry.unit}".strip()
            cells = [entry.case, entry.setting, entry.quantity, value, str(entry.rounds), entry.note]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def figure(table: pd.DataFrame, stem: Path) -> None:
    """Step times with and without cached targets; shares of the network's own rate."""
    from consistency.report.figures.style import WIDTH, plt

    drawing, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 2.9), gridspec_kw={"width_ratios": [3, 2]})
    steps = table[(table.section == "Direct CM step") & (table.unit == "ms")]
    names = {
        "step, cached targets": ("cached targets", "#0173b2"),
        "step, best online solve": ("online, packed", "#de8f05"),
        "step, online solve as in the reference": ("online, as the reference", "#949494"),
    }
    groups = list(dict.fromkeys(zip(steps.case, steps.setting, strict=True)))
    for number, (quantity, (label, colour)) in enumerate(names.items()):
        part = steps[steps.quantity == quantity].set_index(["case", "setting"])
        places = [i + (number - 1) * 0.27 for i in range(len(groups))]
        left.bar(places, [part.value[group] for group in groups], 0.27, label=label, color=colour)
    short = ["\n".join([case, *setting.split(", batch")[0].split(", ")[1:]]) for case, setting in groups]
    left.set_xticks(range(len(groups)), short, fontsize=6.5)
    left.set(yscale="log", ylabel="ms a Direct CM step", title="One training step")
    left.legend(loc="upper left")
    left.margins(y=0.35)
    shares = table[table.quantity == "share of the network's own rate"]
    labels = []
    for row in shares.itertuples():
        where, setting = f"{row.section.lower()}, {row.case}", row.setting.split(", batch")[0]
        labels.append(f"{row.case}\n{row.setting}" if row.section == "SDXL" else f"{where}\n{setting}")
    right.barh(range(len(shares)), shares.value, color="#029e73")
    right.axvline(1, color="0.3", linewidth=0.8, linestyle="--")
    right.set_yticks(range(len(shares)), labels, fontsize=5.5)
    right.invert_yaxis()
    right.set(xlabel="share of the network's own rate", xlim=(0, 1.2), title="Overheads (1: nothing lost)")
    drawing.tight_layout()
    for kind in ("pdf", "png"):
        with atomic(stem.with_suffix(f".{kind}")) as temporary:
            drawing.savefig(temporary, format=kind)


def main() -> None:
    """Measure what is asked for and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="sections, separated by commas")
    parser.add_argument("--small", action="store_true", help="tiny sizes, for tests")
    parser.add_argument("--folder", type=Path, default=HERE.parent, help="the checkout whose last run is looked at")
    parser.add_argument("--runs", default="10,100,1000", help="sizes of the dry runs")
    parser.add_argument("--targets", type=int, default=10**6, help="most targets of the memory rows")
    parser.add_argument("--out", type=Path, default=HERE.parent / "results", help="folder of the table")
    chosen = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    available = sections(chosen.small, chosen.folder, [int(size) for size in chosen.runs.split(",")], chosen.targets)
    names = [name for name in chosen.only.split(",") if name] or list(available)
    if unknown := [name for name in names if name not in available]:
        sys.exit(f"--only: no section {unknown[0]!r}; there are {', '.join(available)}")
    began, rows, failed = time.perf_counter(), [], []
    command = " ".join(["python benchmarks/bench.py", *sys.argv[1:]])
    for name in names:
        start = time.perf_counter()
        try:
            for row in available[name]():
                rows.append(row)
                where = f"{row['section']}, {row['case']}, {row['setting']}"
                print(f"{where}: {row['quantity']} {row['value']:.4g} {row['unit']}")
        except Exception:  # the other sections' minutes shall not be lost
            traceback.print_exc()
            failed.append(name)
        print(f"-- {name}: {time.perf_counter() - start:.0f} s", flush=True)
        if rows:
            table = pd.DataFrame(rows)
            write_table(chosen.out / "benchmark.csv", table)
            write_text(chosen.out / "benchmark.md", text(table, machine(), time.perf_counter() - began, command))
    if not rows:
        sys.exit("nothing was measured")
    if {"steps", "solving"} <= set(names):
        figure(table, chosen.out / "benchmark")
    print(f"{len(rows)} rows in {chosen.out / 'benchmark.md'}")
    if failed:
        sys.exit(f"not measured to the end: {', '.join(failed)}")


if __name__ == "__main__":
    if not KEEP_FREED.keys() <= os.environ.keys():  # as in jobs; they are read when a process starts
        keep_freed_memory()
        os.execv(sys.executable, [sys.executable, *sys.argv])
    main()
