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
KINDS = ("launch/*.sh", "launch/*.sbatch", ".ci/*")
SCRIPTS = sorted(script for kind in KINDS for script in ROOT.glob(kind))
RUN = ["--config=configs/digits.py", "--workdir=/data/run", "--config.data.name=it's"]
LAUNCHED = "launch/train.py --config=configs/digits.py --workdir=/data/run"
POD = ["launch/tpu_pod.sh", "--name=a", "--zone=z", "--accelerator=v5litepod-16"]
GKE = ["launch/gke.sh", "--name=a", "--image=me/nvae:1", "--accelerator=tpu-v5-lite-podslice"]
GKE += ["--topology=4x4", "--volume-claim=runs"]
SLURM = ["launch/slurm.sbatch"]
CLUSTER = ["launch/local_cluster.sh"]
QUICKSTART = ["launch/quickstart.sh"]


def bash(*arguments, **variables):
    """Runs a script: (exit status, stdout, stderr).

    What checks the flags of training lets everything pass, unless PYTHON names another program.
    """
    done = subprocess.run(
        ["bash", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHON": "true", **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


def in_new_folder(path):
    """Makes the folder of `path`, and returns `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def stand_in(folder, name, code):
    """Makes a program `name` in `folder`, which runs `code` in place of the real one."""
    path = in_new_folder(Path(folder) / name)
    path.write_text(f"#!/usr/bin/env bash\n{code}\n")
    path.chmod(0o755)


def with_path(folder):
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_shellcheck_finds_nothing(script):
    program = shutil.which("shellcheck") or Path(sys.executable).parent / "shellcheck"
    if not os.access(program, os.X_OK):
        pytest.skip("shellcheck is not installed")
    command = [program, "--external-sources", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", [POD, GKE, SLURM, CLUSTER], ids=lambda script: script[0])
def test_help_is_shown_and_wrong_options_are_refused(script):
    status, output, _ = bash(script[0], "--help")
    assert status == 0 and script[0] in output and "--dry-run" in output
    status, output, error = bash(script[0], "--no-such-option")
    assert (status, output) == (2, "")
    assert re.fullmatch("error: unknown option --no-such-option; see .*--help\n", error)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*POD, *RUN[1:]], "--config=configs/X.py is missing"),
        ([*POD, RUN[0]], "--workdir=DIR is missing"),
        ([*POD, RUN[0], "--workdir="], "--workdir=DIR is missing or empty"),
        ([*POD[:3], "--accelerator=v9-8", *RUN], "--version is missing: .*v9-8"),
        ([*POD, *RUN, "--restarts=x"], "--restarts must be a number from 0 to 1000, not 'x'"),
        ([*POD, *RUN, "--restarts=x\ny"], "--restarts must be a number from 0 to 1000, not .x y"),
        ([*POD, *RUN, "--restarts=1000000000"], "--restarts must be a number from 0 to 1000"),
        ([*POD, *RUN, "--project=a b"], "--project must be a name, not 'a b'"),
        ([*POD, *RUN, "--slices=0"], "--slices must be a number from 1 to 256, not '0'"),
        ([*GKE, *RUN, "--slices=two"], "--slices must be a number from 1 to 256, not 'two'"),
        ([*GKE, "--topology=4", *RUN], "--topology must be such as 4x4, not '4'"),
        ([*GKE, "--topology=3x3", *RUN], "3x3 has 9 chips, which is no multiple of 4 per host"),
        ([*GKE, "--topology=99x99x99", *RUN], "chips of --topology=99x99x99 must be a number"),
        ([*GKE, "--chips-per-host=1000000", *RUN], "--chips-per-host must be a number from 1"),
        ([*GKE[:-1], *RUN], "is missing: each pod would have its own --workdir=/data/run"),
        ([*GKE, "--bucket=b", *RUN], "give only one of them"),
        ([*GKE, "--mount=/mnt", *RUN], "--workdir=/data/run must be a folder in /mnt"),
        ([*GKE, RUN[0], "--workdir=/data"], "--workdir=/data must be a folder in /data"),
        ([*GKE, RUN[0], "--workdir=/data/../run"], "must be a folder in /data"),
        ([*GKE, "--name=A_b", *RUN], "--name must consist of a-z"),
        ([*SLURM, *RUN[1:]], "--config=configs/X.py is missing"),
        ([*SLURM, *RUN], "not a SLURM job"),
        ([*CLUSTER, "two", "--", "true"], "N must be a number from 1 to 256, not 'two'"),
        ([*CLUSTER, "1000000", "--", "true"], "N must be a number from 1 to 256"),
        ([*CLUSTER, "2", "true"], "unexpected argument true: COMMAND comes after --"),
        ([*CLUSTER, "2"], "no COMMAND after --"),
        ([*CLUSTER, "2", "--devices-per-process=0", "--", "true"], "must be a number from 1"),
        ([*QUICKSTART, "--no-such-option"], "unknown option --no-such-option; see --help"),
        ([*QUICKSTART, "runs/a", "runs/b"], "unexpected argument runs/b"),
        ([*QUICKSTART, ""], "DIR must not be empty"),
    ],
)
def test_wrong_values_are_a_one_line_error(arguments, message, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    status, output, error = bash(*arguments)
    assert (status, output) == (2, "")
    assert error.count("\n") == 1 and re.search(message, error)


@pytest.mark.parametrize("url", ["az://bucket/run", "gs:///run", "file:///run"])
@pytest.mark.parametrize("flag", ["--workdir=", "--config.data.dir="])
@pytest.mark.parametrize(
    "script", [POD, GKE, SLURM, [*CLUSTER, "2", "--", "train"], QUICKSTART], ids=lambda s: s[0]
)
def test_unsupported_urls_are_refused_before_anything_is_rented(script, flag, url, tmp_path):
    for program in ("gcloud", "kubectl", "srun", "train"):
        stand_in(tmp_path, program, f"touch {tmp_path}/called")
    arguments = [*script, *RUN, f"{flag}{url}"] if script is not QUICKSTART else [*script, url]
    job = {"SLURM_JOB_ID": "7", **with_path(tmp_path)}
    status, output, error = bash(*arguments, **job)
    assert (status, output) == (2, "")
    assert error.count("\n") == 1 and f"{url}: this URL is not supported; give a bucket" in error
    assert not (tmp_path / "called").exists()


@pytest.mark.parametrize("script", [POD, GKE, [*SLURM, "--dry-run"]], ids=lambda s: s[0])
def test_a_wrong_config_is_refused_before_anything_is_rented(script, tmp_path):
    for program in ("gcloud", "kubectl"):
        stand_in(tmp_path, program, f"touch {tmp_path}/called")
    code = """
[[ $1 == - ]] && exit  # asked whether it has the packages
[[ "$1 $2" == "launch/train.py --check" && $* == *--config=configs/digits.py* ]] || exit 7
echo "error: no such key" >&2
exit 2"""
    stand_in(tmp_path, "checking", code)
    refused = bash(*script, *RUN, PYTHON="checking", **with_path(tmp_path))
    assert refused == (2, "", "error: no such key\n")
    without_packages = {"PYTHON": "false", **with_path(tmp_path)}
    status, output, error = bash(*script, "--config=configs/no.py", RUN[1], **without_packages)
    assert (status, output) == (2, "") and "there is no file configs/no.py" in error
    assert not (tmp_path / "called").exists()
    if "--dry-run" in script:
        for config in (RUN[0], "--config=digits"):
            status, _, error = bash(*script, config, *RUN[1:], **without_packages)
            assert status == 0 and "config keys are not checked" in error


def test_check_of_train_checks_flags_and_config_without_training(commands, tmp_path):
    folder = f"--workdir={tmp_path / 'run'}"
    done = commands.run("train", "--check", RUN[0], folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = commands.run("train", "--check", RUN[0], folder, "--config.mesh.data=0")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "mesh.data" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("script", ["launch/quickstart.sh", "launch/test.sh"])
def test_help_of_scripts_that_install_is_shown_without_installing(script):
    status, output, _ = bash(script, "--help")
    assert status == 0 and output.startswith(f"bash {script} [")


def test_the_test_script_passes_known_options_to_pytest_and_refuses_others(tmp_path):
    """Options that neither the script nor pytest knows are refused; the others are passed to
    pytest."""
    for name in ("launch/test.sh", "launch/launcher.sh"):
        shutil.copy(ROOT / name, in_new_folder(tmp_path / name))
    (tmp_path / "launch/environment.sh").write_text("install_environment() { :; }\n")
    (tmp_path / "pyproject.toml").touch()
    code = f"""[[ $* == *--help ]] && exec {sys.executable} "$@"
echo "$@" """
    stand_in(tmp_path, ".venv/bin/python", code)
    script = tmp_path / "launch" / "test.sh"
    status, output, _ = bash(script, "-n", "0", "--with-torch", "--maxfail=1", "tests/data")
    assert status == 0 and output.splitlines()[-1].endswith("-n 0 --maxfail=1 tests/data")
    assert bash(script, "--quick")[1].splitlines()[-1].endswith(" @tests/quick.txt")
    status, output, error = bash(script, "--maxfial=1")
    assert (status, output) == (2, "")
    assert error == "error: unknown option --maxfial=1; see --help, and pytest --help\n"


@pytest.mark.parametrize("failing", ["none", "train", "evaluate", "sample"])
def test_quickstart_fails_when_any_of_its_commands_fails(tmp_path, failing):
    """It leaves no process behind, though evaluation and sampling run at the same time."""
    for name in ("launch/quickstart.sh", "launch/launcher.sh"):
        shutil.copy(ROOT / name, in_new_folder(tmp_path / name))
    (tmp_path / "launch/environment.sh").write_text("install_environment() { :; }\n")
    code = f"""case $1 in
  *{failing}.py) exit 3 ;;
  *evaluate.py) if [[ {failing} == sample ]]; then exec sleep 100; fi ;;
esac
echo "$1" """
    stand_in(tmp_path, ".venv/bin/python", code)
    status, output, _ = bash(tmp_path / "launch/quickstart.sh")
    assert status == (0 if failing == "none" else 3)
    assert ("The run is in runs/digits" in output) == (failing == "none")
    if failing == "none":
        names = [f"launch/{name}.py" for name in ("evaluate", "sample", "train")]
        assert sorted(output.splitlines()[:3]) == names


def test_a_dry_run_of_tpu_pod_prints_its_commands(tmp_path):
    stand_in(tmp_path, "gcloud", "exit 1")
    status, output, error = bash(*POD, "--spot", *RUN, "--dry-run", **with_path(tmp_path))
    assert (status, error) == (0, "")
    assert (
        "queued-resources create a --node-id=a --zone=z --accelerator-type=v5litepod-16" in output
    )
    assert "--runtime-version=v2-alpha-tpuv5-lite --spot" in output
    assert LAUNCHED in output and '".[tpu]"' in output
    assert bash("-n", "-c", output)[0] == 0


def test_dry_runs_of_a_run_in_a_bucket_install_the_extra_for_it():
    run = [RUN[0], "--workdir=gs://bucket/run"]
    status, output, error = bash(*POD, "--spot", *run, "--dry-run")
    assert (status, error) == (0, "") and '".[tpu,gcs]"' in output
    status, output, error = bash(*GKE[:-1], *run, "--dry-run")
    assert (status, error) == (0, "")
    (job,) = yaml.safe_load(output)["spec"]["replicatedJobs"]
    pod = job["template"]["spec"]["template"]["spec"]
    assert pod["volumes"] == [{"name": "runs", "emptyDir": {}}]
    assert run[1] in pod["containers"][0]["args"]


def test_a_dry_run_of_two_slices_prints_their_commands(tmp_path):
    status, output, error = bash(*POD, "--slices=2", *RUN, "--dry-run")
    assert (status, error) == (0, "")
    assert "queued-resources create a --node-count=2 --node-prefix=a" in output
    assert "queued-resources ssh a --zone=z --worker=all --node=all" in output
    assert "tpu-vm" not in output and " --spot" not in output
    assert bash("-n", "-c", output)[0] == 0


def test_a_dry_run_of_slurm_prints_its_commands():
    status, output, _ = bash(*SLURM, "--dry-run", *RUN)
    assert status == 0
    submit, _, run = output.splitlines()
    assert submit.startswith("sbatch launch/slurm.sbatch --config=configs/digits.py")
    assert run.startswith("srun ") and LAUNCHED in run
    assert r"'--config.data.name=it'\''s'" in run


@pytest.mark.parametrize("spot", [[], ["--spot"]])
@pytest.mark.parametrize("volume", ["--volume-claim=runs", "--bucket=my_runs"])
def test_a_dry_run_of_gke_prints_a_valid_jobset(volume, spot):
    script = [*GKE[:-1], volume, *spot]
    script += ["--slices=2"] if spot else []
    status, output, _ = bash(*script, "--dry-run", *RUN, '--config.data.dir=a&"\\b')
    assert status == 0 and "${" not in output
    jobset = yaml.safe_load(output)
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    container = pod["containers"][0]
    assert (jobset["kind"], jobset["metadata"]["name"]) == ("JobSet", "a")
    assert jobset["spec"]["replicatedJobs"][0]["replicas"] == (2 if spot else 1)
    assert job["parallelism"] == job["completions"] == 4
    assert pod["restartPolicy"] == "Never" and job["backoffLimit"] == 0
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 50
    assert container["args"] == [*RUN, '--config.data.dir=a&"\\b']
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4"
    assert ("cloud.google.com/gke-spot" in pod["nodeSelector"]) == bool(spot)
    assert ("tolerations" in pod) == bool(spot)
    # Kubernetes requires a name that matches this expression.
    [rule] = jobset["spec"]["failurePolicy"]["rules"]
    assert re.fullmatch("[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"])
    [mounted], [given] = container["volumeMounts"], pod["volumes"]
    assert mounted == {"name": given.pop("name"), "mountPath": "/data"}
    annotations = job["template"].get("metadata", {}).get("annotations")
    if volume == "--bucket=my_runs":
        assert annotations == {"gke-gcsfuse/volumes": "true"}
        assert given["csi"]["driver"] == "gcsfuse.csi.storage.gke.io"
        assert given["csi"]["volumeAttributes"]["bucketName"] == "my_runs"
    else:
        assert annotations is None and given == {"persistentVolumeClaim": {"claimName": "runs"}}


def test_gke_applies_the_jobset(tmp_path):
    stand_in(tmp_path, "kubectl", f'[[ $* == "apply -f -" ]] && cat > {tmp_path}/applied')
    status, output, _ = bash(*GKE, *RUN, **with_path(tmp_path))
    assert status == 0 and "kubectl logs --follow --prefix --max-log-requests=4 " in output
    assert yaml.safe_load((tmp_path / "applied").read_text())["metadata"]["name"] == "a"


NO_JOBSET = """error: resource mapping not found for name: "a" namespace: "" from "STDIN": no \
matches for kind "JobSet" in version "jobset.x-k8s.io/v1alpha2"
ensure CRDs are installed first"""
CHANGED = """Error from server (Forbidden): error when applying patch: admission webhook \
"vjobset.kb.io" denied the request: spec.replicatedJobs: Invalid value: \
[]v1alpha2.ReplicatedJob(nil): field is immutable"""
NO_SERVER = "The connection to the server localhost:8080 was refused - did you specify the right"
NO_SERVER += " host or port?"


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (NO_JOBSET, "the cluster has no JobSet yet: install it, see https://jobset.sigs.k8s.io"),
        (CHANGED, "the JobSet a exists with other settings: kubectl delete jobset a"),
        (NO_SERVER, NO_SERVER),
    ],
)
def test_errors_of_kubectl_are_reported_in_one_line(tmp_path, message, told):
    (tmp_path / "message").write_text(message)
    stand_in(tmp_path, "kubectl", f"cat {tmp_path}/message >&2; exit 1")
    status, output, error = bash(*GKE, *RUN, **with_path(tmp_path))
    assert (status, output) == (2, "") and error.count("\n") == 1
    assert error.startswith(f"error: {told}")


# Runs the task of each process, and ends as srun does: with the largest status.
SRUN = """
while [[ $1 != bash ]]; do shift; done
echo devices $JAX_LOCAL_DEVICE_IDS
largest=0
for SLURM_PROCID in 0 1; do
  export SLURM_PROCID
  status=0
  "$@" || status=$?
  ((status <= largest)) || largest=$status
done
exit $largest"""


class Slurm:
    """A checkout in `folder`, from which job 7 was submitted."""

    def __init__(self, folder):
        self._folder, self.workdir = folder, folder / "run"
        for name in ("launcher.sh", "slurm.sbatch", "train.py"):
            shutil.copy(ROOT / "launch" / name, in_new_folder(folder / "launch" / name))
        # Slurm runs a copy.
        shutil.copy(ROOT / SLURM[0], in_new_folder(folder / "spool" / "slurm_script"))
        stand_in(folder, "bin/srun", SRUN)
        stand_in(folder, "bin/scontrol", 'echo "scontrol $*"')

    def run(self, *ended, restarts=0):
        """Runs the job, whose tasks end with these statuses. Returns (status of the job, whether it
        is queued again)."""
        statuses = f"statuses=({' '.join(map(str, ended))})"
        code = f"{statuses}; exit ${{statuses[SLURM_PROCID]}}"
        stand_in(self._folder, "bin/python", f"[[ $* != *--check* ]] || exit 0; {code}")
        job = {
            "SLURM_JOB_ID": "7",
            "SLURM_SUBMIT_DIR": str(self._folder),
            "JAX_LOCAL_DEVICE_IDS": "",
        }
        job |= {"SLURM_RESTART_COUNT": str(restarts), "SLURM_NTASKS_PER_NODE": "1"}
        job |= {"SLURM_GPUS_ON_NODE": "4", **with_path(self._folder / "bin")}
        script = self._folder / "spool" / "slurm_script"
        flags = [RUN[0], f"--workdir={self.workdir}"]
        status, output, self.error = bash(script, *flags, **job)
        assert "devices 0,1,2,3\n" in output
        return status, "scontrol requeue 7" in output


@pytest.mark.parametrize(
    ("ended", "restarts", "expected", "requeued"),
    [
        ((0, 0), 0, 0, False),
        ((2, 2), 0, 2, False),
        ((143, 143), 0, 0, True),
        ((137, 134), 49, 0, True),
        ((137, 134), 50, 137, False),
        # One task refuses its input; the other is aborted because the first is gone.
        ((2, 134), 0, 2, False),
        ((134, 2), 0, 2, False),
    ],
)
def test_a_slurm_job_is_queued_again_after_a_signal(tmp_path, ended, restarts, expected, requeued):
    slurm = Slurm(tmp_path)
    assert slurm.run(*ended, restarts=restarts) == (expected, requeued)
    for task, status in enumerate(ended):
        assert (f"task {task} ended with status {status}\n" in slurm.error) == (status != 0)
    assert (tmp_path / ".restarts-7").exists() == requeued


def test_a_slurm_job_that_makes_no_progress_is_not_queued_again(tmp_path):
    slurm = Slurm(tmp_path)
    checkpoints = slurm.workdir / "checkpoints"
    (checkpoints / "100").mkdir(parents=True)
    queued_again = (0, True)
    assert [slurm.run(134, 134) for _ in range(3)] == [queued_again] * 3
    (checkpoints / "200").mkdir()
    assert slurm.run(134, 134) == queued_again
    assert [slurm.run(143, 143) for _ in range(4)] == [queued_again] * 4  # preempted
    (slurm.workdir / "metrics.jsonl").write_text('{"step": 201}\n')
    assert [slurm.run(134, 134) for _ in range(4)] == [*[queued_again] * 3, (134, False)]
    assert "for the 4th time without a step: giving up" in slurm.error


# Every "host" is a folder; commands for it are run there. Errors are in gcloud's words.
GCLOUD = r"""
state=$(cat "$FAKE/state")
echo "$*" >> "$FAKE/calls"
for argument; do
  case $argument in
    --command=*) command=${argument#*=} ;;
    --output-directory=*) output=${argument#*=} ;;
  esac
done
case "$*" in
  *"tpu-vm describe"*) resource="tpu-vm.describe) nodes" ;;
  *"queued-resources describe"*) resource="queued-resources.describe) queuedResources" ;;
esac
hosts() { # the first worker of a node, or all of them; of one node, or of all of them
  local host
  for host in "$FAKE"/host? "$FAKE"/node1_host?; do
    case "$*:$host" in
      *--worker=0*:*host1) continue ;;
      *--node=all*:*) ;;
      *--node=1*:*/host? | *--node=0*:*/node1_host?) continue ;;
    esac
    [[ ! -d $host ]] || echo "$host"
  done
}
case "$*" in
  *" describe "*)
    if [[ $state == MISSING ]]; then
      echo "ERROR: (gcloud.compute.tpus.${resource% *} NOT_FOUND: Resource" \
        "'projects/p/locations/z/${resource#* }/a' was not found. This command is authenticated" \
        "as me@example.com which is the active account specified by the [core/account] property" >&2
      echo "- '@type': type.googleapis.com/google.rpc.ResourceInfo" >&2
      echo "  resourceName: projects/p/locations/z/${resource#* }/a" >&2
      exit 1
    fi
    case "$*:$state" in
      *queued-resources*:READY) echo ACTIVE ;;
      *queued-resources*:PREEMPTED) echo SUSPENDED ;;
      *) echo "$state" ;;
    esac ;;
  *" create "*) echo READY > "$FAKE/state" ;;
  *" delete "*) echo MISSING > "$FAKE/state"; rm -rf "$FAKE"/*host?/train ;;
  *" scp "*) for host in $(hosts "$*"); do cp "$5" "$host/nvae_jax.tar.gz"; done ;;
  *" ssh "*)
    if [[ $state != READY ]]; then
      echo "ssh: connect to host 34.90.1.2 port 22: Connection refused" >&2
      echo "ERROR: (gcloud.compute.tpus.$4.ssh) [/usr/bin/ssh] exited with return code [255]." >&2
      exit 255
    fi
    for host in $(hosts "$*"); do
      (
        [[ -z ${output:-} ]] || exec > "$output/${host: -1}.log"
        cd "$host" && bash -c "$command"
      ) || exit
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


class Pod:
    """A simulated slice of two hosts in `folder`, on which scripts are run."""

    def __init__(self, folder, gcloud=GCLOUD, python=PYTHON, hosts=("host0", "host1")):
        self._folder = folder
        stand_in(folder, "gcloud", gcloud)
        for host in hosts:
            stand_in(folder, f"{host}/venv/bin/python", python)
            stand_in(folder, f"{host}/venv/bin/pip", "[[ $* == *'.[tpu]'* ]]")
        self.write("state", "MISSING")

    def write(self, name, text):
        (self._folder / name).write_text(f"{text}\n")

    def run(self, *flags):
        fake = {"FAKE": str(self._folder), "TPU_POD_POLL_SECONDS": "0.1"}
        status, self.output, self.error = bash(
            *POD,
            f"--logs={self._folder / 'logs'}",
            *RUN,
            *flags,
            **fake,
            **with_path(self._folder),
        )
        self.calls = (self._folder / "calls").read_text()
        return status

    def logs(self, name):
        """The saved parts of one host's log, one for each time that it was followed."""
        return [path.read_text() for path in sorted((self._folder / "logs").glob(f"*/{name}.log"))]


@pytest.mark.parametrize("end", [0, 2])
def test_a_tpu_pod_is_resumed_after_preemption_and_lost_hosts(tmp_path, end):
    pod = Pod(tmp_path)
    pod.write("end", end)
    status = pod.run("--delete", "--setup=touch mounted")
    starts = re.findall(f"start -u {LAUNCHED} --config.data.name=it's", pod.output)
    assert pod.calls.count("queued-resources create") == 2  # at the start and after preemption
    assert pod.error.count("lost: resuming") == 2
    for host in ("host0", "host1"):
        assert (tmp_path / host / "count").read_text() == "3\n"
        assert (tmp_path / host / "mounted").exists()
    assert len(starts) >= 2, pod.output
    for name in ("slice_0/0", "slice_0/1"):
        assert all(text.startswith("start ") for text in pod.logs(name))
    assert re.findall("^start", pod.logs("slice_0/0")[-1], re.MULTILINE) == ["start"] * 2
    if end:
        assert status == 2 and "training failed" in pod.error
    else:
        assert status == 0 and pod.calls.rstrip().endswith("--force --quiet"), pod.error


def test_two_slices_are_requested_and_resumed_together(tmp_path):
    """Both slices are one request, which is made again after it was suspended. All hosts get the
    same command."""
    hosts = ("host0", "host1", "node1_host0", "node1_host1")
    python = """
echo "start $PWD"
count=$(cat ../count 2>/dev/null || echo 0)
echo $((count + 1)) > ../count
[[ $count != 0 ]] || { echo PREEMPTED > "$FAKE/state"; exit 143; }"""
    pod = Pod(tmp_path, python=python, hosts=hosts)
    assert pod.run("--slices=2", "--spot", "--setup=touch mounted", "--workdir=/proc") == 0, (
        pod.error
    )
    created = [line for line in pod.calls.splitlines() if " create " in line]
    assert len(created) == 2 and len(set(created)) == 1
    assert "queued-resources create a --node-count=2 --node-prefix=a --zone=z" in created[0]
    assert "tpu-vm" not in pod.calls and "--node-id" not in pod.calls
    for host in hosts:
        assert (tmp_path / host / "count").read_text() == "2\n"
        assert (tmp_path / host / "mounted").exists()
        slice_, worker = int("node1" in host), host[-1]
        assert f"{host}/nvae_jax\n" in pod.logs(f"slice_{slice_}/{worker}")[-1]


def test_a_tpu_pod_is_not_resumed_after_an_error_of_one_host(tmp_path):
    python = "[[ $PWD == *host0* ]] && exit 134; echo 'error: no such picture'; exit 2"
    pod = Pod(tmp_path, python=python)
    assert pod.run() == 2
    assert "resuming" not in pod.error and "\nerror: no such picture\n" in pod.error
    assert "training failed" in pod.error


def test_a_tpu_pod_that_makes_no_progress_is_not_resumed(tmp_path):
    pod = Pod(tmp_path, python="exit 134")
    assert pod.run(f"--workdir={tmp_path}/run") == 2
    assert pod.error.count("resuming") == 3
    assert "failed 4 times in a row without a step" in pod.error


def test_a_spot_slice_refuses_a_run_on_its_own_disk(tmp_path):
    pod = Pod(tmp_path, python="exit 0")
    assert pod.run("--spot", "--workdir=/no/such/folder") == 2
    assert "--workdir=/no/such/folder is on the host's own disk, which is deleted with" in pod.error


def test_a_tpu_pod_needs_a_writable_folder_for_logs(tmp_path):
    stand_in(tmp_path, "gcloud", f"touch {tmp_path}/called")
    logs = f"--logs={tmp_path / 'gcloud' / 'logs'}"
    status, output, error = bash(*POD, *RUN, logs, **with_path(tmp_path))
    assert (status, output) == (2, "") and error.count("\n") == 1
    assert f"{logs} is not a writable folder" in error
    assert not (tmp_path / "called").exists()


def test_a_tpu_pod_whose_state_is_unknown_ends_with_an_error(tmp_path):
    stand_in(tmp_path, "gcloud", "echo 'ERROR: what' >&2; exit 1")
    fake = {"TPU_POD_POLL_SECONDS": "0.01", **with_path(tmp_path)}
    status, _, error = bash(*POD, f"--logs={tmp_path}/logs", *RUN, **fake)
    assert status == 2 and "gcloud cannot tell the state of a" in error


# The first call of $KIND fails with $FAKE/message, and the next one with a permanent error.
FAILING_GCLOUD = """
if [[ -e $FAKE/seen ]]; then
  echo "ERROR: PERMISSION_DENIED: later" >&2
  exit 1
fi
case "$KIND $*" in
  "create "*" create "* | "describe "*" describe "*) touch $FAKE/seen; cat $FAKE/message >&2 ;;
  "request "*failedData*) touch $FAKE/seen; cat $FAKE/message; exit ;;
  "request "*" queued-resources describe "*) echo FAILED; exit ;;
  *) echo "ERROR: (gcloud.x) NOT_FOUND: Resource 'projects/p/locations/z/nodes/a' was not found" >&2
esac
exit 1"""
DENIED = "PERMISSION_DENIED: Permission denied on 'locations/q' (or it may not exist)"
NO_API = "PERMISSION_DENIED: Cloud TPU API has not been used in project 7 before or it is disabled."
NO_TYPE = "Cloud TPU received a bad request. the accelerator v4-9 was not found in zone z"
NO_QUOTA = (
    "RESOURCE_EXHAUSTED: Quota limit 'TPUV6EPreemptiblePerProjectPerRegionForTPUAPI' has been"
)
NO_QUOTA += " exceeded. Limit: 0 in region us-east5."
USED_UP = (
    "Quota 'TPUV4sPreemptiblePodPerProjectPerRegionForTPUAPI' exhausted. Limit 20800 in region"
)
FULL = 'There is no more capacity in the zone "us-central1-c"; you can try in another zone where'
FULL += " Cloud TPU Nodes are offered (see https://cloud.google.com/tpu/docs/regions) [EID: 0x9f48]"
RESERVED = "Insufficient reserved capacity. Contact customer support to increase your reservation."


@pytest.mark.parametrize(
    ("kind", "message", "permanent"),
    [
        ("describe", "The required property [project] is not currently set.", True),
        ("describe", "You do not currently have an active account selected.", True),
        ("describe", DENIED, True),
        ("describe", NO_API, True),
        ("describe", "UNAVAILABLE: The service is currently unavailable.", False),
        ("create", "INVALID_ARGUMENT: Request contains an invalid argument.", True),
        ("create", NO_TYPE, True),
        ("create", NO_QUOTA, True),
        ("create", "Quota exceeded for quota metric 'Reads' and limit 'Reads per minute'", False),
        ("create", FULL, False),
        ("create", RESERVED, False),
        ("create", USED_UP, True),
        ("request", NO_QUOTA, True),
        ("request", "INTERNAL: an error occurred", False),
    ],
)
def test_permanent_errors_of_gcloud_are_not_retried(tmp_path, kind, message, permanent):
    stand_in(tmp_path, "gcloud", FAILING_GCLOUD)
    (tmp_path / "message").write_text(f"ERROR: (gcloud.compute.tpus) {message}\n")
    fake = {"FAKE": str(tmp_path), "KIND": kind, "TPU_POD_POLL_SECONDS": "0.01"}
    logs = f"--logs={tmp_path}/logs"
    status, _, error = bash(*POD, logs, *RUN, **fake, **with_path(tmp_path))
    last = error.splitlines()[-1]
    assert status == 2 and last.startswith("error: ")
    assert (message if permanent else "later") in last and message in error


@pytest.fixture(scope="module")
def skypilot():
    return yaml.safe_load((ROOT / "launch" / "skypilot.yaml").read_text())


def test_skypilot_accepts_the_task(skypilot):
    schemas = pytest.importorskip("sky.utils.schemas", reason="SkyPilot is not installed")
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(skypilot, schemas.get_task_schema())
    jsonschema.validate(skypilot["resources"], schemas.get_resources_schema())


@pytest.mark.parametrize("extras", ["cuda12,tfds", "tpu"])
def test_the_skypilot_task_has_only_known_keys_and_trains(skypilot, tmp_path, extras):
    """The task has only known keys. Its `run` trains, here as the second of two nodes."""
    assert set(skypilot) == {
        *("name", "workdir", "num_nodes", "resources", "envs", "file_mounts", "setup", "run")
    }
    assert skypilot["file_mounts"]["/runs"] == {"source": "${BUCKET}", "mode": "MOUNT"}
    stand_in(tmp_path, ".venv/bin/python", 'echo "${JAX_COORDINATOR_ADDRESS:-none}" "$@"')
    nodes = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2"}
    nodes |= {"SKYPILOT_NODE_RANK": "1", "JAX_COORDINATOR_ADDRESS": ""}
    given = {"EXTRAS": extras, "FLAGS": "--config.seed=3 --config.train.num_steps=9"}
    variables = {**os.environ, **skypilot["envs"], **nodes, **given}
    done = subprocess.run(
        ["bash", "-euc", skypilot["run"]],
        cwd=tmp_path,
        env=variables,
        capture_output=True,
        text=True,
    )
    coordinator = "none" if extras == "tpu" else "10.0.0.1:8476"
    train = "-u launch/train.py --config=configs/ffhq256.py --workdir=/runs/ffhq256"
    assert (done.stdout, done.stderr) == (f"{coordinator} {train} {given['FLAGS']}\n", "")


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


def test_a_dry_run_of_local_cluster_prints_its_commands():
    command = ["python", "launch/train.py", *RUN]
    status, output, _ = bash(*CLUSTER, 2, "--devices-per-process=4", "--dry-run", "--", *command)
    assert status == 0
    first, second, last = output.splitlines()
    assert last == "wait" and first.replace("PROCESS_ID=0", "PROCESS_ID=1") == second
    assert "JAX_NUM_PROCESSES=2" in first and "device_count=4" in first and LAUNCHED in first


def test_local_cluster_marks_the_output_of_its_processes():
    body = "sys.stdout.write('no newline'); print('error', file=sys.stderr)"
    status, output, _ = bash(*cluster(body, "--devices-per-process=3"), XLA_FLAGS="--a")
    lines = marked_lines(output)
    environments = [json.loads(lines[index][0]) for index in (0, 1)]
    assert status == 0 and environments[0][0] == environments[1][0]
    assert re.fullmatch(r"localhost:\d+", environments[0][0])
    flags = "--a --xla_force_host_platform_device_count=3"
    assert [found[1:] for found in environments] == [["2", "0", flags], ["2", "1", flags]]
    assert all("no newline" in "".join(lines[index]) for index in (0, 1))


def test_local_cluster_reports_that_it_is_running():
    body = "sys.stdout.write('half a '); sys.stdout.flush(); time.sleep(2.5); print('line')"
    status, output, error = bash(*cluster(body), LOCAL_CLUSTER_REPORT_SECONDS="1")
    assert status == 0 and "starting 2 processes" in error
    lines = marked_lines(output)
    assert re.fullmatch(r"\.\.\. running for \d+ s", lines[0][1])
    assert lines[0][-1] == lines[1][-1] == "half a line"
    assert not any("running" in line for line in lines[1])


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
    # Background processes of a shell ignore SIGINT, and bash cannot trap an ignored signal.
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
