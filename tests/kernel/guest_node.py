#!/usr/bin/env python3
"""Runs inside the server guest: attaches block devices, starts `cairnd` on them, obeys.

The guest's own files are gone with its power; what lasts is on the devices: the last one holds an
ext4 file system with the state directory, the others are disks of the aggregate. Orders come as
files order.N in the directory shared with the host; the answer is in answer.N.
"""
import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time

SHARED = "/run/kc"
STATE = "/run/state"
SHELF = (os.environ["KC_NET"] + ".254", 10809)
NBD_SET_SOCK, NBD_SET_BLKSIZE, NBD_DO_IT = 0xAB00, 0xAB01, 0xAB03
NBD_SET_SIZE_BLOCKS, NBD_SET_FLAGS = 0xAB07, 0xAB0A
SECTOR = 512
CONFIG = """state_dir = "%(state)s/node"
[nfs]
listen = "0.0.0.0:2049"
[storage]
disks = [%(disks)s]
log_devices = [%(logs)s]
cache = "64MiB"
driver = "%(driver)s"
raid = "raid_dp"
spares = 0
"""


def say(text):
    with open("/dev/kmsg", "w") as f:
        f.write("node: %s\n" % text)


def attach(index):
    """Connects /dev/nbdN to disk N of the shelf; the child process is the device's driver."""
    device = "/dev/nbd%d" % index
    while True:
        try:
            connection = socket.create_connection(SHELF, timeout=30)
            break
        except OSError:
            time.sleep(0.02)  # the shelf is not there yet
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(bytes([index]))
    head = b""
    while len(head) < 12:
        head += connection.recv(12 - len(head))
    size, flags = struct.unpack(">QI", head)
    connection.settimeout(None)
    fd = os.open(device, os.O_RDWR)
    fcntl.ioctl(fd, NBD_SET_BLKSIZE, SECTOR)
    fcntl.ioctl(fd, NBD_SET_SIZE_BLOCKS, size // SECTOR)
    fcntl.ioctl(fd, NBD_SET_FLAGS, flags)
    fcntl.ioctl(fd, NBD_SET_SOCK, connection.fileno())
    if os.fork() == 0:
        try:
            fcntl.ioctl(fd, NBD_DO_IT)
        finally:
            os._exit(0)
    os.close(fd)
    connection.close()
    return device


def sectors(device):
    with open("/sys/block/%s/size" % os.path.basename(device)) as f:
        return int(f.read())


def wait_for(device):
    while not os.path.exists(device) or sectors(device) == 0:
        time.sleep(0.01)
    return device


def devices(kind, count):
    if kind == "ubd":
        return ["/dev/ubd%s" % "abcdefgh"[i] for i in range(count)]
    subprocess.run(["/run/modprobe", "nbd", "nbds_max=%d" % count, "max_part=0"], check=True)
    return [wait_for(attach(i)) for i in range(count)]


def quoted(paths):
    return ", ".join('"%s"' % path for path in paths)


class Node:
    def __init__(self, daemon, log):
        self.daemon, self.log, self.process = daemon, log, None
        self.config = "/run/cairnd.toml"

    def cli(self, *words):
        argv = [os.path.join(os.path.dirname(self.daemon), "cairn"), "--server",
                "unix:%s/node/rest.sock" % STATE, "--token-file", STATE + "/node/rest-token",
                *words]
        return subprocess.run(argv, capture_output=True, text=True)

    def start(self):
        fresh = not os.path.exists(STATE + "/ready")
        argv = [self.daemon, "--config", self.config] + ["--initialize"] * fresh
        self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=self.log,
                                        stderr=self.log)
        if not fresh:
            return
        while self.cli("status").returncode != 0:
            if self.process.poll() is not None:
                say("cairnd ended with %s" % self.process.returncode)
                return
            time.sleep(0.05)
        for words in (["volume", "create", "vol0", "--size", "160MiB"],
                      ["export", "add", "vol0", "*", "--squash", "none", "--first"]):
            done = self.cli(*words)
            say("%s: %d %s" % (words, done.returncode, done.stderr.strip()))
        with open(STATE + "/ready", "w") as f:
            os.fsync(f.fileno())
        os.sync()

    def obey(self, words):
        if words[0] == "stop":
            self.process.send_signal(signal.SIGTERM)
            return {"code": self.process.wait()}
        if words[0] == "kill":
            self.process.send_signal(signal.SIGKILL)
            return {"code": self.process.wait()}
        if words[0] == "start":
            self.start()
            return {}
        if words[0] == "cli":
            done = self.cli(*words[1:])
            return {"code": done.returncode, "out": done.stdout, "err": done.stderr}
        if words[0] == "second":
            # Another node that wants the same disks, or one that is mounted.
            done = subprocess.run([self.daemon, "--config", words[1]], capture_output=True,
                                  text=True, stdin=subprocess.DEVNULL)
            return {"code": done.returncode, "err": done.stderr}
        return {"error": "no such order: %s" % words}


def main():
    kind, count, driver, daemon = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
    logs = int(sys.argv[5]) if len(sys.argv) > 5 else 0
    found = devices(kind, count)
    *disks, state = found
    log_devices, disks = disks[len(disks) - logs:], disks[:len(disks) - logs]
    os.makedirs(STATE, exist_ok=True)
    subprocess.run(["mount", "-t", "ext4", state, STATE], check=True)
    node = Node(daemon, open(SHARED + "/cairnd.log", "ab"))
    places = {"state": STATE, "disks": quoted(disks), "logs": quoted(log_devices),
              "driver": driver}
    with open(node.config, "w") as f:
        f.write(CONFIG % places)
    other = {**places, "state": "/run/other"}
    with open("/run/same-disks.toml", "w") as f:
        f.write((CONFIG % other).replace("2049", "2050"))
    with open("/run/mounted-disk.toml", "w") as f:
        f.write((CONFIG % {**other, "disks": quoted([state])}).replace("2049", "2050"))
    say("devices %s" % json.dumps({d: sectors(d) * SECTOR for d in found}))
    node.start()
    done = set(name for name in os.listdir(SHARED) if name.startswith("answer."))
    while True:
        for name in sorted(os.listdir(SHARED)):
            answer = "answer." + name.partition(".")[2]
            if name.startswith("order.") and answer not in done:
                with open(os.path.join(SHARED, name)) as f:
                    words = json.load(f)
                result = node.obey(words)
                path = os.path.join(SHARED, answer)
                with open(path + ".new", "w") as f:
                    json.dump(result, f)
                os.rename(path + ".new", path)
                done.add(answer)
        time.sleep(0.02)


if __name__ == "__main__":
    try:
        main()
    except BaseException as e:
        say("failed: %r" % e)
        raise
