//! The real drivers on real files: the contract's suite, locks, sizes, limits, and recovery.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::cell::RefCell;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use cairn_raid_disk::{
    CreateDiskError, Disk, DiskClass, DiskError, Driver, DriverOptions, NonVolatile, OpenDiskError,
    create_file_disk, open_disks,
};
use cairn_sim::conformance::{
    CONFORMANCE_BLOCKS_MIN, disk_conformance, join_all, pattern, read_blocks,
};
use cairn_sys::{BlockMut, block::pages_in_use};
use cairn_units::{Blocks, Dbn};
use tokio::runtime::{Builder, Runtime};

/// Both drivers; io_uring only where the kernel has it.
fn drivers() -> Vec<Driver> {
    let uring = DriverOptions { driver: Driver::Uring, ..Default::default() };
    match open_disks(&[], uring) {
        Ok(_) => vec![Driver::Uring, Driver::Threads],
        Err(error) => {
            eprintln!("io_uring is not tested: {error}");
            vec![Driver::Auto, Driver::Threads]
        }
    }
}

thread_local! {
    /// Of a thread that runs an event loop.
    static RUNTIME: RefCell<Option<Runtime>> = const { RefCell::new(None) };
}

/// Runs `test` on a thread that runs an event loop, as those that serve clients do.
fn on_event_loop<T: Send + 'static>(test: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = std::thread::Builder::new().spawn(|| {
        cairn_sys::event_loop::mark();
        let runtime = Builder::new_current_thread().enable_io().build().unwrap();
        let handle = runtime.handle().clone();
        let within = handle.enter();
        RUNTIME.set(Some(runtime));
        let result = test();
        drop(within);
        drop(RUNTIME.take());
        result
    });
    thread.unwrap().join().unwrap()
}

/// Runs `test` with each driver, and with that of an event loop.
fn everywhere(test: fn(Driver)) {
    for driver in drivers() {
        test(driver);
        if driver == Driver::Uring {
            on_event_loop(move || test(driver));
        }
    }
}

struct Unpark(std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    if let Some(runtime) = RUNTIME.take() {
        let output = runtime.block_on(future);
        RUNTIME.set(Some(runtime));
        return output;
    }
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return value;
        }
        std::thread::park();
    }
}

/// A directory of its own for each test, removed at its end.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        Self::within(Path::new(env!("CARGO_TARGET_TMPDIR")))
    }
    fn within(directory: &Path) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = directory.join(format!("disks-{}-{n}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
    fn disk(&self, name: &str) -> PathBuf {
        let path = self.file(name);
        create_file_disk(&path, Blocks::new(CONFORMANCE_BLOCKS_MIN)).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

fn open_one(path: &Path, driver: Driver) -> Result<Arc<dyn Disk>, OpenDiskError> {
    open_with(path, DriverOptions { driver, ..Default::default() })
}

fn open_with(path: &Path, options: DriverOptions) -> Result<Arc<dyn Disk>, OpenDiskError> {
    let mut opened = open_disks(&[path.to_owned()], options).unwrap();
    assert_eq!(opened[0].location, path);
    opened.remove(0).disk
}

#[test]
fn drivers_conform_on_real_files() {
    everywhere(|driver| {
        let scratch = Scratch::new();
        let mut n = 0;
        block_on(disk_conformance(|| {
            n += 1;
            open_one(&scratch.disk(&format!("d{n}")), driver).unwrap()
        }));
    });
}

/// Rings that this process has.
fn rings() -> usize {
    let fds = fs::read_dir("/proc/self/fd").unwrap();
    let targets = fds.filter_map(|fd| fs::read_link(fd.unwrap().path()).ok());
    targets.filter(|to| to.as_os_str() == "anon_inode:[io_uring]").count()
}

/// What an event loop writes to stay does not go through the driver's thread.
#[test]
fn an_event_loop_makes_its_writes_stable_itself() {
    if !drivers().contains(&Driver::Uring) {
        return;
    }
    let scratch = Scratch::new();
    let disk = open_one(&scratch.disk("d"), Driver::Uring).unwrap();
    assert_eq!(rings(), 1);
    block_on(disk.write_stable(Dbn::new(1), vec![pattern(1)])).unwrap();
    assert_eq!(rings(), 1, "this thread runs no event loop");
    let same = disk.clone();
    on_event_loop(move || {
        block_on(same.write(Dbn::new(2), vec![pattern(2)])).unwrap();
        assert_eq!(rings(), 1, "a plain write is the driver's");
        for n in 3..100 {
            block_on(same.write_stable(Dbn::new(n), vec![pattern(n)])).unwrap();
            assert_eq!(rings(), 2);
        }
    });
    assert_eq!(rings(), 1, "it goes with its event loop");
    for n in 1..100 {
        assert!(block_on(read_blocks(&*disk, n, 1))[0][..] == pattern(n)[..]);
    }
}

/// Writes that an event loop began are answered though it ends: others may wait for them.
#[test]
fn writes_that_an_event_loop_began_end_though_it_does_not_turn_any_more() {
    if !drivers().contains(&Driver::Uring) {
        return;
    }
    for turns in [false, true] {
        let scratch = Scratch::new();
        let disk = open_one(&scratch.disk("d"), Driver::Uring).unwrap();
        let same = disk.clone();
        let writes = on_event_loop(move || {
            if turns {
                block_on(same.write_stable(Dbn::new(500), vec![pattern(0)])).unwrap();
            }
            let write = |n| same.write_stable(Dbn::new(n), vec![pattern(n); 2]);
            (0..100).map(|n| write(n * 2)).collect::<Vec<_>>()
        });
        assert!(block_on(join_all(writes)).into_iter().all(|answer| answer.is_ok()));
        for n in (0..200).step_by(2) {
            assert!(block_on(read_blocks(&*disk, n, 1))[0][..] == pattern(n)[..]);
        }
    }
}

/// A block device in front of a file.
struct Loop(PathBuf);

impl Loop {
    /// `None` where the system lets nobody make one.
    fn new(file: &Path) -> Option<Self> {
        let made = Command::new("losetup").args(["--find", "--show"]).arg(file).output();
        match made {
            Ok(out) if out.status.success() => {
                Some(Self(PathBuf::from(String::from_utf8(out.stdout).unwrap().trim())))
            }
            other => {
                eprintln!("block devices are not tested: {other:?}");
                None
            }
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        assert!(Command::new("losetup").arg("--detach").arg(&self.0).status().unwrap().success());
    }
}

#[test]
fn drivers_conform_on_block_devices() {
    for driver in drivers() {
        let scratch = Scratch::new();
        let mut devices = Vec::new();
        block_on(disk_conformance(|| {
            let file = scratch.disk(&format!("d{}", devices.len()));
            // Where there are none, the files themselves must do.
            let device = Loop::new(&file);
            let disk = open_one(device.as_ref().map_or(&file, |d| &d.0), driver).unwrap();
            assert_eq!(disk.info().blocks, Blocks::new(CONFORMANCE_BLOCKS_MIN));
            if let Some(device) = &device {
                assert_ne!(disk.info().class, DiskClass::File);
                let second = open_one(&device.0, driver).map(drop).unwrap_err();
                assert!(matches!(second, OpenDiskError::InUse { .. }), "{second}");
            }
            devices.push(device);
            disk
        }));
    }
}

/// What a device discards is given back to whoever holds its blocks.
#[test]
fn discarded_blocks_of_a_block_device_leave_the_file_behind_it() {
    for driver in drivers() {
        let scratch = Scratch::new();
        let file = scratch.disk("d");
        let Some(device) = Loop::new(&file) else { return };
        let disk = open_one(&device.0, driver).unwrap();
        let held = || fs::metadata(&file).unwrap().blocks();
        block_on(async {
            for at in (0..512).step_by(64) {
                disk.write(Dbn::new(at), vec![pattern(at); 64]).await.unwrap();
            }
            disk.flush().await.unwrap();
            let before = held();
            disk.discard(Dbn::new(0), Blocks::new(256)).await.unwrap();
            disk.flush().await.unwrap();
            let left = held();
            assert!(left <= before - 256 * 8, "{left} of {before} sectors are left");
            assert!(read_blocks(&*disk, 300, 1).await[0][..] == pattern(256)[..]);
        });
    }
}

#[test]
fn disk_in_use_is_refused_until_its_last_handle_is_gone() {
    let scratch = Scratch::new();
    let path = scratch.disk("d");
    for driver in drivers() {
        let first = open_one(&path, driver).unwrap();
        block_on(first.write(Dbn::new(3), vec![pattern(3)])).unwrap();
        let second = open_one(&path, driver).map(drop).unwrap_err();
        assert!(matches!(second, OpenDiskError::InUse { .. }), "{second}");
        assert!(second.to_string().contains("in use"));
        let twice = open_disks(
            &[scratch.disk(&format!("{driver:?}")), path.clone()],
            DriverOptions::default(),
        );
        let twice = twice.unwrap();
        assert!(twice[0].disk.is_ok() && twice[1].disk.is_err(), "one refusal spoils no other");
        drop(first);
        let again = open_one(&path, driver).unwrap();
        assert!(block_on(read_blocks(&*again, 3, 1))[0][..] == pattern(3)[..]);
    }
}

#[test]
fn unfit_locations_are_refused_with_the_reason() {
    let scratch = Scratch::new();
    let refusal = |path: &Path| open_one(path, Driver::Auto).map(drop).unwrap_err();
    let odd = scratch.file("odd");
    fs::write(&odd, vec![0; 5 << 20]).unwrap();
    OpenOptions::new().write(true).open(&odd).unwrap().set_len((5 << 20) + 512).unwrap();
    assert!(matches!(refusal(&odd), OpenDiskError::OddSize { .. }));
    let small = scratch.file("small");
    fs::write(&small, vec![0; 8192]).unwrap();
    assert!(matches!(refusal(&small), OpenDiskError::TooSmall { .. }));
    assert!(matches!(refusal(&scratch.0), OpenDiskError::NotADisk { .. }));
    assert!(matches!(refusal(&scratch.file("none")), OpenDiskError::Io { .. }));
    assert!(matches!(refusal(Path::new("/dev/null")), OpenDiskError::NotADisk { .. }));
    let short = create_file_disk(&scratch.file("x"), Blocks::new(10)).unwrap_err();
    assert!(matches!(short, CreateDiskError::TooSmall { .. }));
    let there = create_file_disk(&small, Blocks::new(4096)).unwrap_err();
    assert!(matches!(there, CreateDiskError::Io { .. }));
    assert_eq!(fs::read(&small).unwrap().len(), 8192, "an existing file is left alone");
}

#[test]
fn set_of_disks_keeps_their_blocks_apart() {
    for driver in drivers() {
        let scratch = Scratch::new();
        let paths: Vec<PathBuf> = (0..5).map(|i| scratch.disk(&format!("d{i}"))).collect();
        let options = DriverOptions { driver, ..Default::default() };
        let disks: Vec<Arc<dyn Disk>> =
            open_disks(&paths, options).unwrap().into_iter().map(|o| o.disk.unwrap()).collect();
        block_on(async {
            let mut writes = Vec::new();
            for i in 0..300u64 {
                for (d, disk) in (0u64..).zip(&disks) {
                    writes.push(disk.write(Dbn::new(i), vec![pattern(d * 1000 + i)]));
                }
            }
            assert!(join_all(writes).await.into_iter().all(|w| w.is_ok()));
            for disk in &disks {
                disk.flush().await.unwrap();
            }
        });
        for (d, path) in (0u64..).zip(&paths) {
            let bytes = fs::read(path).unwrap();
            for i in 0..300u64 {
                let at = usize::try_from(i).unwrap() * 4096;
                assert!(bytes[at..at + 4096] == pattern(d * 1000 + i)[..], "{driver:?} {d} {i}");
            }
        }
        assert!(disks.iter().all(|d| d.counters().writes == 300));
    }
}

#[test]
fn more_requests_than_the_queue_holds_all_end() {
    for driver in drivers() {
        let scratch = Scratch::new();
        let disk = open_one(&scratch.disk("d"), driver).unwrap();
        let requests = (0..2000u64).map(|i| disk.write(Dbn::new(i), vec![pattern(i)]));
        let requests: Vec<_> = requests.collect();
        // The later ones have not begun; dropping some of them harms nothing.
        let kept = requests.into_iter().enumerate().filter(|(i, _)| i % 7 != 6).map(|(_, r)| r);
        let done = block_on(join_all(kept.collect()));
        assert!(done.into_iter().all(|w| w.is_ok()));
        for i in (0..2000).filter(|i| i % 7 != 6) {
            assert!(block_on(read_blocks(&*disk, i, 1))[0][..] == pattern(i)[..]);
        }
    }
}

#[test]
fn blocks_cut_off_under_the_driver_are_a_medium_error_there_only() {
    for driver in drivers() {
        let scratch = Scratch::new();
        let path = scratch.disk("d");
        let disk = open_one(&path, driver).unwrap();
        block_on(disk.write(Dbn::new(99), vec![pattern(99), pattern(100)])).unwrap();
        OpenOptions::new().write(true).open(&path).unwrap().set_len(100 * 4096).unwrap();
        assert!(block_on(read_blocks(&*disk, 99, 1))[0][..] == pattern(99)[..]);
        let bufs = (0..4).map(|_| BlockMut::dirty()).collect();
        let error = block_on(disk.read(Dbn::new(98), bufs)).unwrap_err();
        assert_eq!(error, DiskError::Medium { at: Dbn::new(100), count: Blocks::new(2) });
        assert_eq!(disk.counters().errors, 1);
    }
}

#[test]
fn timed_out_requests_answer_and_give_their_buffers_back_later() {
    for driver in drivers() {
        let scratch = Scratch::new();
        let options = DriverOptions { driver, request_timeout: Duration::ZERO };
        let before = pages_in_use();
        let disk = open_with(&scratch.disk("d"), options).unwrap();
        let mut timed_out = 0;
        for i in 0..2000u64 {
            let bufs = (0..8).map(|_| BlockMut::dirty()).collect();
            match block_on(disk.read(Dbn::new(i), bufs)) {
                Err(DiskError::TimedOut { at }) => {
                    assert_eq!(at, Dbn::new(i));
                    timed_out += 1;
                }
                // Threads may be faster than the watch.
                Ok(_) => assert!(driver == Driver::Threads, "the ring checks before it reaps"),
                Err(other) => panic!("{other}"),
            }
        }
        assert!(timed_out == 2000 || driver == Driver::Threads, "{timed_out} timed out");
        let counters = disk.counters();
        assert_eq!(counters.errors, timed_out);
        assert_eq!(counters.reads, 2000 - timed_out);
        // All places in the queue come back: more requests than it holds were answered.
        drop(disk);
        while pages_in_use() > before {
            std::thread::yield_now();
        }
    }
}

#[test]
fn flush_that_timed_out_is_never_followed_by_one_that_is_ok() {
    for driver in drivers().into_iter().filter(|d| *d == Driver::Uring) {
        let scratch = Scratch::new();
        let options = DriverOptions { driver, request_timeout: Duration::ZERO };
        let disk = open_with(&scratch.disk("d"), options).unwrap();
        assert!(matches!(block_on(disk.flush()), Err(DiskError::TimedOut { .. })));
        let later = block_on(disk.flush());
        assert!(matches!(&later, Err(DiskError::Gone { reason }) if reason.contains("flush")));
    }
}

/// Many stable writes at once, of all sizes, beside plain ones: all are there, counted once, and
/// flushed; one outside the disk is refused and spoils nothing.
#[test]
fn stable_writes_are_written_and_flushed_in_one_request() {
    everywhere(|driver| {
        let scratch = Scratch::new();
        let path = scratch.disk("d");
        let disk = open_one(&path, driver).unwrap();
        let stable = |at: u64, count: usize| {
            let blocks = (0..count).map(|i| pattern(at + i as u64)).collect();
            disk.write_stable(Dbn::new(at), blocks)
        };
        let before = disk.counters();
        let mut writes = Vec::new();
        for round in 0..40u64 {
            writes.push(stable(round * 20, usize::try_from(round % 17).unwrap() + 1));
            writes.push(disk.write(Dbn::new(round * 20 + 18), vec![pattern(round)]));
        }
        for answer in block_on(join_all(writes)) {
            answer.unwrap();
        }
        let after = disk.counters();
        assert_eq!((after.writes - before.writes, after.flushes - before.flushes), (80, 40));
        let blocks: u64 = (0..40).map(|round| round % 17 + 2).sum();
        assert_eq!(after.blocks_written - before.blocks_written, blocks);
        let end = disk.info().blocks.get();
        let outside = block_on(stable(end - 1, 2));
        assert!(matches!(outside, Err(DiskError::OutOfRange { .. })), "{outside:?}");
        block_on(stable(end - 1, 1)).unwrap();
        block_on(disk.flush()).unwrap();
        drop(disk);
        let disk = open_one(&path, driver).unwrap();
        for round in 0..40u64 {
            let count = usize::try_from(round % 17).unwrap() + 1;
            let found = block_on(read_blocks(&*disk, round * 20, count));
            for (i, block) in (round * 20..).zip(found) {
                assert!(*block == *pattern(i), "block {i}");
            }
        }
    });
}

/// Flushes that the kernel sent to a block device.
fn flushes_of(device: &Loop) -> u64 {
    let name = device.0.file_name().unwrap().to_str().unwrap();
    let stat = fs::read_to_string(format!("/sys/block/{name}/stat")).unwrap();
    // Documented in the kernel's `Documentation/block/stat.rst`.
    stat.split_whitespace().nth(15).expect("kernels since 5.5 count flushes").parse().unwrap()
}

/// A device with a volatile cache is made to empty it before a stable write is done.
#[test]
fn stable_writes_empty_the_cache_of_the_device() {
    everywhere(|driver| {
        let scratch = Scratch::new();
        let file = scratch.disk("d");
        let Some(device) = Loop::new(&file) else { return };
        let disk = open_one(&device.0, driver).unwrap();
        let before = flushes_of(&device);
        block_on(disk.write(Dbn::new(7), vec![pattern(1)])).unwrap();
        assert_eq!(flushes_of(&device), before, "{driver:?}: a plain write is not stable");
        for n in 1..=10 {
            block_on(disk.write_stable(Dbn::new(n * 3), vec![pattern(n); 2])).unwrap();
            assert_eq!(flushes_of(&device), before + n, "{driver:?}");
        }
    });
}

/// The time of a stable write is up: what the device holds is unknown from then on.
#[test]
fn stable_write_that_timed_out_is_never_followed_by_a_flush_that_is_ok() {
    everywhere(|driver| {
        if driver != Driver::Uring {
            return;
        }
        let scratch = Scratch::new();
        let options = DriverOptions { driver, request_timeout: Duration::ZERO };
        let disk = open_with(&scratch.disk("d"), options).unwrap();
        let write = disk.write_stable(Dbn::new(7), vec![pattern(1)]);
        assert!(matches!(block_on(write), Err(DiskError::TimedOut { .. })));
        let later = block_on(disk.flush());
        assert!(matches!(&later, Err(DiskError::Gone { reason }) if reason.contains("flush")));
    });
}

/// A device that is declared non-volatile is what it was, but nobody flushes it.
#[test]
fn nonvolatile_device_conforms_and_is_not_flushed() {
    let scratch = Scratch::new();
    let disk = NonVolatile::new(open_one(&scratch.disk("d"), Driver::Auto).unwrap());
    let write = disk.write_stable(Dbn::new(3), vec![pattern(3), pattern(4)]);
    block_on(write).unwrap();
    block_on(disk.flush()).unwrap();
    let found = block_on(read_blocks(&disk, 3, 2));
    assert!(*found[0] == *pattern(3) && *found[1] == *pattern(4));
    let counters = disk.counters();
    assert_eq!((counters.writes, counters.blocks_written, counters.flushes), (1, 2, 0));
}

/// What is memory is written before the call returns; a file on a disk is not.
#[test]
fn memory_is_written_at_once_and_nothing_else_is() {
    let file = Scratch::new();
    let on_disk = open_one(&file.disk("d"), Driver::Auto).unwrap();
    let kind = Command::new("stat").args(["-f", "-c", "%T"]).arg(&file.0).output().unwrap();
    if kind.stdout != b"tmpfs\n" {
        assert_eq!(on_disk.write_now(Dbn::new(3), &[pattern(3)]), None);
    }
    let memory = Scratch::within(Path::new("/dev/shm"));
    let disk = open_one(&memory.disk("d"), Driver::Auto).unwrap();
    let blocks = [pattern(5), pattern(6), pattern(7)];
    assert_eq!(disk.write_now(Dbn::new(9), &blocks), Some(Ok(())));
    let found = block_on(read_blocks(&*disk, 9, 3));
    assert!((0..3).all(|n| *found[n] == *blocks[n]));
    let last = disk.info().blocks.get() - 1;
    let outside = disk.write_now(Dbn::new(last), &blocks);
    assert!(matches!(outside, Some(Err(DiskError::OutOfRange { .. }))), "{outside:?}");
    let counters = disk.counters();
    assert_eq!((counters.writes, counters.blocks_written, counters.errors), (1, 3, 1));
    // As a log has it: the answer is there when it is asked for.
    let log = NonVolatile::new(disk);
    let write = log.write_stable(Dbn::new(1), vec![pattern(1)]);
    let answer = pin!(write).poll(&mut Context::from_waker(Waker::noop()));
    assert_eq!(answer, Poll::Ready(Ok(())));
}
