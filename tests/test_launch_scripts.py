"""The scripts in launch/: checked by shellcheck, printed by --dry-run, and run with stand-ins for
gcloud, srun and kubectl."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted([*ROOT.glob("launch/*.sh"), *ROOT.glob("launch/*.sbatch")])
RUN = ["--config=configs/digits.py", "--workdir=gs://b/run", "--config.data.name=it's"]
LAUNCHED = "launch/train.py --config=configs/digits.py --workdir=gs://b/run"
POD = ["launch/tpu_pod.sh", "--name=a", "--zone=z", "--accelerator=v5litepod-16"]
GKE = ["launch/gke.sh", "--name=a", "--image=me/nvae:1", "--accelerator=tpu-v5-lite-podslice"]
GKE += ["--topology=4x4"]
SLURM = ["launch/slurm.sbatch"]
CLUSTER = ["launch/local_cluster.sh"]


def bash(*arguments, **variables):
    """Runs a script: (exit status, stdout, stderr)."""
    done = subprocess.run(
        ["bash", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


def stand_in(folder, name, code):
    """A program `name` in `folder`."""
    path = Path(folder) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{code}\n")
    path.chmod(0o755)


def with_path(folder):
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_shellcheck(script):
    program = shutil.which("shellcheck") or Path(sys.executable).parent / "shellcheck"
    if not os.access(program, os.X_OK):
        pytest.skip("shellcheck is not installed")
    command = [program, "--external-sources", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", [POD, GKE, SLURM, CLUSTER], ids=lambda script: script[0])
def test_help_and_wrong_options(script):
    status, output, _ = bash(script[0], "--help")
    assert status == 0 and script[0] in output and "--dry-run" in output
    status, output, error = bash(script[0], "--no-such-option")
    assert (status, output) == (2, "")
    assert re.fullmatch("error: unknown option --no-such-option; see .*--help\n", error)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*POD, *RUN[1:]], "--config is missing"),
        ([*POD, RUN[0]], "--workdir is missing"),
        ([*POD[:3], "--accelerator=v9-8", *RUN], "--version is missing: .*v9-8"),
        ([*POD, *RUN, "--restarts=x"], "--restarts must be a number"),
        ([*GKE[:-1], "--topology=4", *RUN], "--topology must be such as 4x4, not '4'"),
        ([*GKE[:-1], "--topology=3x3", *RUN], "3x3 has 9 chips, which hosts of 4 cannot have"),
        ([*GKE, "--name=A_b", *RUN], "--name must be of a-z"),
        ([*SLURM, *RUN[1:]], "--config=configs/X.py is missing"),
        ([*SLURM, *RUN], "no SLURM job"),
        ([*CLUSTER, "two", "--", "true"], "N must be a number of processes, not 'two'"),
        ([*CLUSTER, "2", "true"], "unexpected argument true: COMMAND comes after --"),
        ([*CLUSTER, "2"], "no COMMAND after --"),
        ([*CLUSTER, "2", "--devices-per-process=0", "--", "true"], "must be a positive number"),
    ],
)
def test_wrong_values_end_in_one_line(arguments, message, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    status, output, error = bash(*arguments)
    assert (status, output) == (2, "")
    assert error.count("\n") == 1 and re.search(message, error)


def test_dry_run_of_tpu_pod(tmp_path):
    stand_in(tmp_path, "gcloud", "exit 1")
    status, output, error = bash(*POD, "--spot", *RUN, "--dry-run", **with_path(tmp_path))
    assert (status, error) == (0, "")
    assert (
        "queued-resources create a --node-id=a --zone=z --accelerator-type=v5litepod-16" in output
    )
    assert "--runtime-version=v2-alpha-tpuv5-lite --spot" in output
    assert LAUNCHED in output and '".[tpu]"' in output
    assert bash("-n", "-c", output)[0] == 0


def test_dry_run_of_slurm():
    status, output, _ = bash(*SLURM, "--dry-run", *RUN)
    assert status == 0
    submit, _, run = output.splitlines()
    assert submit.startswith("sbatch launch/slurm.sbatch --config=configs/digits.py")
    assert run.startswith("srun ") and LAUNCHED in run
    assert r"'--config.data.name=it'\''s'" in run


@pytest.mark.parametrize("spot", [[], ["--spot"]])
def test_dry_run_of_gke(spot):
    status, output, _ = bash(*GKE, *spot, "--dry-run", *RUN, '--config.data.dir=a&"\\b')
    assert status == 0 and "${" not in output
    jobset = yaml.safe_load(output)
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    container = pod["containers"][0]
    assert (jobset["kind"], jobset["metadata"]["name"]) == ("JobSet", "a")
    assert job["parallelism"] == job["completions"] == 4
    assert container["args"] == [*RUN, '--config.data.dir=a&"\\b']
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4"
    assert ("cloud.google.com/gke-spot" in pod["nodeSelector"]) == bool(spot)
    assert ("tolerations" in pod) == bool(spot)


def test_gke_applies_the_jobset(tmp_path):
    stand_in(tmp_path, "kubectl", f'[[ $* == "apply -f -" ]] && cat > {tmp_path}/applied')
    status, output, _ = bash(*GKE, *RUN, **with_path(tmp_path))
    assert status == 0 and "kubectl logs --follow" in output
    assert yaml.safe_load((tmp_path / "applied").read_text())["metadata"]["name"] == "a"


@pytest.mark.parametrize(
    ("ended", "restarts", "expected", "requeued"),
    [
        (0, 0, 0, False),
        (2, 0, 2, False),
        (143, 0, 0, True),
        (137, 49, 0, True),
        (137, 50, 137, False),
    ],
)
def test_slurm_queues_again_after_a_signal(tmp_path, ended, restarts, expected, requeued):
    stand_in(tmp_path, "srun", f"echo devices $JAX_LOCAL_DEVICE_IDS; exit {ended}")
    stand_in(tmp_path, "scontrol", 'echo "scontrol $*"')
    job = {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(ROOT)}
    job |= {"SLURM_RESTART_COUNT": str(restarts), "SLURM_NTASKS_PER_NODE": "1"}
    status, output, _ = bash(
        *SLURM, *RUN, **job, SLURM_GPUS_ON_NODE="4", JAX_LOCAL_DEVICE_IDS="", **with_path(tmp_path)
    )
    assert status == expected
    assert "devices 0,1,2,3\n" in output
    assert ("scontrol requeue 7" in output) == requeued


# Two "hosts" are two folders; commands for them are run there.
GCLOUD = """
state=$(cat "$FAKE/state")
echo "$*" >> "$FAKE/calls"
case "$*" in
  *describe*)
    [[ $state != MISSING ]] || { echo "ERROR: NOT_FOUND" >&2; exit 1; }
    echo "$state" ;;
  *" create "*) echo READY > "$FAKE/state" ;;
  *" delete "*) echo MISSING > "$FAKE/state"; rm -rf "$FAKE"/host*/train ;;
  *" scp "*) for host in "$FAKE"/host*; do cp "$5" "$host/nvae_jax.tar.gz"; done ;;
  *" ssh "*)
    [[ $state == READY ]] || exit 255
    for host in "$FAKE"/host*; do
      [[ $* != *--worker=0* || $host == *host0 ]] || continue
      for argument; do case $argument in --command=*) command=${argument#*=} ;; esac; done
      (cd "$host" && bash -c "$command") || exit
    done ;;
esac
"""

# The first run is preempted, the second loses a host, the third ends as $FAKE/end says.
PYTHON = """
echo "start $*"
count=$(cat ../count 2>/dev/null || echo 0)
echo $((count + 1)) > ../count
sleep 0.3
case $count in
  0) echo PREEMPTED > "$FAKE/state"; exit 143 ;;
  1) [[ $PWD == *host0* ]] && exit 134; kill -9 $PPID; exit 137 ;;
  *) exit "$(cat "$FAKE/end")" ;;
esac
"""


@pytest.mark.parametrize("end", [0, 2])
def test_tpu_pod_resumes(tmp_path, end):
    stand_in(tmp_path, "gcloud", GCLOUD)
    for host in ("host0", "host1"):
        stand_in(tmp_path, f"{host}/venv/bin/python", PYTHON)
        stand_in(tmp_path, f"{host}/venv/bin/pip", "[[ $* == *'.[tpu]'* ]]")
    (tmp_path / "state").write_text("MISSING\n")
    (tmp_path / "end").write_text(f"{end}\n")
    fake = {"FAKE": str(tmp_path), "TPU_POD_POLL_SECONDS": "0.1", **with_path(tmp_path)}
    status, output, error = bash(*POD, "--delete", *RUN, **fake)
    calls = (tmp_path / "calls").read_text()
    starts = re.findall(f"start -u {LAUNCHED} --config.data.name=it's", output)
    assert calls.count("queued-resources create") == 2  # at the start and after preemption
    assert error.count("lost: resuming") == 2
    assert {(tmp_path / host / "count").read_text() for host in ("host0", "host1")} == {"3\n"}
    assert len(starts) >= 2, output
    if end:
        assert status == 2 and "training failed" in error
    else:
        assert status == 0 and calls.rstrip().endswith("--force --quiet"), error


def test_tpu_pod_gives_up(tmp_path):
    stand_in(tmp_path, "gcloud", "echo 'ERROR: quota' >&2; exit 1")
    fake = {"TPU_POD_POLL_SECONDS": "0.01", **with_path(tmp_path)}
    status, _, error = bash(*POD, *RUN, **fake)
    assert status == 2 and "gcloud cannot tell the state of a" in error


CLUSTER_PROGRAM = """
import json, os, signal, sys, time
names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "XLA_FLAGS")
print(json.dumps([os.environ[name] for name in names]), flush=True)
index = int(os.environ["JAX_PROCESS_ID"])
{body}
"""


def cluster(body, *options):
    program = CLUSTER_PROGRAM.format(body=body)
    return [*CLUSTER, "2", *options, "--", sys.executable, "-c", program]


def marked_lines(output):
    """{process: its lines}"""
    lines = {}
    for line in output.splitlines():
        mark, text = re.fullmatch(r"\[(\d)\] (.*)", line).groups()
        lines.setdefault(int(mark), []).append(text)
    return lines


def test_dry_run_of_local_cluster():
    command = ["python", "launch/train.py", *RUN]
    status, output, _ = bash(*CLUSTER, 2, "--devices-per-process=4", "--dry-run", "--", *command)
    assert status == 0
    first, second, last = output.splitlines()
    assert last == "wait" and first.replace("PROCESS_ID=0", "PROCESS_ID=1") == second
    assert "JAX_NUM_PROCESSES=2" in first and "device_count=4" in first and LAUNCHED in first


def test_local_cluster():
    body = "sys.stdout.write('no newline'); print('error', file=sys.stderr)"
    status, output, _ = bash(*cluster(body, "--devices-per-process=3"), XLA_FLAGS="--a")
    lines = marked_lines(output)
    environments = [json.loads(lines[index][0]) for index in (0, 1)]
    assert status == 0 and environments[0][0] == environments[1][0]
    assert re.fullmatch(r"localhost:\d+", environments[0][0])
    flags = "--a --xla_force_host_platform_device_count=3"
    assert [found[1:] for found in environments] == [["2", "0", flags], ["2", "1", flags]]
    assert all("no newline" in "".join(lines[index]) for index in (0, 1))


def test_local_cluster_stops_the_rest_when_one_fails():
    begin = time.monotonic()
    body = "index and sys.exit(3); time.sleep(50)"
    status, _, error = bash(*cluster(body, "--grace=1"))
    assert status == 3 and time.monotonic() - begin < 20
    assert "process 1 ended with status 3" in error and "killing them" in error


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_local_cluster_passes_signals_on(number):
    body = """
def stop(number, _):
    time.sleep(0.5)
    print("saved", flush=True)
    sys.exit(128 + number)

signal.signal(signal.SIGINT, stop)
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
time.sleep(50)
"""
    # What a shell starts in the background ignores SIGINT, and bash cannot trap what it ignores.
    command = ["env", "--default-signal=INT", "bash", *cluster(body, "--grace=0")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        seen = 0
        while seen < 2:
            seen += process.stdout.readline().endswith("] ready\n")
        process.send_signal(number)
        output, _ = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 128 + number
    assert marked_lines(output) == {0: ["saved"], 1: ["saved"]}
