"""The container files: well-formed, closed, and their commands run in a jail of the same shape."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from common.ledger import verify
from common.terms import read_terms
from server.provisioning.federation import create
from server.provisioning.request import Endpoint, Settings
from tests.closed_rig import PASSPHRASE, SEALED, few_terms
from tests.process_rig import ROOT, until
from tests.provisioning_rig import archive

DOCKER = ROOT / "docker"
IMAGES = ("server", "site")
SITES = ("north", "south", "east")
REGISTRIES = re.compile(r"pypi|https?://|ghcr|quay|docker\.io|\.(io|org|com)/", re.IGNORECASE)


@dataclass(frozen=True)
class Image:
    """What a Dockerfile's last stage says: its instructions, in order."""

    lines: tuple[tuple[str, str], ...]

    @classmethod
    def read(cls, name: str) -> Image:
        text = (DOCKER / f"{name}.Dockerfile").read_text()
        joined = re.sub(r"\\\n\s*", " ", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE))
        parsed = [line.split(maxsplit=1) for line in joined.splitlines() if line.strip()]
        last = max(n for n, (word, *_) in enumerate(parsed) if word == "FROM")
        return cls(tuple((line[0], line[1]) for line in parsed[last:]))

    def one(self, word: str) -> str:
        return [rest for name, rest in self.lines if name == word][-1]

    @property
    def command(self) -> list[str]:
        return [*json.loads(self.one("ENTRYPOINT")), *json.loads(self.one("CMD"))]

    @property
    def health(self) -> list[str]:
        command: list[str] = json.loads(self.one("HEALTHCHECK").partition(" CMD ")[2])
        return command

    @property
    def environment(self) -> dict[str, str]:
        return dict(pair.split("=", 1) for pair in self.one("ENV").split())


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    return found


def test_compose_yaml_is_valid_by_the_compose_specification(compose: dict[str, Any]) -> None:
    spec = pytest.importorskip("compose_spec", reason="compose-spec is not installed").PyCompose
    assert sorted(spec.from_json(json.dumps(compose)).service_names()) == sorted(("server", *SITES))
    misspelt = {**compose["services"]["server"], "readonly": True}
    with pytest.raises(ValueError, match="readonly"):
        spec.from_json(json.dumps({**compose, "services": {"server": misspelt}}))


@pytest.mark.parametrize("name", IMAGES)
def test_hadolint_has_nothing_to_say(name: str, tmp_path: Path) -> None:
    hadolint = shutil.which("hadolint") or shutil.which(
        str(Path(sys.executable).parent / "hadolint")
    )
    if hadolint is None:
        pytest.skip("hadolint is not installed")
    path = DOCKER / f"{name}.Dockerfile"
    told = subprocess.run([hadolint, str(path)], capture_output=True, text=True)
    assert told.returncode == 0, told.stdout
    worse = tmp_path / "Dockerfile"
    worse.write_text(path.read_text() + "RUN sudo apt-get install curl\n")
    assert subprocess.run([hadolint, str(worse)], capture_output=True).returncode != 0


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_runs_as_a_fixed_user_with_a_health_check_and_names_no_registry(name: str) -> None:
    image = Image.read(name)
    assert image.one("USER") == "10001:10001"
    assert image.health[:3] == ["python", "-P", "/opt/healthy.py"]
    assert not REGISTRIES.search((DOCKER / f"{name}.Dockerfile").read_text().split("\n", 1)[1])
    assert image.one("FROM") == "${BASE}", "one base, that compose.yaml can pin by digest"
    assert not any("PASSPHRASE" in rest for word, rest in image.lines if word in ("ENV", "ARG"))


def test_a_build_is_sent_what_it_copies_and_neither_bundles_nor_faces() -> None:
    everything, *sent = [
        line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] != "#"
    ]
    copied = {
        source
        for name in IMAGES
        for line in (DOCKER / f"{name}.Dockerfile").read_text().splitlines()
        if line.startswith("COPY ") and "--from" not in line
        for source in line.split()[1:-1]
    }
    assert everything == "*" and {line.removeprefix("!") for line in sent} == copied
    never_committed = (ROOT / ".gitignore").read_text().splitlines()
    assert {"docker/secrets/", "docker/data/", "docker/public/"} <= {*never_committed}


def test_every_container_is_locked_down(compose: dict[str, Any]) -> None:
    assert set(compose["services"]) == {"server", *SITES}
    for name, service in compose["services"].items():
        assert service["user"] == "10001:10001" and service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"] and "cap_add" not in service
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["pids_limit"] and service["mem_limit"] and service["ulimits"] == {"core": 0}
        assert all("noexec" in mount for mount in service["tmpfs"])
        assert not {"privileged", "network_mode", "pid", "ipc", "devices"} & set(service)
        assert "environment" not in service and "env_file" not in service, "secrets are files"


def test_a_site_reaches_the_server_alone_and_only_the_front_is_published(
    compose: dict[str, Any],
) -> None:
    services, networks = compose["services"], compose["networks"]
    assert services["server"]["ports"] == ["8443:8443"]
    for name in SITES:
        assert "ports" not in services[name] and "expose" not in services[name]
        assert services[name]["networks"] == [name] and networks[name] == {"internal": True}
        on_it = [other for other, one in services.items() if name in one["networks"]]
        assert sorted(on_it) == sorted((name, "server"))
    secrets = [s["source"] for one in services.values() for s in one["secrets"]]
    assert len(secrets) == len(set(secrets)) and set(secrets) == set(compose["secrets"])
    volumes = [v for one in services.values() for v in one["volumes"]]
    assert len(volumes) == len(set(volumes)), "nobody shares a volume"


VOLUMES = ("lib/veilface", "lib/veilface-odometer", "cache/veilface")
_JAIL = """
set -e
root=$1 work=$2 prefix=$3 base=$4; shift 4
mount --make-rprivate /
mount -t tmpfs -o mode=755 jail $root
for one in bin sbin lib lib64 usr etc; do
    if [ -L /$one ]; then cp -P /$one $root/$one
    elif [ -d /$one ]; then mkdir $root/$one; mount --bind -o ro /$one $root/$one; fi
done
for one in proc dev run/secrets tmp var data public opt$base; do mkdir -p $root/$one; done
mount --rbind /dev $root/dev
mount -t proc proc $root/proc 2>/dev/null || mount --rbind /proc $root/proc
mount -t tmpfs -o noexec,nosuid,nodev,mode=1777 tmp $root/tmp
for one in $prefix $base; do mkdir -p $root$one; mount --bind -o ro $one $root$one; done
mount --bind $work/hosts $root/etc/hosts
for one in opt run/secrets data public; do mount --bind -o ro $work/$one $root/$one; done
for one in lib/veilface lib/veilface-odometer cache/veilface; do
    mkdir -p $root/var/$one; mount --bind $work/$one $root/var/$one
done
mount -o remount,ro $root
exec chroot $root setpriv --reuid 10001 --regid 10001 --clear-groups --bounding-set -all \
    --inh-caps -all --no-new-privs env -i "$@"
"""


@dataclass
class Jail:
    """One container: its own root, read-only but for what its volumes and tmpfs are."""

    work: Path
    holder: int
    image: Image
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def line(self, command: list[str]) -> list[str]:
        path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
        environment = {**self.image.environment, "PATH": path, "PYTHONPATH": "/opt/code"}
        root = self.work / "root"
        root.mkdir(exist_ok=True)
        return [
            "nsenter", "-t", str(self.holder), "-n", "unshare", "-m", "--propagation", "private",
            "bash", "-c", _JAIL, "jail", str(root), str(self.work), sys.prefix, sys.base_prefix,
            *(f"{name}={value}" for name, value in environment.items()),
            "OMP_NUM_THREADS=1", *command,
        ]  # fmt: skip

    def start(self, *more: str) -> None:
        with (self.work / "log").open("wb") as log:
            line = self.line([*self.image.command, *more])
            self.running.append(
                subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            )

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.line(list(command)), capture_output=True, text=True, timeout=200,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def log(self) -> str:
        return (self.work / "log").read_text(errors="replace")[-4000:]

    def until_healthy(self, seconds: float = 150.0) -> None:
        deadline = time.monotonic() + seconds
        while (asked := self.run(*self.image.health)).returncode:
            assert time.monotonic() < deadline, asked.stderr + self.log()
            assert self.running[0].poll() is None, self.log()
            time.sleep(1)


def _why_not() -> str:
    if os.name != "posix" or os.geteuid() != 0:
        return "only root can make namespaces"
    for tool in ("unshare", "nsenter", "setpriv", "ip", "bash"):
        if not shutil.which(tool):
            return f"{tool} is not installed"
    tried = subprocess.run(
        ["unshare", "-mn", "sh", "-c", "ip link set lo up && mount -t tmpfs x /mnt"],
        capture_output=True,
    )
    return "" if tried.returncode == 0 else "the kernel forbids namespaces here"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code as the images install it: a wheel, unpacked where nobody can write."""
    where = tmp_path_factory.mktemp("wheel")
    source, code = where / "source", where / "code"
    for room in ("common", "client", "server", "simulations"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / room, source / room, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation",
         "--no-index", "--target", str(code), str(source)],
        check=True, capture_output=True,
    )  # fmt: skip
    subprocess.run(["chmod", "-R", "a-w,a+rX", str(code)], check=True)
    return code


@pytest.fixture
def jails(wheel: Path, people_folder: Path, tmp_path: Path) -> Iterator[tuple[Jail, Jail]]:
    if why := _why_not():
        pytest.skip(why)
    holder = subprocess.Popen(["unshare", "-n", "sh", "-c", "ip link set lo up; exec sleep 900"])
    runs = Path(f"/proc/{holder.pid}/comm")
    until(lambda: runs.read_text() == "sleep\n", "the network is made")
    config = tmp_path / "training.toml"
    config.write_text(few_terms(2))
    settings = Settings("fed", Endpoint("server", 8443), sealed=True)
    terms = read_terms(config).to_bytes()
    create(tmp_path / "fed", settings, ("north",), SEALED, contract=terms, now=datetime.now(UTC))
    made = []
    folders = sorted(people_folder.iterdir())
    for party, image in (("server", "server"), ("north", "site")):
        work = tmp_path / party
        for name in ("opt", "run/secrets", "data", "public", *VOLUMES):
            (work / name).mkdir(parents=True)
        for folder in folders[:8] if image == "site" else folders[8:20]:
            shutil.copytree(folder, work / ("data" if image == "site" else "public") / folder.name)
        shutil.copytree(wheel, work / "opt" / "code")
        shutil.copy(DOCKER / "healthy.py", work / "opt")
        (work / "hosts").write_text("127.0.0.1 localhost server\n")
        secrets = work / "run" / "secrets"
        shutil.copy(archive(tmp_path / "fed", party), secrets / "bundle")
        (secrets / "passphrase").write_text(PASSPHRASE + "\n")
        for path in (*(work / one for one in VOLUMES), *secrets.iterdir()):
            path.chmod(0o700 if path.is_dir() else 0o400)
            os.chown(path, 10001, 10001)
        for path in (work, *(work / "data").rglob("*"), *(work / "public").rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        made.append(Jail(work, holder.pid, Image.read(image)))
    try:
        yield made[0], made[1]
    finally:
        for jail in made:
            for process in jail.running:
                process.terminate()
                process.wait(60)
        holder.kill()
        holder.wait()


def test_the_commands_of_both_images_reach_a_finished_round_without_root_or_a_writable_root(
    jails: tuple[Jail, Jail],
) -> None:
    server, site = jails
    written = site.run("sh", "-c", "touch /x /opt/x /opt/code/x; id -u; grep Cap /proc/self/status")
    assert written.stderr.count("Read-only file system") == 3 and "10001" in written.stdout
    assert re.findall(r"Cap\w+:\s+(\w+)", written.stdout) == ["0" * 16] * 5
    policy = site.run("veilface", "site", "policy", "--bundle", "/run/secrets/bundle")
    assert policy.returncode == 0, policy.stderr
    (site.work / "run" / "secrets" / "policy").write_text(policy.stdout)
    assert server.run(*server.image.health).returncode == 1, "nothing runs yet"
    server.start()
    server.until_healthy()
    assert site.run(*site.image.health).returncode == 1
    site.start("--aligned")  # the synthetic faces are chips already
    site.until_healthy()
    ran = server.run(
        "veilface", "server", "run", "--state", "/var/lib/veilface/state", "--public", "/public",
        "--aligned", "--run-id", "one", "--json",
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr + server.log() + site.log()
    assert json.loads(ran.stdout)["round"] == 2
    assert (server.work / "lib/veilface/state/runs/one/model.safetensors").stat().st_uid == 10001
    report = verify(site.work / "lib/veilface/state")
    assert report.ok and len(report.reservations) == 2
    for jail in jails:
        jail.running[0].terminate()
        assert jail.running[0].wait(60) == 0, jail.log()
