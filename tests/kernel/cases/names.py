"""Names as the kernel client sees them. `write` makes and checks, `check` looks again after the
server was killed and everything was mounted anew. Runs inside the mount."""
import errno
import mmap
import os
import socket
import stat
import sys

# Size of the sparse file; some servers' file systems end at 16 TiB.
HUGE = int(os.environ.get("HUGE_TIB", "20")) << 40
ISLANDS = (0, 5 << 30, HUGE - (3 << 40) + 123)

NAMES = [b"n" * 255, b"\xff\xfe\x80", b"a\nb", b" ", b"...", "ä".encode(),
         "a\u0308".encode(), b"A", b"a", b"-rf", b"*", b"con", b"x:y", b"\x01\x7f", b"\\"]


def refused(code, call, *args):
    try:
        call(*args)
    except OSError as e:
        assert e.errno == code, (call.__name__, args, e)
        return
    raise AssertionError("%s%r was not refused" % (call.__name__, args))


def content(path):
    with open(path, "rb") as f:
        return f.read()


def put(path, data):
    with open(path, "wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())


def names():
    os.mkdir("names")
    for name in NAMES:
        put(b"names/" + name, name)
    refused(errno.ENAMETOOLONG, os.mkdir, b"names/" + b"n" * 256)
    check_names()


def check_names():
    assert sorted(os.listdir(b"names")) == sorted(NAMES), os.listdir(b"names")
    for name in NAMES:
        assert content(b"names/" + name) == name, name


def links():
    os.mkdir("links")
    put("links/a", b"shared")
    for i in range(100):
        os.link("links/a", "links/l%d" % i)
    refused(errno.EEXIST, os.link, "links/a", "links/l5")
    refused(errno.EPERM, os.link, "links", "links/dir")
    with open("links/l50", "ab") as f:
        f.write(b" by all")
    os.symlink("../links/a", "links/s")
    os.symlink("x" * 4000, "links/long")
    os.symlink(b"\xff\xfe", b"links/bytes")
    os.unlink("links/l99")
    check_links()


def check_links():
    inode = os.stat("links/a").st_ino
    for i in range(99):
        s = os.stat("links/l%d" % i)
        assert (s.st_ino, s.st_nlink) == (inode, 100), s
    assert content("links/l7") == b"shared by all"
    assert content("links/s") == b"shared by all"
    assert os.readlink("links/long") == "x" * 4000
    assert os.readlink(b"links/bytes") == b"\xff\xfe"


def renames():
    os.makedirs("ren/a/b/c")
    os.mkdir("ren/empty")
    put("ren/f", b"f")
    put("ren/g", b"g")
    os.rename("ren/f", "ren/g")
    assert content("ren/g") == b"f"
    refused(errno.EINVAL, os.rename, "ren/a", "ren/a/b/c/a")
    refused(errno.ENOTEMPTY, os.rename, "ren/empty", "ren/a")
    refused(errno.EISDIR, os.rename, "ren/g", "ren/empty")
    refused(errno.ENOTDIR, os.rename, "ren/empty", "ren/g")
    refused(errno.ENOTEMPTY, os.rmdir, "ren/a")
    refused(errno.EISDIR, os.unlink, "ren/empty")
    refused(errno.ENOTDIR, os.rmdir, "ren/g")
    os.rename("ren/a/b/c", "ren/empty")
    assert os.listdir("ren/a/b") == []
    before = os.stat("ren/a").st_ino
    os.rename("ren/a", "ren/z")
    assert os.stat("ren/z").st_ino == before
    put("ren/z/b/deep", b"deep")
    os.mkdir("ren/other")
    os.rename("ren/z", "ren/other/z")
    assert os.stat("ren/other/z/..").st_ino == os.stat("ren/other").st_ino
    check_renames()


def check_renames():
    assert sorted(os.listdir("ren")) == ["empty", "g", "other"], os.listdir("ren")
    assert content("ren/other/z/b/deep") == b"deep"
    assert content("ren/g") == b"f"


def open_files():
    os.mkdir("open")
    f = open("open/f", "w+b")
    f.write(b"still here")
    f.flush()
    os.unlink("open/f")
    f.seek(0)
    assert f.read() == b"still here"
    f.write(b" and more")
    f.flush()
    os.fsync(f.fileno())
    f.seek(0)
    assert f.read() == b"still here and more"
    put("open/g", b"old")
    g = open("open/g", "rb")
    put("open/h", b"new")
    os.rename("open/h", "open/g")
    assert g.read() == b"old"
    assert content("open/g") == b"new"
    f.close()
    g.close()
    assert os.listdir("open") == ["g"], os.listdir("open")
    fd = os.open("open/ro", os.O_CREAT | os.O_RDWR | os.O_EXCL, 0o444)
    os.write(fd, b"by the owner of a read-only file")
    os.fsync(fd)
    os.close(fd)
    refused(errno.EEXIST, os.open, "open/ro", os.O_CREAT | os.O_EXCL | os.O_WRONLY)


def special():
    os.mkdir("special")
    os.mkfifo("special/fifo")
    os.mknod("special/chr", 0o600 | stat.S_IFCHR, os.makedev(5, 70000))
    os.mknod("special/blk", 0o600 | stat.S_IFBLK, os.makedev(300, 3))
    s = socket.socket(socket.AF_UNIX)
    s.bind("special/sock")
    s.close()
    check_special()


def check_special():
    assert stat.S_ISFIFO(os.stat("special/fifo").st_mode)
    assert stat.S_ISSOCK(os.stat("special/sock").st_mode)
    s = os.stat("special/chr")
    assert stat.S_ISCHR(s.st_mode) and os.major(s.st_rdev) == 5 and os.minor(s.st_rdev) == 70000
    s = os.stat("special/blk")
    assert stat.S_ISBLK(s.st_mode) and os.major(s.st_rdev) == 300 and os.minor(s.st_rdev) == 3


def sparse():
    fd = os.open("sparse", os.O_CREAT | os.O_RDWR, 0o644)
    os.ftruncate(fd, HUGE)
    for at in ISLANDS:
        os.pwrite(fd, b"island at %d" % at, at)
    os.fsync(fd)
    os.close(fd)
    check_sparse()


def check_sparse():
    s = os.stat("sparse")
    assert s.st_size == HUGE, s
    assert s.st_blocks * 512 < 1 << 20, s
    fd = os.open("sparse", os.O_RDONLY)
    for at in ISLANDS:
        want = b"island at %d" % at
        assert os.pread(fd, len(want) + 10, at) == want + bytes(10), at
    assert os.pread(fd, 4096, HUGE // 2) == bytes(4096)
    assert os.pread(fd, 100, HUGE - 10) == bytes(10)
    os.close(fd)


def mapped():
    fd = os.open("mapped", os.O_CREAT | os.O_RDWR, 0o644)
    os.ftruncate(fd, 100_000)
    m = mmap.mmap(fd, 100_000)
    m[5000:5010] = b"0123456789"
    m[99_990:100_000] = b"0123456789"
    m.flush()
    m.close()
    os.close(fd)
    with open("appended", "ab") as f:
        for i in range(1000):
            f.write(b"line %d\n" % i)
    check_mapped()


def check_mapped():
    data = content("mapped")
    assert len(data) == 100_000 and data[5000:5010] == b"0123456789" == data[-10:]
    assert content("appended") == b"".join(b"line %d\n" % i for i in range(1000))


def times():
    put("times", b"x")
    os.utime("times", ns=(1_000_000_000_123_456_789, 1_500_000_000_987_654_321))
    check_times()


def check_times():
    s = os.stat("times")
    got = (s.st_atime_ns, s.st_mtime_ns)
    assert got == (1_000_000_000_123_456_789, 1_500_000_000_987_654_321), got


STEPS = [names, links, renames, open_files, special, sparse, mapped, times]
CHECKS = [check_names, check_links, check_renames, check_special, check_sparse, check_mapped,
          check_times]

for step in STEPS if sys.argv[1] == "write" else CHECKS:
    step()
    print("ok", step.__name__, flush=True)
