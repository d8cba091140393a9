"""Disks with a volatile write cache, served to a guest as network block devices.

What the guest wrote is kept in memory until it flushes (or asks for a write to go through). A
power cut loses, tears and mixes whatever was not flushed, as the seed says; what was flushed
stays. The guest sees an ordinary block device that says it has a write cache and can discard.
"""
import mmap
import os
import random
import socket
import struct
import threading

BLOCK = 4096
SECTOR = 512
REQUEST = struct.Struct(">IHHQQI")
REQUEST_MAGIC, REPLY_MAGIC = 0x25609513, 0x67446698
READ, WRITE, DISCONNECT, FLUSH, TRIM = range(5)
FLAG_FUA = 1
EIO, EINVAL = 5, 22
# Has flags, takes flush, takes write-through, takes trim.
FLAGS = 1 | 4 | 8 | 32


class Disk:
    """One disk: an image, and what was written since its last flush."""

    def __init__(self, path):
        self.file = open(path, "r+b")
        self.bytes = os.path.getsize(path)
        self.image = mmap.mmap(self.file.fileno(), self.bytes)
        self.lock = threading.Lock()
        # Block: its contents since the last flush, oldest first.
        self.cache = {}
        self.failing = False
        self.counts = dict.fromkeys(("reads", "writes", "flushes", "trims", "through"), 0)

    def block(self, at):
        versions = self.cache.get(at)
        return versions[-1] if versions else self.image[at * BLOCK:(at + 1) * BLOCK]

    def read(self, offset, count):
        first, end = offset // BLOCK, -(-(offset + count) // BLOCK)
        data = b"".join(self.block(at) for at in range(first, end))
        skip = offset - first * BLOCK
        return data[skip:skip + count]

    def write(self, offset, data):
        at = 0
        while at < len(data):
            block, skip = divmod(offset + at, BLOCK)
            part = data[at:at + BLOCK - skip]
            if len(part) < BLOCK:
                old = self.block(block)
                part, at = old[:skip] + part + old[skip + len(part):], at + len(part)
            else:
                at += BLOCK
            self.cache.setdefault(block, []).append(bytes(part))

    def keep(self, at):
        versions = self.cache.pop(at, None)
        if versions:
            self.image[at * BLOCK:(at + 1) * BLOCK] = versions[-1]

    def flush(self):
        for at in list(self.cache):
            self.keep(at)

    def do(self, kind, flags, offset, count, data):
        """One request: (error, data)."""
        if offset + count > self.bytes:
            return EINVAL, b""
        if self.failing:
            return EIO, b""
        with self.lock:
            if kind == READ:
                self.counts["reads"] += 1
                return 0, self.read(offset, count)
            if kind == FLUSH:
                self.counts["flushes"] += 1
                self.flush()
            elif kind == WRITE:
                self.counts["writes"] += 1
                self.write(offset, data)
            elif kind == TRIM:
                self.counts["trims"] += 1
                self.write(offset, bytes(count))
            else:
                return EINVAL, b""
            if flags & FLAG_FUA and kind in (WRITE, TRIM):
                self.counts["through"] += 1
                for at in range(offset // BLOCK, -(-(offset + count) // BLOCK)):
                    self.keep(at)
        return 0, b""

    def power_cut(self, rng):
        """What was not flushed is lost, kept or torn. Returns how many blocks, and how many of
        them are not what was written last."""
        with self.lock:
            # Now and then a disk loses everything, or nothing.
            lose, keep = rng.choice([(1.0, 0.0), (0.0, 1.0), (0.4, 0.4), (0.4, 0.4)])
            lost = 0
            for at in list(self.cache):
                versions = self.cache[at]
                roll = rng.random()
                if roll < keep:
                    self.keep(at)
                    continue
                lost += 1
                del self.cache[at]
                if roll < keep + lose:
                    continue
                # Sectors of any age, in any mixture.
                place = slice(at * BLOCK, (at + 1) * BLOCK)
                ages = [self.image[place], *versions]
                cut = range(0, BLOCK, SECTOR)
                torn = b"".join(rng.choice(ages)[s:s + SECTOR] for s in cut)
                self.image[place] = torn
            self.cache.clear()
            return lost


class Shelf:
    """Disks behind one port. A connection says which disk it wants (one byte) and hears its size
    and flags; then the transmission phase of the protocol begins."""

    def __init__(self, address, paths):
        self.disks = [Disk(path) for path in paths]
        self.listener = socket.create_server(address, backlog=64)
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            connection, _ = self.listener.accept()
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stream = connection.makefile("rb", buffering=1 << 20)
        try:
            disk = self.disks[stream.read(1)[0]]
            connection.sendall(struct.pack(">QI", disk.bytes, FLAGS))
            while True:
                head = stream.read(REQUEST.size)
                if len(head) < REQUEST.size:
                    return
                magic, flags, kind, handle, offset, count = REQUEST.unpack(head)
                if magic != REQUEST_MAGIC or kind == DISCONNECT:
                    return
                data = stream.read(count) if kind == WRITE else b""
                if kind == WRITE and len(data) < count:
                    return  # the power went in the middle of it
                error, answer = disk.do(kind, flags, offset, count, data)
                connection.sendall(struct.pack(">IIQ", REPLY_MAGIC, error, handle) + answer)
        except (OSError, IndexError):
            return
        finally:
            connection.close()

    def power_cut(self, rng):
        """Cuts the power of all disks. Returns (unflushed blocks, not as written last)."""
        unflushed = sum(len(disk.cache) for disk in self.disks)
        return unflushed, sum(disk.power_cut(rng) for disk in self.disks)

    def counts(self):
        total = {}
        for disk in self.disks:
            for name, count in disk.counts.items():
                total[name] = total.get(name, 0) + count
        return total


def seeded(seed, turn):
    return random.Random("%d/%d" % (seed, turn))
