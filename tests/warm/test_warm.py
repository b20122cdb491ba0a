"""The process that jobs start from: their results, ends and errors are those of jobs that start afresh."""

import importlib.util
import json
import re
import shutil
import signal
import subprocess
import sys
import textwrap

import psutil
import pytest
import soak
from helpers import ROOT, Project, ended, surroundings, wait_for

SCRIPTS, WARM = ROOT / "workflow" / "scripts", ROOT / "workflow" / "warm"
pytestmark = [
    pytest.mark.needs("linux"),  # jobs start afresh on other systems
    pytest.mark.skipif(not WARM.is_dir(), reason="workflow/warm is deleted"),
]
METRICS = "results/digits/metrics/cm-ddim-n5-w1-s0.json"


def harness(folder, body, script, **environment):
    """Run a Python text beside a server of its own that imports nothing; `run(*, signal)` starts the job `script`."""
    (folder / "tmp0.stage.py").write_text(
        f"import sys; sys.path.append({str(SCRIPTS)!r})\nfrom _job import job\n" + textwrap.dedent(script)
    )
    text = f"""
import os, shlex, signal, subprocess, sys, time
sys.path[:0] = [{str(WARM)!r}, {str(ROOT / "tests")!r}]
from helpers import wait_for
import warm_server
warm_server.MODULES = ()
first = shlex.split(warm_server.start(["other.py", "stage.py"]) or f"{{sys.executable}} {WARM}/warm_client.py")
job = [*first, sys.executable, "tmp0.stage.py"]
{textwrap.dedent(body)}
"""
    return subprocess.run(
        [sys.executable, "-c", text],
        cwd=folder, env=surroundings(**environment), capture_output=True, text=True, timeout=120,
    )  # fmt: skip


@pytest.mark.parametrize("end, code, said", [
    ("pass", 0, ""), ("sys.exit(3)", 3, ""), ("sys.exit('too bad')", 1, "too bad\n"), ("os._exit(4)", 4, ""),
    ("raise ValueError('odd')", 1, "ValueError: odd\n"), ("os.kill(os.getpid(), 11)", -11, ""),
    ("os.kill(os.getpid(), 9)", -9, ""),
])  # fmt: skip
def test_a_job_ends_as_its_fork_does(tmp_path, end, code, said):
    done = harness(tmp_path, "sys.exit(str(subprocess.run(job).returncode))", f"import os\n{end}\n")
    *before, last = done.stderr.splitlines(keepends=True)
    assert last == f"{code}\n"
    if end.startswith("raise"):
        assert before[0] == "Traceback (most recent call last):\n"
        assert before[-1] == said
        assert sum(line.startswith("Traceback") for line in before) == 1
        assert f"    {end}\n" in before
    else:
        assert "".join(before) == said


def test_a_fork_has_the_surroundings_of_its_job(tmp_path):
    """Folder, environment, arguments, mask, standard output and input; the server is its parent and keeps its own."""
    body = """
    server = warm_server._kept[1].pid

    def own():
        status = open(f"/proc/{server}/status").read()
        mask = next(line for line in status.splitlines() if line.startswith("Umask"))
        return [os.readlink(f"/proc/{server}/cwd"), os.readlink(f"/proc/{server}/fd/1"), mask]

    before = own()
    for number in range(2):
        folder = f"folder{number}"
        os.mkdir(folder)
        job = [*first, sys.executable, os.path.abspath("tmp0.stage.py")]
        variables = {k: v for k, v in os.environ.items() if k != "ONLY0"} | {f"ONLY{number}": "yes"}
        with open("said", "a") as said:
            subprocess.run(job, cwd=folder, env=variables, umask=0o27, stdout=said, input=b"words", check=True)
    own() == before or sys.exit(f"the server had {before} and has {own()}")
    print(server)
    """
    script = """
    import json, os
    mask = os.umask(0)
    names = sorted(name for name in os.environ if name.startswith(("ONLY", "CONSISTENCY_WARM")))
    print(json.dumps([os.getcwd(), names, mask, sys.argv, sys.stdin.read(), os.getppid()]))
    """
    done = harness(tmp_path, body, script)
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "said").read_text().splitlines()
    assert len(lines) == 2
    for number, line in enumerate(lines):
        folder, names, mask, arguments, read, parent = json.loads(line)
        assert folder == str(tmp_path / f"folder{number}")
        assert names == [f"ONLY{number}"]
        assert mask == 0o27
        assert arguments == [str(tmp_path / "tmp0.stage.py")]
        assert read == "words"
        assert parent == int(done.stdout)


@pytest.mark.parametrize("how", ["<&- >&- 2>&-", ">&-", "2>&-"])
@pytest.mark.parametrize("warm", ["yes", "no"])
def test_a_job_whose_streams_are_closed(tmp_path, how, warm):
    """What it prints goes nowhere, above all not into a file that it opens; with the server and without."""
    body = f"""
    command = ["bash", "-c", 'exec "$0" "$@" {how}', *job]
    sys.exit(subprocess.run(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE).returncode)
    """
    script = """
    import os
    with open("file", "w") as file:
        print("to nobody", flush=True)
        os.write(1, b"to nobody")
        print("to nobody", file=sys.stderr)
        os.write(2, b"to nobody")
        sys.stdin.read(0)
        file.write("whole")
    sys.stdout.flush()
    """
    done = harness(tmp_path, body, script, **({} if warm == "yes" else {"CONSISTENCY_WARM": "no"}))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "file").read_text() == "whole"


@pytest.mark.parametrize("warm", ["yes", "no"])
def test_a_job_whose_output_nobody_reads(tmp_path, warm):
    """It ends as it would, and one that fails says so by its status."""
    body = """
    for text in ("ends", "fails"):
        read, write = os.pipe()
        os.close(read)
        variables = os.environ | {"TEXT": text}
        print(subprocess.run(job, stdout=write, stderr=write, env=variables).returncode, os.path.exists(text))
        os.close(write)
    """
    script = """
    import os
    from types import SimpleNamespace
    name = os.environ["TEXT"]
    with job(SimpleNamespace(rule="stage", log=["log"], threads=1, resources={}, output=[name], input=[], params={})):
        from consistency.errors import StorageError

        sys.stdout.write("to nobody")
        open(name, "w").close()
        if name == "fails":
            raise StorageError("it is so")
    """
    options = {} if warm == "yes" else {"CONSISTENCY_WARM": "no"}
    done = harness(tmp_path, body, script, PYTHONUNBUFFERED="", **options)
    assert done.stdout.splitlines() == ["0 True", "1 True"], done.stderr
    assert (tmp_path / "log").read_text().endswith("it is so\n")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_signals_are_passed_on(tmp_path, name):
    body = f"""
    process = subprocess.Popen(job)
    wait_for(lambda: os.path.exists("ready"), "the job to begin", process=process)
    process.send_signal(signal.{name})
    print(process.wait())
    """
    script = f"""
    import signal, time
    signal.signal(signal.{name}, lambda number, frame: sys.exit(f"heard {{number}}"))
    open("ready", "w").close()
    time.sleep(30)
    """
    done = harness(tmp_path, body, script)
    assert done.stdout == "1\n"
    assert done.stderr == f"heard {getattr(signal, name).value}\n"


def test_a_fork_dies_with_its_job_and_the_server_with_its_parent(tmp_path):
    body = """
    process = subprocess.Popen(job)
    wait_for(lambda: os.path.exists("ready"), "the job to begin", process=process)
    server = warm_server._kept[1].pid
    print(server, open("ready").read(), flush=True)
    process.kill()
    os._exit(0)
    """
    script = """
    import os, time
    with open("written", "w") as file: file.write(str(os.getpid()))
    os.rename("written", "ready")
    time.sleep(60)
    """
    done = harness(tmp_path, body, script)
    pids = [int(word) for word in done.stdout.split()]
    assert len(set(pids)) == 2

    def alive():
        both = [process for process in psutil.process_iter(["pid", "status", "cmdline"]) if process.pid in pids]
        return [process.info for process in both if process.info["status"] != psutil.STATUS_ZOMBIE]

    wait_for(lambda: not alive(), "the end of the server and of the fork", 30, seen=alive)


def test_other_scripts_and_those_of_several_threads_start_afresh(tmp_path):
    body = """
    os.environ["ABOVE"] = str(os.getpid())
    names = ["tmp0.stage.py", "tmp1.other.py", "tmp2.strange.py", "stage.py"]
    for name in names:
        with open(name, "w") as file:
            file.write("import os\\nprint(os.getppid() == int(os.environ['ABOVE']), flush=True)\\n")
    for name in names:
        subprocess.run([*first, sys.executable, name], check=True)
    subprocess.run(job, check=True, env=os.environ | {"OMP_NUM_THREADS": "2"})
    subprocess.run([*first, "sh", "-c", "exit 3"]).returncode == 3 or sys.exit("exit status")
    """
    done = harness(tmp_path, body, "")
    assert (done.returncode, done.stdout.split()) == (0, ["False", "False", "True", "True", "True"]), done.stderr


def test_shell_commands_of_rules_are_left_alone(tmp_path):
    """What stands before a script's command would break `cd … && …`: with such a rule all jobs start afresh."""
    project = Project(tmp_path)
    with open(project.folder / "Snakefile", "a") as file:
        file.write('\n\nrule greet:\n    output: "greeting"\n    shell: "cd . && echo hello > {output}"\n')
    project.configure({}, experiments=["digits", "gaussians-modes", "gaussians-ring"])
    files = [f"results/gaussians-{e}/{n}.safetensors" for e in ("modes", "ring") for n in ("data", "noise")]
    done = project.snakemake("greeting", *files)
    assert (project.folder / "greeting").read_text() == "hello\n"
    assert re.search(r"^total +[5-9]$", done.stdout + done.stderr, re.MULTILINE)


def test_without_the_server_a_job_starts_afresh(tmp_path):
    script = "import os\nprint(os.getppid() == int(os.environ['ABOVE']))\n"
    body = """
    {}
    os.environ["ABOVE"] = str(os.getpid())
    subprocess.run(job, check=True)
    """
    killed = "warm_server._kept[1].kill(); warm_server._kept[1].wait()"
    assert harness(tmp_path, body.format("pass"), script).stdout == "False\n"
    assert harness(tmp_path, body.format(killed), script).stdout == "True\n"
    other = "os.environ['CONSISTENCY_WARM'] = os.environ['CONSISTENCY_WARM'].replace(sys.executable, '/other')"
    assert harness(tmp_path, body.format(other), script).stdout == "True\n"
    assert harness(tmp_path, body.format("pass"), script, CONSISTENCY_WARM="no").stdout == "True\n"


def test_only_who_knows_the_secret_gets_a_fork(tmp_path):
    """Another container of the same user may share the abstract address's network, not this environment."""
    body = """
    import socket, struct
    address, secret, *_ = os.environ["CONSISTENCY_WARM"].split(" ")
    request = b"\\0".join([os.fsencode(os.path.abspath("tmp0.stage.py")), os.getcwdb(), b"18", b"PATH=/bin"])
    right = bytes.fromhex(secret)
    for start in (bytes(32), right[:31], right[::-1], secret.encode(), right):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(20)
            connection.connect(f"\\0{address}")
            connection.sendall(start)
            try:
                socket.send_fds(connection, [struct.pack("I", len(request)) + request], [0, 1, 2])
                answer = connection.recv(5)
            except OSError:  # it has closed the connection already
                answer = b""
            if answer:  # while somebody waits for its end, a job goes on
                wait_for(lambda: os.path.exists("ran"), "the one job that is allowed")
            print(answer, os.path.exists("ran"), flush=True)
    """
    done = harness(tmp_path, body, "open('ran', 'w').close()\n")
    assert done.stdout.splitlines() == [*["b'' False"] * 4, "b'fork ' True"], done.stdout + done.stderr


def test_the_secret_stands_in_no_argument_and_no_jobs_environment(tmp_path):
    body = """
    secret = os.environ["CONSISTENCY_WARM"].split(" ")[1]
    subprocess.run(job, check=True, stdout=open("said", "w"))
    arguments = open(f"/proc/{warm_server._kept[1].pid}/cmdline").read()
    print(len(secret), secret in arguments, secret in open("said").read())
    """
    done = harness(tmp_path, body, "import os\nprint(os.environ)\n")
    assert done.stdout == "64 False False\n", done.stderr


def test_silent_connections_do_not_keep_the_server_from_work(tmp_path):
    """More of them than it may open files: jobs then still get a fork, or start afresh."""
    body = """
    import resource, socket
    resource.prlimit(warm_server._kept[1].pid, resource.RLIMIT_NOFILE, (64, 64))
    address = os.environ["CONSISTENCY_WARM"].split(" ")[0]
    silent = []
    for _ in range(100):
        silent.append(socket.socket(socket.AF_UNIX))
        silent[-1].connect(f"\\0{address}")
    for _ in range(3):
        subprocess.run(job, check=True, timeout=30)
    print(warm_server._kept[1].poll())
    """
    done = harness(tmp_path, body, "import os\nprint('done', flush=True)\n")
    assert done.stdout == "done\ndone\ndone\nNone\n", done.stdout + done.stderr


def test_a_server_with_hardly_a_descriptor_left_goes_on(tmp_path):
    """Whatever it has none for, a connection or the watch on a fork: each job then gets a fork, or starts afresh."""
    body = """
    import resource
    server = warm_server._kept[1].pid
    subprocess.run(job, check=True, timeout=30)
    wait_for(lambda: len(os.listdir(f"/proc/{server}/fd")) < 12, "the first fork's descriptors to be closed")
    used = max(map(int, os.listdir(f"/proc/{server}/fd"))) + 1
    for spare in (1, 2, 3):  # with none a connection waits until another ends
        resource.prlimit(server, resource.RLIMIT_NOFILE, (used + spare, used + 100))
        subprocess.run(job, check=True, timeout=30)
    print(warm_server._kept[1].poll())
    """
    done = harness(tmp_path, body, "import os\nprint('done', flush=True)\n")
    assert done.stdout == "done\n" * 4 + "None\n", done.stdout + done.stderr


def test_a_fork_or_a_connection_that_fails_ends_neither_server_nor_jobs(tmp_path):
    """As where a machine has no process or no descriptor left: that job starts afresh, the one in progress goes on."""
    (tmp_path / "failing.py").write_text(
        textwrap.dedent("""
        import os, socket

        fork, accept, calls = os.fork, socket.socket.accept, []

        def fork_or_fail():
            calls.append("fork")
            if calls.count("fork") == 2:
                raise BlockingIOError(11, "Resource temporarily unavailable")
            return fork()

        def accept_or_fail(listener):
            calls.append("accept")
            if calls.count("accept") == 4:
                raise OSError(24, "Too many open files")
            return accept(listener)

        os.fork, socket.socket.accept = fork_or_fail, accept_or_fail
        """)
    )
    body = """
    warm_server._kept.clear(); del os.environ["CONSISTENCY_WARM"]  # ends the first server
    first = shlex.split(warm_server.start(["stage.py"], "failing"))
    job = [*first, sys.executable, "tmp0.stage.py"]
    os.environ["ABOVE"] = str(os.getpid())
    long = subprocess.Popen(job, env=os.environ | {"READY": "yes"})
    wait_for(lambda: os.path.exists("ready"), "the job to begin", process=long)
    for _ in range(3):
        subprocess.run(job, check=True, timeout=30)
    os.rename("ready", "go")
    sys.exit(long.wait())
    """
    script = """
    import os, time
    forked = os.getppid() != int(os.environ["ABOVE"])
    if "READY" in os.environ:
        open("ready", "w").close()
        while not os.path.exists("go"):
            time.sleep(0.01)
    print("forked" if forked else "afresh", flush=True)
    """
    done = harness(tmp_path, body, script, PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout.split()) == (0, ["afresh", "forked", "forked", "forked"]), done.stderr


def test_a_server_killed_under_a_job_is_told(tmp_path):
    body = """
    process = subprocess.Popen(job)
    wait_for(lambda: os.path.exists("ready"), "the job to begin", process=process)
    warm_server._kept[1].kill()
    os.rename("ready", "go")
    sys.exit(process.wait() or "no error")
    """
    script = """
    import os, time
    open("ready", "w").close()
    while not os.path.exists("go"):
        time.sleep(0.01)
    """
    done = harness(tmp_path, body, script)
    assert done.returncode == 1
    assert done.stderr == "the process that jobs start from (warm_server.py) was killed; run again\n"


def start(project, *arguments, **environment):
    """A snakemake in the background, and where what it says goes."""
    variables = surroundings(**environment)
    command = [sys.executable, "-m", "snakemake", "--cores", "2", *arguments]
    said = project.folder / "output.txt"
    with open(said, "w") as output:
        return subprocess.Popen(command, cwd=project.folder, env=variables, stdout=output, stderr=output), said


@pytest.mark.long
@pytest.mark.parametrize("how", ["switched off", "deleted"])
def test_results_are_those_of_fresh_processes(finished, tmp_path, how):
    """The same bytes, from data to metrics; also where nothing of the folder is there."""
    project = Project(tmp_path)
    if how == "deleted":
        shutil.rmtree(project.folder / "workflow/warm")
    running, said = start(project, METRICS, **({"CONSISTENCY_WARM": "no"} if how == "switched off" else {}))
    assert ended(running, "snakemake", seen=said.read_text) == 0, said.read_text()
    seen, expected = soak.outcome(tmp_path / "results"), soak.outcome(finished.folder / "results")
    assert len(seen) >= 12
    assert [name for name in seen if seen[name] != expected[name]] == []


def test_library_and_scripts_do_not_name_it():
    files = [path for folder in (ROOT / "workflow/consistency", SCRIPTS) for path in sorted(folder.rglob("*.py"))]
    assert len(files) > 90
    names = re.compile("warm_server|warm_client|start_jobs_warm|CONSISTENCY_WARM|workflow/warm")
    assert [path.name for path in files if names.search(path.read_text(encoding="utf-8"))] == []


def test_the_modules_that_it_imports_are_there(monkeypatch):
    """A missing one would be passed over, and every job would be slower."""
    monkeypatch.syspath_prepend(str(WARM))
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import warm_server

    assert [name for name in warm_server.MODULES if importlib.util.find_spec(name) is None] == []


@pytest.mark.parametrize("gpu", [0, 1])
def test_jobs_on_a_gpu_and_downloads_start_afresh(tmp_path, gpu):
    project = Project(tmp_path)
    project.configure({"gpu": gpu})
    with open(project.folder / "Snakefile", "a") as file:
        file.write("\n\nprint('forking:', *scripts_that_fork(), file=sys.stderr)\n")
    done = project.snakemake("--dry-run", "results/digits/data.safetensors")
    forking = set(re.search(r"forking: (.*)", done.stderr)[1].split())
    assert {"collect_metrics.py", "figure.py", "prepare_data.py"} <= forking
    assert not forking & {"download.py", "prepare_captions.py", "status.py", "_job.py"}
    assert ({"train_teacher.py", "solve_targets.py"} <= forking) == (gpu == 0)


@pytest.mark.long
@pytest.mark.parametrize(
    "target, threads, forks", [("metrics.csv", 1, True), ("metrics.csv", 2, False), ("teacher", 1, False)]
)
def test_few_jobs_and_those_of_several_threads_start_afresh(tmp_path, target, threads, forks):
    """By their own word in the lock file: the process that trains is a fork of the server, or the job itself."""
    project = Project(tmp_path)
    project.configure({"teacher": {"training": {"steps": 3000, "checkpoint_every": 10_000, "threads": threads}}})
    lock = project.folder / "results/logs/digits/train_teacher.log.lock"
    running, said = start(project, f"results/digits/{target}")
    wait_for(lambda: lock.exists() and lock.read_text(), "the training to begin", process=running, seen=said.read_text)
    job = psutil.Process(int(lock.read_text().split()[1]))
    assert any(word.endswith("warm_server.py") for word in job.cmdline()) == forks
    assert any(word.endswith("warm_server.py") for word in job.parent().cmdline()) == forks
    running.terminate()
    job.terminate()  # else snakemake waits for its last step
    ended(running, "snakemake", seen=said.read_text)
