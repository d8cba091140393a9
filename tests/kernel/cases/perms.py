"""Permissions through the kernel client: each claim runs in a child with its own identity, so that
the client sends that identity to the server."""
import errno
import os
import sys

ALICE, BOB, STAFF = (1001, 1001), (1002, 1002), 500
failed = 0
claims = 0


def as_user(user, groups, call):
    """Runs `call` as (uid, gid) with further groups; returns None or the errno."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 0
        try:
            os.setgroups(groups)
            os.setgid(user[1])
            os.setuid(user[0])
            os.umask(0)
            call()
        except OSError as e:
            code = e.errno
        except AssertionError as e:
            print("assertion:", e, flush=True)
            code = 250
        os.write(writer, bytes([code]))
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(writer)
    code = os.read(reader, 1)[0]
    os.close(reader)
    return code or None


def claim(what, got, want):
    global failed, claims
    claims += 1
    if got != want and not (isinstance(want, tuple) and got in want):
        failed += 1
        print("FAILED: %s: got %s, want %s" % (what, got, want), flush=True)


def make(path, mode, uid=0, gid=0, data=b"data"):
    with open(path, "wb") as f:
        f.write(data)
    os.chown(path, uid, gid)
    os.chmod(path, mode)


def make_dir(path, mode, uid=0, gid=0):
    os.mkdir(path)
    os.chown(path, uid, gid)
    os.chmod(path, mode)


def reads(path):
    return lambda: open(path, "rb").read()


def writes(path):
    def call():
        with open(path, "r+b") as f:
            f.write(b"x")
    return call


def creates(path):
    return lambda: os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))


NO = errno.EACCES
os.umask(0)
make_dir("p", 0o777)
os.chdir("p")

# Owner, group and others, each by its own bits: the first class that fits decides.
users = [("owner", ALICE, [], 6), ("group", BOB, [STAFF], 3), ("other", BOB, [], 0)]
for bits in range(8):
    for name, user, groups, shift in users:
        path = "f%o-%s" % (bits, name)
        rest = 0o777 & ~(7 << shift) if bits == 0 else 0
        make(path, bits << shift | rest, ALICE[0], STAFF)
        claim("read %s" % path, as_user(user, groups, reads(path)), None if bits & 4 else NO)
        claim("write %s" % path, as_user(user, groups, writes(path)),
              None if bits & 6 == 6 else NO)
        for right, ok in ((os.R_OK, bits & 4), (os.W_OK, bits & 2), (os.X_OK, bits & 1)):
            def check(path=path, right=right):
                if not os.access(path, right):
                    raise OSError(errno.EACCES, "access")
            claim("access %d %s" % (right, path), as_user(user, groups, check),
                  None if ok else NO)

# Directories: search, list, change.
for bits in range(8):
    d = "d%o" % bits
    make_dir(d, 0o700 | bits, ALICE[0], ALICE[1])
    make(d + "/f", 0o666, ALICE[0])
    claim("stat in " + d, as_user(BOB, [], lambda: os.stat(d + "/f")), None if bits & 1 else NO)
    claim("list " + d, as_user(BOB, [], lambda: os.listdir(d)), None if bits & 4 else NO)
    claim("create in " + d, as_user(BOB, [], creates(d + "/n")),
          None if bits & 3 == 3 else NO)
    claim("remove in " + d, as_user(BOB, [], lambda: os.unlink(d + "/f")),
          None if bits & 3 == 3 else NO)

# The sticky bit.
make_dir("sticky", 0o1777)
as_user(ALICE, [], creates("sticky/hers"))
as_user(BOB, [], creates("sticky/his"))
SHUT = (errno.EPERM, errno.EACCES)
claim("remove another's", as_user(BOB, [], lambda: os.unlink("sticky/hers")), SHUT)
claim("rename another's", as_user(BOB, [], lambda: os.rename("sticky/hers", "sticky/x")), SHUT)
claim("rename over another's",
      as_user(BOB, [], lambda: os.rename("sticky/his", "sticky/hers")), SHUT)
claim("remove one's own", as_user(ALICE, [], lambda: os.unlink("sticky/hers")), None)

# Set-gid directories pass the group on.
make_dir("team", 0o2777, 0, STAFF)
as_user(ALICE, [], creates("team/f"))
as_user(ALICE, [], lambda: os.mkdir("team/d", 0o755))
claim("group of a file", os.stat("team/f").st_gid, STAFF)
claim("group of a directory", os.stat("team/d").st_gid, STAFF)
claim("bit of a directory", os.stat("team/d").st_mode & 0o7777, 0o2755)

# chmod, chown, utime.
make("own", 0o666, ALICE[0], ALICE[1])
claim("chmod by another", as_user(BOB, [], lambda: os.chmod("own", 0o777)), errno.EPERM)
claim("chmod by the owner", as_user(ALICE, [], lambda: os.chmod("own", 0o640)), None)
claim("chown by the owner", as_user(ALICE, [], lambda: os.chown("own", BOB[0], -1)), errno.EPERM)
claim("chgrp to a foreign group", as_user(ALICE, [], lambda: os.chown("own", -1, STAFF)),
      errno.EPERM)
claim("chgrp to an own group", as_user(ALICE, [STAFF], lambda: os.chown("own", -1, STAFF)), None)
claim("group after it", os.stat("own").st_gid, STAFF)
claim("utime by another", as_user(BOB, [], lambda: os.utime("own", (1, 1))), errno.EPERM)
claim("touch by another", as_user(BOB, [], lambda: os.utime("own")), NO)
os.chmod("own", 0o666)
claim("touch by a writer", as_user(BOB, [], lambda: os.utime("own")), None)
claim("truncate by a writer", as_user(BOB, [], lambda: os.truncate("own", 1)), None)
os.chmod("own", 0o644)
claim("truncate by a reader", as_user(BOB, [], lambda: os.truncate("own", 0)), NO)

# Set-id bits go when somebody else writes, and when the owner changes.
make("suid", 0o6777, ALICE[0], ALICE[1])
claim("write to a set-id file", as_user(BOB, [], writes("suid")), None)
claim("mode after the write", os.stat("suid").st_mode & 0o7777, 0o777)
os.chmod("suid", 0o6755)
os.chown("suid", BOB[0], BOB[1])
claim("mode after chown", os.stat("suid").st_mode & 0o7777, 0o755)


# The owner's open descriptor outlives the mode.
def through_descriptor():
    fd = os.open("mine", os.O_CREAT | os.O_RDWR | os.O_EXCL, 0o600)
    os.write(fd, b"one")
    os.fchmod(fd, 0)
    os.write(fd, b" two")
    os.fsync(fd)
    assert os.pread(fd, 10, 0) == b"one two"
    os.close(fd)


claim("an open descriptor", as_user(ALICE, [], through_descriptor), None)
claim("open again", as_user(ALICE, [], reads("mine")), NO)

# Sixteen further groups are sent, and the last of them counts.
make("sixteen", 0o640, 0, 2015)
claim("the last of 16 groups", as_user(BOB, list(range(2000, 2016)), reads("sixteen")), None)
claim("not in the group", as_user(BOB, list(range(2000, 2015)), reads("sixteen")), NO)

# A program may be executed without being readable; the superuser may all.
make("prog", 0o711, 0, 0, b"#!/bin/true\n")
os.chmod("prog", 0o711)
make_dir("closed", 0o700, ALICE[0])
with open("closed/f", "wb") as f:
    f.write(b"by root")
claim("root reads", reads("closed/f")() == b"by root", True)

print("%d claims, %d failed" % (claims, failed), flush=True)
sys.exit(1 if failed else 0)
