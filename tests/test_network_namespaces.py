"""One network namespace a site and one for the server, on a wire that is cut, delayed and watched.

The wire is a thread that passes Ethernet frames between the namespaces. So it can lose and delay
them on any kernel, and it sees every packet that anybody sends.
"""

from __future__ import annotations

import ctypes
import heapq
import os
import selectors
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from common.liveness import DROP_AFTER
from tests.deployment_rig import Rig, command, training
from tests.deployment_runs import longest, moments, records, takes_part
from tests.process_rig import QUICK, until

EPSILON: Final = 4.0
DELAY: Final = 0.2
DROP: Final = 5.0
SERVER: Final = "10.77.0.1"
# Where everything else would go: a router that is there for whoever looks, and answers nobody.
ROUTER: Final = ("10.77.0.254", "02:00:00:00:00:fe")
ABROAD: Final = "198.51.100.7"
_PACKET_VNET_HDR: Final = 15
_PACKET_IGNORE_OUTGOING: Final = 23
_CLONE_NEWNET: Final = 0x40000000
_FRAME: Final = 1 << 17
# What the kernel puts before a frame, so that it may leave the checksum to whoever sends it on.
_VNET: Final = 10


@dataclass(frozen=True, order=True)
class Packet:
    """Who sent a packet to whom: protocol 6 is TCP; ports are 0 of other protocols."""

    sender: str
    source: str
    target: str
    protocol: int
    source_port: int
    target_port: int


def packet(sender: str, frame: bytes) -> Packet | None:
    """Return the IPv4 or IPv6 packet of an Ethernet frame; None for ARP and the like."""
    kind, body = int.from_bytes(frame[12:14], "big"), frame[14:]
    if kind == 0x0800:
        source, target = (socket.inet_ntop(socket.AF_INET, body[at : at + 4]) for at in (12, 16))
        protocol, inner = body[9], body[4 * (body[0] & 15) :]
    elif kind == 0x86DD:
        source, target = (socket.inet_ntop(socket.AF_INET6, body[at : at + 16]) for at in (8, 24))
        protocol, inner = body[6], body[40:]
    else:
        return None
    ports = struct.unpack("!HH", inner[:4]) if protocol in (6, 17) and len(inner) >= 4 else (0, 0)
    return Packet(sender, source, target, protocol, *ports)


class Wire:
    """Passes frames between the namespaces that hang on it, and knows who sent what."""

    def __init__(self, place: str, ends: dict[str, str]) -> None:
        """`ends` are the interfaces in the namespace `place`, by the name of who is behind."""
        self._sent: set[Packet] = set()
        self.cut: set[str] = set()
        self.delay: dict[str, float] = {}
        self._doors: dict[str, socket.socket] = {}
        self._late: list[tuple[float, int, str, bytes]] = []
        self._done, self._count = threading.Event(), 0
        opened = threading.Thread(target=self._open, args=(place, ends))
        opened.start()
        opened.join()
        assert set(self._doors) == set(ends)
        self._thread = threading.Thread(target=self._pass, daemon=True)
        self._thread.start()

    @property
    def sent(self) -> set[Packet]:
        """What was sent so far; the wire goes on meanwhile."""
        return self._sent.copy()

    def _open(self, place: str, ends: dict[str, str]) -> None:
        """Open a socket in another namespace: of this thread alone, which then ends."""
        descriptor = os.open(f"/run/netns/{place}", os.O_RDONLY)
        try:
            if ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        finally:
            os.close(descriptor)
        for name, interface in ends.items():
            door = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
            door.setsockopt(263, _PACKET_VNET_HDR, 1)
            door.setsockopt(263, _PACKET_IGNORE_OUTGOING, 1)
            door.bind((interface, 3))
            door.setblocking(False)
            self._doors[name] = door

    def _pass(self) -> None:
        with selectors.DefaultSelector() as ready:
            for name, door in self._doors.items():
                ready.register(door, selectors.EVENT_READ, name)
            while not self._done.is_set():
                due = self._late[0][0] - time.monotonic() if self._late else 0.1
                for key, _ in ready.select(max(0.0, min(due, 0.1))):
                    with suppress(BlockingIOError):
                        self._take(key.data, self._doors[key.data].recv(_FRAME))
                while self._late and self._late[0][0] <= time.monotonic():
                    _, _, name, frame = heapq.heappop(self._late)
                    self._put(name, frame)

    def _take(self, sender: str, frame: bytes) -> None:
        if (seen := packet(sender, frame[_VNET:])) is not None:
            self._sent.add(seen)
        for name in self._doors:
            if name == sender or {name, sender} & self.cut:
                continue
            if {name, sender} & {"server"} == set():
                continue  # sites have no line to one another
            delay = max(self.delay.get(name, 0.0), self.delay.get(sender, 0.0))
            self._count += 1
            heapq.heappush(self._late, (time.monotonic() + delay, self._count, name, frame))

    def _put(self, name: str, frame: bytes) -> None:
        with suppress(
            BlockingIOError, OSError
        ):  # a full queue or a frame too long: lost, as on any wire
            self._doors[name].send(frame)

    def close(self) -> None:
        self._done.set()
        self._thread.join()
        for door in self._doors.values():
            door.close()


@dataclass
class World:
    """The namespaces, each with one interface, whose other end hangs on the wire."""

    parties: tuple[str, ...]
    tag: str = f"vf{os.getpid()}"
    made: list[str] = field(default_factory=list)

    def place(self, party: str) -> str:
        return f"{self.tag}-{party}"

    def inside(self, party: str) -> tuple[str, ...]:
        """What comes before a command that runs in a party's namespace."""
        return ("ip", "netns", "exec", self.place(party))

    @contextmanager
    def connected(self) -> Iterator[Wire]:
        """Make them; afterwards nothing of them is left."""
        try:
            ends = {}
            self._make("wire")
            for number, party in enumerate(self.parties, start=1):
                self._make(party)
                near, far = "eth0", f"end{number}"
                peer = ("peer", "name", far, "netns", self.place("wire"))
                _ip("-n", self.place(party), "link", "add", near, "type", "veth", *peer)
                _ip("-n", self.place("wire"), "link", "set", far, "up")
                for words in (
                    ("address", "add", f"10.77.0.{number}/24", "dev", near),
                    ("link", "set", near, "up"), ("link", "set", "lo", "up"),
                    ("neighbour", "add", ROUTER[0], "lladdr", ROUTER[1], "dev", near),
                    ("route", "add", "default", "via", ROUTER[0]),
                ):  # fmt: skip
                    _ip("-n", self.place(party), *words)
                ends[party] = far
            with closing(Wire(self.place("wire"), ends)) as wire:
                yield wire
        finally:
            for place in self.made:
                _ip("netns", "delete", place)

    def _make(self, party: str) -> None:
        _ip("netns", "add", self.place(party))
        self.made.append(self.place(party))
        quiet = "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6"  # the kernel's own messages
        subprocess.run([*self.inside(party), "sh", "-c", quiet], capture_output=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def world() -> World:
    """Three hosts, yet to be made; skips where namespaces cannot be."""
    if shutil.which("ip") is None:
        pytest.skip("iproute2 is not installed")
    world = World(("server", "a", "b"))
    try:
        _ip("netns", "add", f"{world.tag}-try")
        _ip("netns", "delete", f"{world.tag}-try")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
    return world


_TRY: Final = """
import socket, sys
for port in map(int, sys.argv[3:]):
    try:
        socket.create_connection((sys.argv[1], port), timeout=float(sys.argv[2])).close()
        print(port, "open")
    except OSError as error:
        print(port, type(error).__name__)
"""


def reached(
    world: World, party: str, host: str, *ports: int, within: float = 20.0
) -> dict[int, str]:
    """What a party's machine gets from ports of a host: `open`, or the name of an error."""
    words = [*world.inside(party), sys.executable, "-c", _TRY, host, str(within), *map(str, ports)]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    return {int(line.split()[0]): line.split()[1] for line in done.stdout.splitlines()}


def test_sites_on_other_hosts_train_through_a_cut_and_slow_link_and_nothing_else_leaves(
    world: World, people_folder: Path, tmp_path: Path
) -> None:
    terms = training(rounds=1000, local_steps=5, epsilon=EPSILON, minimum_sites=1)
    with world.connected() as wire:
        rig = Rig(tmp_path, people_folder, ("a", "b"), host=SERVER, terms=terms, wrap=world.inside)
        server = rig.server().start()
        for site, data in (("a", "one"), ("b", "two")):
            rig.site(site, "--accept-terms", data=data).start()
        try:
            until(lambda: {"a", "b"} <= rig.online(), "a and b are there")
            run = rig.ask("far", "--drop-after", DROP)
            until(lambda: len(records(run)) > 1, "the run begins")
            takes_part(rig, run, "a", "b")

            until(moments(rig, run, "b")["computes"], "b computes", every=QUICK)
            wire.cut.add("b")
            before = len(records(run))
            takes_part(rig, run, "a")
            assert longest(run, before) < DROP_AFTER, "who falls silent is dropped"
            wire.cut.clear()
            takes_part(rig, run, "a", "b")

            wire.delay["b"] = DELAY
            takes_part(rig, run, "a", "b")
            assert records(run)[-1].seconds > 4 * DELAY, "a question and an answer, there and back"
            wire.delay.clear()
            takes_part(rig, run, "a", "b")

            words = Path(f"/proc/{server.part('front')}/cmdline").read_text().split("\0")
            inside = int(words[words.index("--upstream") + 1].rpartition(":")[2])
            found = reached(world, "a", SERVER, rig.port, inside, rig.page, 22)
            assert found.pop(rig.port) == "open"
            assert set(found.values()) == {"ConnectionRefusedError"}, "the front is all there is"
            said = {p for p in wire.sent if p.target_port not in found}
            for site in ("a", "b"):
                mine = {(p.target, p.protocol, p.target_port) for p in said if p.sender == site}
                assert mine == {(SERVER, 6, rig.port)}
            answers = {(p.protocol, p.source_port) for p in wire.sent if p.sender == "server"}
            assert answers - {(6, port) for port in found} == {(6, rig.port)}

            for party in ("server", "a"):  # or the wire would see nothing of it
                assert reached(world, party, ABROAD, 443, within=0.5) == {443: "TimeoutError"}
                assert any(
                    (p.sender, p.target, p.target_port) == (party, ABROAD, 443) for p in wire.sent
                )
            assert command("server", "cancel", "--state", rig.folder.path, "far").code == 0
            until(lambda: rig.status()["far"]["state"] == "cancelled", "it is cancelled")
        finally:
            rig.stop()
