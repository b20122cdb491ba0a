"""Peak memory of the stages against the number of targets."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from timing import ROOT, Row, row

SIDE = 8
# Each stage in a process of its own, on a network that costs little: what is asked is the memory.
STAGES = {
    "solve_targets": """
        teacher = Teacher(networks.build(network, (1, 8, 8), 10, 1000, 0).eval(), VPSchedule())
        images = torch.randint(0, 256, (512, 1, 8, 8), dtype=torch.uint8)
        targets.solve_shard(folder / "shard-0.safetensors", teacher, images, torch.zeros(512, dtype=torch.int64),
                            range(count), "paper", "ddim", 2, 1.0, 0, 4096)
    """,
    "gather_targets": """
        settings = {"mode": "paper", "n_steps": 2, "guidance": 1.0, "count": count}
        manifest.gather(folder / "manifest.json", [folder / "shard-0.safetensors"], settings, "0" * 64)
    """,
    "train_student (reading)": """
        reader = targets.TargetReader(folder / "manifest.json", VPSchedule(), 128, 0)
        for step in range(min(2000, 2 * count // 128)):
            reader(step)
    """,
    "sample_student": """
        files = {"student": folder / "student", "noise": folder / "noise.safetensors"}
        networks.save(networks.build(network, (1, 8, 8), 10, 1000, 0), files["student"])
        shapes = {"noise": (torch.float32, (count, 1, 8, 8)), "labels": (torch.int64, (count,))}
        with tensor_file(files["noise"], shapes):
            pass  # zeros
        sampler = BUILT_INS.get("sampler", "renoise").call({})
        job = SamplingJob(flow="vp", flow_options={}, parameterisation="boundary", sampler=sampler, n_steps=2,
                          sampling_steps=[1], count=count, seed=0, batch_size=4096, precision="no")
        sampling.sample_student(folder / "s.safetensors", job, files)
    """,
}
HEAD = """
import logging, sys, torch
from pathlib import Path
from consistency import networks
from consistency.config.jobs import SamplingJob
from consistency.config.registry import BUILT_INS
from consistency.files.writers import tensor_file
from consistency.flow.schedules import VPSchedule
from consistency.students import sampling
from consistency.teachers import manifest, targets
from consistency.teachers.protocol import Teacher
torch.set_num_threads(1)
folder, count = Path(sys.argv[1]), int(sys.argv[2])
network = {"kind": "mlp", "width": 8, "depth": 1}
"""


def peak(code: str, folder: Path, count: int) -> float:
    """Most megabytes that a stage held for itself (RssAnon, looked at every 10 ms). Pages of files that it mapped are
    not counted: the system takes them back when it needs them."""
    lines = "\n".join(line[8:] for line in code.splitlines())
    command = [sys.executable, "-c", HEAD + lines, str(folder), str(count)]
    process = subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": str(ROOT / "workflow")}, stderr=subprocess.PIPE, text=True
    )
    most = 0
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
            most = max([most, *(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))])
        except OSError:
            break
        time.sleep(0.01)
    if process.wait():
        raise RuntimeError(process.stderr.read()[-2000:])
    return most / 1024


def stages(sizes: list[int]) -> Iterator[Row]:
    """Peaks of all stages for each number of targets (or samples)."""
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            for name, code in STAGES.items():
                setting = f"{size:,} of 1×{SIDE}×{SIDE}, one file"
                note = "of which about 150 MB are torch"
                most = peak(code, Path(folder), size)
                yield row("Memory", name, setting, "peak, without pages of mapped files", "MB", most, note=note)
