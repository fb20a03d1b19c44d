"""A SLURM cluster of two nodes on this machine: Debian's slurm-wlm and munge, run by root.

Nothing outside a new folder is touched: munge has a key and a socket of its own, and the nodes'
daemons see a file of host names in which both nodes are this machine.
"""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "unshare")
NODES = ("node1", "node2")
ADMIN = f"{os.environ['PATH']}:/usr/sbin:/sbin"  # where Debian installs daemons
CONFIG = """
ClusterName=nvae
SlurmctldHost={host}
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=sched_min_interval=100000,sched_interval=1,batch_sched_delay=0
SchedulerType=sched/builtin
ReturnToService=2
KillWait=60
OverTimeLimit=0
GresTypes=gpu
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=8 Gres=gpu:2
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=8 Gres=gpu:2
PartitionName=gpus Nodes=ALL Default=YES MaxTime=INFINITE
"""


def missing():
    """Why no cluster can be started here; '' if one can."""
    lacking = [program for program in PROGRAMS if not shutil.which(program, path=ADMIN)]
    if lacking:
        return f"SLURM's {lacking[0]} is not installed (Debian: slurm-wlm, munge)"
    if os.geteuid():
        return "only root can run SLURM's daemons"
    done = subprocess.run(["unshare", "--mount", "true"], capture_output=True, text=True)
    return f"no mount namespaces: {done.stderr.strip()}" if done.returncode else ""


class SlurmCluster:
    """A context: munge, a controller and two nodes that are ready for jobs.

    Attributes:
      environment: the variables with which SLURM's programs talk to this cluster.
    """

    def __enter__(self):
        self._folder, self._daemons = Path(tempfile.mkdtemp(prefix="slurm")), []
        self.environment = {"SLURM_CONF": str(self._folder / "slurm.conf")}
        self._write_files()
        self._start_munge()
        self._start("slurmctld", "-D", "-i")
        hosts = self._folder / "hosts"
        for node in NODES:
            daemon = f"mount --bind {hosts} /etc/hosts && exec slurmd -D -N {node}"
            self._start("unshare", "--mount", "sh", "-c", daemon)
        self._wait("nodes", lambda: self.ask("sinfo", "-h", "-o", "%T %D") == "idle 2")
        return self

    def __exit__(self, *_):
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in self._daemons:
            daemon.wait(60)
        shutil.rmtree(self._folder, ignore_errors=True)

    def ask(self, *command, variables=os.environ):
        """The output of one of SLURM's programs."""
        variables = {**variables, **self.environment}
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60)
        return (done.stdout + done.stderr).strip()

    def job(self, number):
        """The fields of `scontrol show job`."""
        words = self.ask("scontrol", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def _write_files(self):
        folder, host = self._folder, socket.gethostname()
        for name in ("state", *(f"spool-{node}" for node in NODES)):
            (folder / name).mkdir()
        with _free_ports(3) as ports:
            text = CONFIG.format(folder=folder, host=host, ports=ports)
        (folder / "slurm.conf").write_text(text)
        names = " ".join((host, *NODES))
        (folder / "hosts").write_text(f"127.0.0.1 localhost {names}\n")
        for index in range(2):  # SLURM requires it, but nothing opens it
            os.mknod(folder / f"gpu{index}", 0o666 | 0o020000, os.makedev(195, index))
        (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-1]\n")

    def _start_munge(self):
        folder = self._folder
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        files = {"key": "key", "socket": "socket", "pid": "pid", "log": "log", "seed": "seed"}
        options = [
            f"--{option}{'' if option == 'socket' else '-file'}={folder}/munge.{name}"
            for option, name in files.items()
        ]
        self._start("munged", "--foreground", "--force", *options)
        self._wait("munge", (folder / "munge.socket").exists)

    def _start(self, *command):
        log = open(self._folder / f"{command[0]}-{len(self._daemons)}.log", "w")
        with log:
            variables = {**os.environ, **self.environment, "PATH": ADMIN}
            self._daemons.append(subprocess.Popen(command, env=variables, stdout=log, stderr=log))

    def _wait(self, what, ready, seconds=60):
        deadline = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > deadline:
                logs = (path.read_text()[-1500:] for path in sorted(self._folder.glob("*.log")))
                raise TimeoutError(f"SLURM: no {what}:\n" + "\n---\n".join(logs))
            time.sleep(0.2)


class _free_ports:
    """A context with so many free ports, which are released at its end."""

    def __init__(self, count):
        self._servers = [socket.create_server(("", 0)) for _ in range(count)]

    def __enter__(self):
        return [server.getsockname()[1] for server in self._servers]

    def __exit__(self, *_):
        for server in self._servers:
            server.close()
