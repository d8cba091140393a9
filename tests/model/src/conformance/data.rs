//! Claims about data: reads, writes, sizes, holes, durability, extended attributes, volumes.

use cairn_cf::{Manage, ManageError, Managed};
use cairn_op::{
    CreateHow, DeviceNo, FileKind, LinkTarget, NodeKind, ObjectRef, Op, Reply, Stability, Status,
    XattrHow,
};
use cairn_sys::Payload;
use cairn_units::{FILE_BYTES_MAX, Fsid, Generation, SnapId};

use super::{Bench, alice, bob, mode, name, root, size, write_op};

super::case_list!(
    what_was_written_is_read_at_every_offset,
    a_read_behind_the_end_is_empty_and_at_the_end,
    reads_tell_where_the_file_ends,
    holes_read_as_zeros_and_take_no_space,
    truncation_zeroes_what_comes_back,
    truncation_inside_a_tiny_file_zeroes_what_comes_back,
    small_files_grow_out_of_their_inode,
    every_size_around_a_block_keeps_its_bytes,
    overlapping_writes_leave_the_last_bytes,
    a_write_of_nothing_changes_nothing,
    files_go_to_the_end_of_the_offset_space,
    data_operations_refuse_other_kinds,
    punching_frees_whole_blocks_and_keeps_the_size,
    punching_past_the_end_or_nothing_is_harmless,
    write_replies_are_honest,
    commit_answers_with_the_verifier,
    extended_attributes_are_kept_and_listed,
    extended_attributes_obey_how,
    stale_and_foreign_references_are_refused,
    fsstat_counts_down,
    removed_files_give_their_space_back,
    a_full_volume_refuses_and_can_be_emptied,
    volumes_are_listed_renamed_resized_and_deleted,
    a_megabyte_in_one_write_comes_back_in_one_read,
    many_blocks_in_random_order_come_back,
);

/// Bytes that differ from place to place.
fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        out.extend_from_slice(&x.to_le_bytes());
    }
    out.truncate(len);
    out
}

async fn what_was_written_is_read_at_every_offset(t: Bench) {
    let f = t.file(&root(), t.root, "f", 0o644).await;
    let all = pattern(1, 20_000);
    t.write(&root(), f, 0, &all).await;
    t.same(t.attrs(f).await.size, 20_000, "size after the write");
    for at in [0usize, 1, 100, 4095, 4096, 4097, 8191, 12_288, 19_999] {
        for len in [1u32, 7, 4095, 4096, 4097, 9000] {
            let (got, eof) = t.read(f, at as u64, len).await;
            let end = all.len().min(at + len as usize);
            t.claim(got == all[at..end], format_args!("{len} bytes at {at}"));
            t.same(eof, end == all.len(), format_args!("eof of {len} bytes at {at}"));
        }
    }
}

async fn a_read_behind_the_end_is_empty_and_at_the_end(t: Bench) {
    let f = t.file(&root(), t.root, "f", 0o644).await;
    t.same(t.read(f, 0, 10).await, (vec![], true), "an empty file");
    t.write(&root(), f, 0, b"abc").await;
    for at in [3, 4, 4096, 1 << 40, FILE_BYTES_MAX, u64::MAX] {
        t.same(t.read(f, at, 10).await, (vec![], true), format_args!("at {at}"));
    }
}

async fn reads_tell_where_the_file_ends(t: Bench) {
    let f = t.file(&root(), t.root, "f", 0o644).await;
    t.write(&root(), f, 0, b"0123456789").await;
    t.same(t.read(f, 0, 9).await, (b"012345678".to_vec(), false), "short of the end");
    t.same(t.read(f, 0, 10).await.1, true, "up to the end");
    t.same(t.read(f, 5, 100).await, (b"56789".to_vec(), true), "over the end");
    t.same(t.read(f, 5, 0).await, (vec![], false), "nothing, before the end");
}

async fn holes_read_as_zeros_and_take_no_space(t: Bench) {
    let f = t.file(&root(), t.root, "f", 0o644).await;
    t.write(&root(), f, 10 << 20, b"end").await;
    let attrs = t.attrs(f).await;
    t.same(attrs.size, (10 << 20) + 3, "size");
    t.claim(attrs.used < 1 << 20, format_args!("{} bytes used for one block", attrs.used));
    t.same(t.read(f, 5 << 20, 5000).await, (vec![0; 5000], false), "a hole");
    t.same(t.read(f, (10 << 20) - 2, 10).await, (b"\0\0end".to_vec(), true), "hole and data");
    let g = t.file(&root(), t.root, "g", 0o644).await;
    t.set(&root(), g, size(1 << 40)).await;
    t.same(t.attrs(g).await.size, 1 << 40, "size by setattr");
    t.same(t.read(g, (1 << 40) - 5, 10).await, (vec![0; 5], true), "the end of a large hole");
}

async fn truncation_zeroes_what_comes_back(t: Bench) {
    let f = t.file(&root(), t.root, "f", 0o644).await;
    for cut in [0u64, 1, 100, 4095, 4096, 4097, 8192, 9999] {
        t.write(&root(), f, 0, &[7; 10_000]).await;
        t.same(t.set(&root(), f, size(cut)).await.size, cut, "cut");
        t.set(&root(), f, size(10_000)).await;
        let kept = usize::try_from(cut).unwrap_or(0);
        let mut want = vec![7; kept];
        want.resize(10_000, 0);
        t.claim(t.read(f, 0, 10_000).await == (want, true), format_args!("cut at {cut}"));
    }
    t.write(&root(), f, 0, &[7; 5000]).await;
    t.set(&root(), f, size(10)).await;
    t.write(&root(), f, 4000, b"x").await;
    let mut want = vec![7; 10];
    want.resize(4000, 0);
    want.push(b'x');
    t.claim(t.read(f, 0, 9000).await == (want, true), "a write behind a cut");
}

async fn truncation_inside_a_tiny_file_zeroes_what_comes_back(t: Bench) {
    let f = t.file(&root(), t.root, "f", 0o644).await;
    t.write(&root(), f, 0, b"secret").await;
    t.set(&root(), f, size(2)).await;
    t.set(&root(), f, size(6)).await;
    t.same(t.read(f, 0, 10).await, (b"se\0\0\0\0".to_vec(), true), "a cut of 6 to 2 bytes");
    t.set(&root(), f, size(3)).await;
    t.write(&root(), f, 5, b"!").await;
    t.same(t.read(f, 0, 10).await, (b"se\0\0\0!".to_vec(), true), "a write behind the end");
}

async fn small_files_grow_out_of_their_inode(t: Bench) {
    let f = t.file(&root(), t.root, "f", 0o644).await;
    let all = pattern(3, 6000);
    let mut at = 0;
    for step in [1usize, 10, 50, 100, 40, 300, 500, 1000, 2000, 1999] {
        t.write(&root(), f, at as u64, &all[at..at + step]).await;
        at += step;
        let (got, eof) = t.read(f, 0, 100_000).await;
        t.claim(got == all[..at] && eof, format_args!("{at} bytes"));
    }
    t.set(&root(), f, size(20)).await;
    t.claim(t.read(f, 0, 100).await == (all[..20].to_vec(), true), "shrunk to 20 bytes");
    t.write(&root(), f, 20, &all[20..30]).await;
    t.claim(t.read(f, 0, 100).await == (all[..30].to_vec(), true), "and grown again");
}

async fn every_size_around_a_block_keeps_its_bytes(t: Bench) {
    for len in [1usize, 63, 64, 65, 127, 128, 511, 512, 4095, 4096, 4097, 8192, 12_289, 65_536] {
        let f = t.file(&root(), t.root, &format!("f{len}"), 0o644).await;
        let all = pattern(len as u64, len);
        t.write(&root(), f, 0, &all).await;
        t.claim(t.read(f, 0, 1 << 20).await == (all, true), format_args!("{len} bytes"));
    }
}

async fn overlapping_writes_leave_the_last_bytes(t: Bench) {
    let f = t.file(&root(), t.root, "f", 0o644).await;
    let mut want = vec![0; 30_000];
    for (i, at, len) in [
        (1u64, 0usize, 30_000usize),
        (2, 4096, 4096),
        (3, 4000, 200),
        (4, 8000, 9000),
        (5, 1, 1),
        (6, 29_000, 1000),
        (7, 12_288, 4096),
    ] {
        let data = pattern(i, len);
        want[at..at + len].copy_from_slice(&data);
        t.write(&root(), f, at as u64, &data).await;
        t.claim(t.read(f, 0, 30_000).await.0 == want, format_args!("after write {i}"));
    }
}

async fn a_write_of_nothing_changes_nothing(t: Bench) {
    let f = t.file(&root(), t.root, "f", 0o644).await;
    t.write(&root(), f, 0, b"abc").await;
    let before = t.attrs(f).await;
    let reply = t.done(&root(), write_op(f, 10, b"")).await;
    t.claim(matches!(reply, Reply::Written { count: 0, .. }), "count 0");
    let after = t.attrs(f).await;
    t.same(after.size, 3, "size");
    t.same((after.mtime, after.change), (before.mtime, before.change), "times");
}

async fn files_go_to_the_end_of_the_offset_space(t: Bench) {
    let f = t.file(&root(), t.root, "f", 0o644).await;
    for at in [1u64 << 31, 1 << 32, (1 << 44) + 5, 1 << 50, FILE_BYTES_MAX - 4] {
        t.write(&root(), f, at, b"tail").await;
        t.same(t.attrs(f).await.size, at + 4, format_args!("size after a write at {at}"));
        t.same(t.read(f, at, 10).await, (b"tail".to_vec(), true), format_args!("data at {at}"));
    }
    t.same(t.read(f, 1 << 32, 4).await, (b"tail".to_vec(), false), "the early ones stay");
    t.refused(&root(), write_op(f, FILE_BYTES_MAX - 3, b"tail"), Status::FileTooBig).await;
    t.refused(&root(), write_op(f, u64::MAX - 1, b"tail"), Status::FileTooBig).await;
    t.set(&root(), f, size(FILE_BYTES_MAX)).await;
    let op = Op::SetAttr { obj: f, set: size(FILE_BYTES_MAX + 1), guard: None };
    t.refused(&root(), op, Status::FileTooBig).await;
    t.same(t.attrs(f).await.size, FILE_BYTES_MAX, "a refused size leaves the old one");
    t.set(&root(), f, size(0)).await;
    t.same(t.read(f, 0, 10).await, (vec![], true), "cut to nothing");
}

async fn data_operations_refuse_other_kinds(t: Bench) {
    let d = t.open_dir("d").await;
    let target = LinkTarget::new(bytes::Bytes::from_static(b"x"));
    let Ok(target) = target else { panic!("a target of the tests") };
    let set = mode(0o777);
    let op = Op::Symlink { dir: t.root, name: name("l"), target, set };
    let l = t.made(t.done(&root(), op).await).0;
    let op = Op::MakeNode { dir: t.root, name: name("p"), kind: NodeKind::Fifo, set };
    let p = t.made(t.done(&root(), op).await).0;
    for (obj, status) in [(d, Status::IsDirectory), (l, Status::Invalid), (p, Status::Invalid)] {
        t.refused(&root(), Op::Read { obj, offset: 0, count: 1 }, status).await;
        t.refused(&root(), write_op(obj, 0, b"x"), status).await;
        t.refused(&root(), Op::SetAttr { obj, set: size(0), guard: None }, status).await;
        t.refused(&root(), Op::Commit { obj, offset: 0, count: 0 }, status).await;
        t.refused(&root(), Op::Punch { obj, offset: 0, count: 1 }, status).await;
    }
    let f = t.file(&root(), t.root, "f", 0o644).await;
    for obj in [d, p, f] {
        t.refused(&root(), Op::ReadLink { obj }, Status::Invalid).await;
    }
    for dir in [f, l, p] {
        let nd = Status::NotDirectory;
        t.refused(&root(), Op::Lookup { dir, name: name("x") }, nd).await;
        t.refused(&root(), Op::Remove { dir, name: name("x") }, nd).await;
        t.refused(&root(), Op::RemoveDir { dir, name: name("x") }, nd).await;
        t.refused(&root(), Op::MakeDir { dir, name: name("x"), set }, nd).await;
        let how = CreateHow::Unchecked(set);
        t.refused(&root(), Op::Create { dir, name: name("x"), how }, nd).await;
        t.refused(&root(), Op::Link { obj: f, dir, name: name("x") }, nd).await;
        t.refused(&root(), super::rename_op((dir, "x"), (t.root, "y")), nd).await;
        t.refused(&root(), super::rename_op((t.root, "f"), (dir, "y")), nd).await;
    }
}

async fn punching_frees_whole_blocks_and_keeps_the_size(t: Bench) {
    let f = t.file(&root(), t.root, "f", 0o644).await;
    let mut want = pattern(9, 1 << 20);
    t.write(&root(), f, 0, &want).await;
    let full = t.attrs(f).await.used;
    for (at, len) in [(100usize, 50usize), (5000, 300_000), (409_600, 409_600), (1_048_000, 576)] {
        let op = Op::Punch { obj: f, offset: at as u64, count: len as u64 };
        let reply = t.done(&root(), op).await;
        t.claim(matches!(reply, Reply::Changed { .. }), "punch answers Changed");
        want[at..at + len].fill(0);
        t.claim(t.read(f, 0, 1 << 20).await == (want.clone(), true), format_args!("hole {at}"));
    }
    t.done(&root(), Op::Commit { obj: f, offset: 0, count: 0 }).await;
    let used = t.attrs(f).await.used;
    t.claim(used + 600_000 < full, format_args!("used {full} became {used}"));
    t.same(t.attrs(f).await.size, 1 << 20, "size");
    let at = Op::Punch { obj: f, offset: 0, count: u64::MAX };
    t.done(&root(), at).await;
    t.claim(t.read(f, 0, 1 << 20).await == (vec![0; 1 << 20], true), "all is a hole");
}

async fn punching_past_the_end_or_nothing_is_harmless(t: Bench) {
    let f = t.file(&root(), t.root, "f", 0o644).await;
    t.write(&root(), f, 0, b"abcdef").await;
    let before = t.attrs(f).await;
    for (offset, count) in [(6, 100), (1 << 40, 5), (2, 0), (u64::MAX, u64::MAX)] {
        t.done(&root(), Op::Punch { obj: f, offset, count }).await;
        t.same(t.attrs(f).await.change, before.change, "change counter");
    }
    t.done(&root(), Op::Punch { obj: f, offset: 4, count: u64::MAX }).await;
    t.same(t.read(f, 0, 10).await, (b"abcd\0\0".to_vec(), true), "up to the end");
}

async fn write_replies_are_honest(t: Bench) {
    let f = t.file(&root(), t.root, "f", 0o644).await;
    for asked in [Stability::Unstable, Stability::DataSync, Stability::FileSync] {
        let data = Payload::copy_from(5, b"hello");
        let old = t.attrs(f).await;
        let op = Op::Write { obj: f, offset: 5, data, stability: asked };
        let reply = t.done(&root(), op).await;
        let Reply::Written { count, stability, verifier, before, after } = reply else {
            panic!("a write answered {reply:?}");
        };
        t.same(count, 5, "count");
        t.claim(stability >= asked, format_args!("{asked:?} became {stability:?}"));
        t.same(verifier, t.node.verifier(), "verifier");
        t.same(before, old.as_before(), "before");
        t.same(after.size, 10, "after");
        t.claim(after.change > before.change, "the change counter moves");
    }
}

async fn commit_answers_with_the_verifier(t: Bench) {
    let f = t.file(&root(), t.root, "f", 0o644).await;
    t.write(&root(), f, 0, b"hello").await;
    let old = t.attrs(f).await;
    for (offset, count) in [(0, 0), (0, 5), (1 << 40, 0), (u64::MAX, u64::MAX)] {
        let reply = t.done(&bob(), Op::Commit { obj: f, offset, count }).await;
        let Reply::Committed { verifier, before, after } = reply else {
            panic!("a commit answered {reply:?}");
        };
        t.same(verifier, t.node.verifier(), "verifier");
        t.same((before.size, before.change), (5, old.change), "before");
        t.same((after.size, after.change), (5, old.change), "after");
    }
}

async fn get(t: &Bench, obj: ObjectRef, n: &str) -> Option<Vec<u8>> {
    match t.ask(&root(), Op::GetXattr { obj, name: name(n) }).await {
        Ok(Reply::Xattr { value }) => Some(value),
        Err(failure) if failure.status == Status::NoXattr => None,
        other => panic!("getxattr answered {other:?}"),
    }
}

async fn put(t: &Bench, obj: ObjectRef, n: &str, value: &[u8]) {
    let (value, how) = (value.to_vec(), XattrHow::Either);
    t.done(&root(), Op::SetXattr { obj, name: name(n), value, how }).await;
}

async fn extended_attributes_are_kept_and_listed(t: Bench) {
    let f = t.file(&root(), t.root, "f", 0o644).await;
    let d = t.open_dir("d").await;
    for obj in [f, d] {
        let before = t.attrs(obj).await;
        put(&t, obj, "user.a", b"1").await;
        put(&t, obj, "user.empty", b"").await;
        put(&t, obj, "user.long", &pattern(5, 3000)).await;
        let after = t.attrs(obj).await;
        t.claim(after.change > before.change, "the change counter moves");
        t.same(after.mtime, before.mtime, "the data did not change");
        put(&t, obj, "user.a", b"22").await;
        t.same(get(&t, obj, "user.a").await, Some(b"22".to_vec()), "replaced");
        t.same(get(&t, obj, "user.empty").await, Some(vec![]), "empty");
        t.same(get(&t, obj, "user.long").await, Some(pattern(5, 3000)), "long");
        t.same(get(&t, obj, "user.b").await, None, "missing");
        let reply = t.done(&root(), Op::ListXattr { obj }).await;
        let Reply::XattrNames { mut names } = reply else { panic!("listxattr {reply:?}") };
        names.sort();
        let want = vec![name("user.a"), name("user.empty"), name("user.long")];
        t.same(names, want, "names");
        t.done(&root(), Op::RemoveXattr { obj, name: name("user.a") }).await;
        t.same(get(&t, obj, "user.a").await, None, "removed");
        let op = Op::RemoveXattr { obj, name: name("user.a") };
        t.refused(&root(), op, Status::NoXattr).await;
    }
    t.same(t.read(f, 0, 10).await, (vec![], true), "attributes are not data");
}

async fn extended_attributes_obey_how(t: Bench) {
    let f = t.file(&alice(), t.open_dir("d").await, "f", 0o640).await;
    let set = |how, value: &[u8]| Op::SetXattr {
        obj: f,
        name: name("user.k"),
        value: value.to_vec(),
        how,
    };
    t.refused(&alice(), set(XattrHow::Replace, b"0"), Status::NoXattr).await;
    t.done(&alice(), set(XattrHow::Create, b"1")).await;
    t.refused(&alice(), set(XattrHow::Create, b"2"), Status::Exists).await;
    t.done(&alice(), set(XattrHow::Replace, b"3")).await;
    t.same(get(&t, f, "user.k").await, Some(b"3".to_vec()), "value");
    t.refused(&bob(), set(XattrHow::Either, b"4"), Status::AccessDenied).await;
    let op = Op::RemoveXattr { obj: f, name: name("user.k") };
    t.refused(&bob(), op, Status::AccessDenied).await;
    let op = Op::GetXattr { obj: f, name: name("user.k") };
    t.refused(&bob(), op, Status::AccessDenied).await;
    let too_big = vec![0; crate::XATTR_VALUE_BYTES_MAX + 1];
    t.refused(&alice(), set(XattrHow::Either, &too_big), Status::XattrTooBig).await;
}

async fn stale_and_foreign_references_are_refused(t: Bench) {
    let f = t.file(&root(), t.root, "f", 0o644).await;
    t.write(&root(), f, 0, b"x").await;
    let other = ObjectRef { generation: Generation::new(f.generation.get() + 1), ..f };
    let unknown = ObjectRef { fsid: Fsid::new(999_999), ..f };
    let snap = ObjectRef { snap: SnapId::new(7), ..f };
    t.remove(&root(), t.root, "f").await;
    for obj in [f, other, unknown, snap] {
        let st = Status::Stale;
        t.refused(&root(), Op::GetAttr { obj }, st).await;
        t.refused(&root(), Op::Read { obj, offset: 0, count: 1 }, st).await;
        t.refused(&root(), write_op(obj, 0, b"x"), st).await;
        t.refused(&root(), Op::SetAttr { obj, set: mode(0), guard: None }, st).await;
        t.refused(&root(), Op::Commit { obj, offset: 0, count: 0 }, st).await;
    }
    t.refused(&root(), Op::Link { obj: f, dir: t.root, name: name("g") }, Status::Stale).await;
    let again = t.file(&root(), t.root, "f", 0o644).await;
    t.claim(again != f, "a new file is not the old one");
    t.refused(&root(), Op::GetAttr { obj: f }, Status::Stale).await;
    let d = t.open_dir("d").await;
    t.done(&root(), Op::RemoveDir { dir: t.root, name: name("d") }).await;
    t.refused(&root(), Op::GetAttr { obj: d }, Status::Stale).await;
    t.refused(&root(), Op::Lookup { dir: d, name: name("x") }, Status::Stale).await;
    let op = Op::MakeDir { dir: d, name: name("x"), set: mode(0o755) };
    t.refused(&root(), op, Status::Stale).await;
}

async fn free_bytes(t: &Bench) -> u64 {
    match t.done(&alice(), Op::FsStat { obj: t.root }).await {
        Reply::FsStat { stat, .. } => {
            t.claim(stat.free_bytes <= stat.total_bytes, "free is a part of all");
            t.claim(stat.available_bytes <= stat.free_bytes, "available is a part of free");
            t.claim(stat.free_files <= stat.total_files, "free files are a part of all");
            stat.free_bytes
        }
        other => panic!("fsstat answered {other:?}"),
    }
}

async fn fsstat_counts_down(t: Bench) {
    let f = t.file(&root(), t.root, "f", 0o644).await;
    let before = free_bytes(&t).await;
    t.write(&root(), f, 0, &pattern(1, 1 << 20)).await;
    let after = free_bytes(&t).await;
    t.claim(after + (1 << 20) <= before, format_args!("{before} became {after}"));
}

async fn removed_files_give_their_space_back(t: Bench) {
    let before = free_bytes(&t).await;
    for round in 0..12u64 {
        let f = t.file(&root(), t.root, "f", 0o644).await;
        for mb in 0..8 {
            t.write(&root(), f, mb << 20, &pattern(round * 8 + mb, 1 << 20)).await;
        }
        t.remove(&root(), t.root, "f").await;
        t.same(t.node.manage(Manage::ConsistencyPoint).await, Ok(Managed::Done), "a CP");
    }
    let after = free_bytes(&t).await;
    t.claim(after + (1 << 20) > before, format_args!("{before} became {after}"));
}

async fn a_full_volume_refuses_and_can_be_emptied(t: Bench) {
    let chunk = pattern(1, 1 << 20);
    let mut made = 0u64;
    let refusal = loop {
        let dir = t.root;
        let how = CreateHow::Guarded(mode(0o644));
        let n = name(format!("f{made}"));
        let f = match t.ask(&root(), Op::Create { dir, name: n, how }).await {
            Ok(reply) => t.made(reply).0,
            Err(failure) => break failure.status,
        };
        made += 1;
        if let Err(failure) = t.ask(&root(), write_op(f, 0, &chunk)).await {
            break failure.status;
        }
        t.claim(made <= super::VOLUME_BYTES >> 20, "more than the volume's size was taken");
    };
    t.same(refusal, Status::NoSpace, "the refusal");
    t.claim(made > 40, format_args!("only {made} MiB of 64 fitted"));
    for at in 0..made {
        t.remove(&root(), t.root, &format!("f{at}")).await;
    }
    t.same(t.node.manage(Manage::ConsistencyPoint).await, Ok(Managed::Done), "a CP");
    let f = t.file(&root(), t.root, "again", 0o644).await;
    for mb in 0..20 {
        t.write(&root(), f, mb << 20, &chunk).await;
    }
    t.claim(t.read(f, 19 << 20, 1 << 20).await.0 == chunk, "data after the emptying");
}

async fn volumes_are_listed_renamed_resized_and_deleted(t: Bench) {
    let (fsid, size_bytes) = (Fsid::new(t.fsid.get() + (1 << 32)), 32 << 20);
    let create = |name: &str| Manage::VolumeCreate { fsid, name: name.to_owned(), size_bytes };
    let done = Ok(Managed::Done);
    t.same(t.node.manage(create("second")).await, done.clone(), "create");
    t.same(t.node.manage(create("second")).await, done.clone(), "create again");
    let other = Fsid::new(fsid.get() + 1);
    let twice = Manage::VolumeCreate { fsid: other, name: "second".into(), size_bytes };
    let taken = Err(ManageError::NameTaken("second".into()));
    t.same(t.node.manage(twice).await, taken, "the name is taken");
    let bad = Manage::VolumeCreate { fsid: other, name: "a/b".into(), size_bytes };
    t.same(t.node.manage(bad).await, Err(ManageError::BadName("a/b".into())), "a bad name");

    let Ok(Managed::Root(second)) = t.node.manage(Manage::VolumeRoot { fsid }).await else {
        panic!("the second volume has a root");
    };
    let f = t.file(&root(), t.root, "f", 0o644).await;
    let cross = Status::CrossVolume;
    t.refused(&root(), super::rename_op((t.root, "f"), (second, "f")), cross).await;
    t.refused(&root(), Op::Link { obj: f, dir: second, name: name("f") }, cross).await;
    let g = t.file(&root(), second, "g", 0o644).await;
    t.same(t.find(t.root, "g").await, None, "volumes do not share names");

    let rename = Manage::VolumeRename { fsid, name: "renamed".into() };
    t.same(t.node.manage(rename).await, done.clone(), "rename");
    let grow = Manage::VolumeResize { fsid, size_bytes: 48 << 20 };
    t.same(t.node.manage(grow).await, done.clone(), "resize");
    let Ok(Managed::Volumes(all)) = t.node.manage(Manage::VolumeList).await else {
        panic!("volumes are listed");
    };
    let status = all.iter().find(|v| v.fsid == fsid);
    let seen = status.map(|v| (v.name.as_str(), v.size_bytes, v.online));
    t.same(seen, Some(("renamed", 48 << 20, true)), "status");
    t.same(t.node.manage(Manage::VolumeDelete { fsid }).await, done.clone(), "delete");
    t.same(t.node.manage(Manage::VolumeDelete { fsid }).await, done, "delete again");
    t.refused(&root(), Op::GetAttr { obj: g }, Status::Stale).await;
    let gone = Err(ManageError::NoSuchVolume(fsid));
    t.same(t.node.manage(Manage::VolumeRoot { fsid }).await, gone.clone(), "no root");
    let resize = Manage::VolumeResize { fsid, size_bytes };
    t.same(t.node.manage(resize).await, gone, "no resize");
}

async fn a_megabyte_in_one_write_comes_back_in_one_read(t: Bench) {
    let f = t.file(&root(), t.root, "f", 0o644).await;
    let all = pattern(11, 1 << 20);
    for offset in [0u64, 77, 3 << 20] {
        t.write(&root(), f, offset, &all).await;
        t.claim(t.read(f, offset, 1 << 20).await.0 == all, format_args!("at {offset}"));
    }
}

async fn many_blocks_in_random_order_come_back(t: Bench) {
    let f = t.file(&root(), t.root, "f", 0o644).await;
    let order: Vec<u64> = (0..512u64).map(|i| (i * 197) % 512).collect();
    for block in &order {
        t.write(&root(), f, block * 4096, &pattern(*block, 4096)).await;
    }
    t.same(t.node.manage(Manage::ConsistencyPoint).await, Ok(Managed::Done), "a CP");
    for block in 0..512 {
        let got = t.read(f, block * 4096, 4096).await.0;
        t.claim(got == pattern(block, 4096), format_args!("block {block}"));
    }
    let device = DeviceNo { major: 3, minor: 70_000 };
    let kind = NodeKind::BlockDevice(device);
    let op = Op::MakeNode { dir: t.root, name: name("dev"), kind, set: mode(0o600) };
    let (dev, attrs) = t.made(t.done(&root(), op).await);
    t.same((attrs.kind, attrs.device), (FileKind::BlockDevice, device), "a device");
    t.same(t.attrs(dev).await.device, device, "a device, asked again");
}
