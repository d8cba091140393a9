//! Claims about times, change counters and guards. The clock may stand still between two
//! operations, so later times are claimed to be "not before", and the counter to have moved.

use cairn_op::{Attrs, ObjectRef, Op, Reply, SetAttrs, SetTime, Status, XattrHow};
use cairn_units::WallTime;

use super::{Bench, alice, mode, name, owner, rename_op, root, size, write_op};

super::case_list!(
    times_start_together,
    data_changes_move_mtime_and_ctime,
    attribute_changes_move_only_ctime,
    times_are_set_exactly,
    guards_let_only_the_expected_state_change,
    an_empty_setattr_changes_nothing,
    entry_changes_move_the_directory,
    the_change_counter_never_goes_back,
    reading_is_not_a_change,
    identities_are_unique,
);

/// A time long ago.
const LONG_AGO: WallTime = WallTime::new(86_400_000_000_001);

/// Puts mtime (and atime) long ago, so that "now" is told apart from "unchanged".
async fn age(t: &Bench, obj: ObjectRef) -> Attrs {
    let to = SetTime::To(LONG_AGO);
    t.set(&root(), obj, SetAttrs { atime: to, mtime: to, ..SetAttrs::default() }).await
}

async fn times_start_together(t: Bench) {
    for obj in [t.file(&root(), t.root, "f", 0o644).await, t.open_dir("d").await] {
        let a = t.attrs(obj).await;
        t.same((a.atime, a.mtime, a.ctime), (a.birth, a.birth, a.birth), "all at birth");
        t.claim(a.birth > LONG_AGO, "the birth is now");
    }
}

async fn data_changes_move_mtime_and_ctime(t: Bench) {
    let f = t.file(&root(), t.root, "f", 0o644).await;
    t.write(&root(), f, 0, &[1; 100]).await;
    for op in [
        write_op(f, 0, b"x"),
        write_op(f, 0, b"x"),
        Op::SetAttr { obj: f, set: size(50), guard: None },
        Op::SetAttr { obj: f, set: size(50), guard: None },
        Op::SetAttr { obj: f, set: size(500), guard: None },
        Op::Punch { obj: f, offset: 0, count: 10 },
    ] {
        let before = age(&t, f).await;
        let text = format!("{op:?}");
        t.done(&root(), op).await;
        let after = t.attrs(f).await;
        t.claim(after.mtime > LONG_AGO, format_args!("mtime after {text}"));
        t.claim(after.ctime >= before.ctime, format_args!("ctime after {text}"));
        t.claim(after.change > before.change, format_args!("change after {text}"));
        t.same(after.birth, before.birth, format_args!("birth after {text}"));
    }
}

async fn attribute_changes_move_only_ctime(t: Bench) {
    let f = t.file(&root(), t.root, "f", 0o644).await;
    let d = t.open_dir("d").await;
    let (n, value, how) = (name("user.k"), vec![1], XattrHow::Either);
    for op in [
        Op::SetAttr { obj: f, set: mode(0o600), guard: None },
        Op::SetAttr { obj: f, set: owner(5), guard: None },
        Op::SetXattr { obj: f, name: n.clone(), value, how },
        Op::RemoveXattr { obj: f, name: n },
        Op::Link { obj: f, dir: d, name: name("l") },
        rename_op((d, "l"), (d, "m")),
        Op::Remove { dir: d, name: name("m") },
    ] {
        let before = age(&t, f).await;
        let text = format!("{op:?}");
        t.done(&root(), op).await;
        let after = t.attrs(f).await;
        t.same(after.mtime, LONG_AGO, format_args!("mtime after {text}"));
        t.claim(after.ctime >= before.ctime, format_args!("ctime after {text}"));
        t.claim(after.change > before.change, format_args!("change after {text}"));
    }
}

async fn times_are_set_exactly(t: Bench) {
    let f = t.file(&root(), t.root, "f", 0o644).await;
    for nanos in [0, 1, -1, 999_999_999, 4_000_000_000_123_456_789, -5_000_000_000_000_000_001] {
        let (at, mt) = (WallTime::new(nanos), WallTime::new(nanos / 2));
        let set =
            SetAttrs { atime: SetTime::To(at), mtime: SetTime::To(mt), ..SetAttrs::default() };
        t.set(&root(), f, set).await;
        let a = t.attrs(f).await;
        t.same((a.atime, a.mtime), (at, mt), "both");
        t.claim(a.ctime > LONG_AGO, "ctime is the server's");
    }
    age(&t, f).await;
    let set = SetAttrs { mtime: SetTime::Now, ..SetAttrs::default() };
    let a = t.set(&root(), f, set).await;
    t.claim(a.mtime > LONG_AGO && a.atime == LONG_AGO, "only one of them");
    let set = SetAttrs { mtime: SetTime::To(LONG_AGO), ..size(9) };
    let a = t.set(&root(), f, set).await;
    t.same((a.mtime, a.size), (LONG_AGO, 9), "a size and an explicit time");
}

async fn guards_let_only_the_expected_state_change(t: Bench) {
    let f = t.file(&root(), t.root, "f", 0o644).await;
    let a = t.attrs(f).await;
    let wrong = WallTime::new(a.ctime.get() + 1);
    let op = |guard| Op::SetAttr { obj: f, set: mode(0o600), guard: Some(guard) };
    t.refused(&root(), op(wrong), Status::NotSync).await;
    t.same(t.attrs(f).await, a.clone(), "nothing changed");
    t.done(&root(), op(a.ctime)).await;
    t.same(t.attrs(f).await.mode, 0o600, "the right guard passes");
}

async fn an_empty_setattr_changes_nothing(t: Bench) {
    let f = t.file(&root(), t.root, "f", 0o644).await;
    let before = t.attrs(f).await;
    for who in [root(), alice()] {
        let op = Op::SetAttr { obj: f, set: SetAttrs::default(), guard: None };
        match t.done(&who, op).await {
            Reply::Changed { before: b, after } => {
                t.same((b, after), (before.as_before(), before.clone()), "the reply");
            }
            other => panic!("setattr answered {other:?}"),
        }
    }
    t.same(t.attrs(f).await, before, "nothing changed");
}

async fn entry_changes_move_the_directory(t: Bench) {
    let d = t.open_dir("d").await;
    let f = t.file(&root(), t.root, "f", 0o644).await;
    let how = cairn_op::CreateHow::Unchecked(mode(0o644));
    for op in [
        Op::Create { dir: d, name: name("a"), how },
        Op::MakeDir { dir: d, name: name("b"), set: mode(0o755) },
        Op::Link { obj: f, dir: d, name: name("c") },
        rename_op((d, "a"), (d, "e")),
        rename_op((d, "e"), (t.root, "e")),
        rename_op((t.root, "e"), (d, "e")),
        Op::Remove { dir: d, name: name("e") },
        Op::RemoveDir { dir: d, name: name("b") },
    ] {
        let before = age(&t, d).await;
        let text = format!("{op:?}");
        t.done(&root(), op).await;
        let after = t.attrs(d).await;
        t.claim(after.mtime > LONG_AGO, format_args!("mtime after {text}"));
        t.claim(after.change > before.change, format_args!("change after {text}"));
    }
    let before = age(&t, d).await;
    t.done(&root(), Op::Create { dir: d, name: name("c"), how }).await;
    t.done(&root(), rename_op((d, "c"), (d, "c"))).await;
    t.same(t.attrs(d).await.change, before.change, "opening and renaming to itself");
}

async fn the_change_counter_never_goes_back(t: Bench) {
    let f = t.file(&root(), t.root, "f", 0o644).await;
    let mut last = t.attrs(f).await.change;
    for i in 0..200u64 {
        match i % 4 {
            0 => t.write(&root(), f, i * 10, b"data").await,
            1 => t.same(t.set(&root(), f, mode(0o600)).await.mode, 0o600, "mode"),
            2 => t.same(age(&t, f).await.mtime, LONG_AGO, "mtime"),
            _ => t.same(t.set(&root(), f, size(i)).await.size, i, "size"),
        }
        let change = t.attrs(f).await.change;
        t.claim(change > last, format_args!("step {i}: {last} became {change}"));
        last = change;
    }
}

async fn reading_is_not_a_change(t: Bench) {
    let f = t.file(&root(), t.root, "f", 0o644).await;
    t.write(&root(), f, 0, b"hello").await;
    let before = age(&t, f).await;
    t.read(f, 0, 10).await;
    t.done(&root(), Op::Commit { obj: f, offset: 0, count: 0 }).await;
    let after = t.attrs(f).await;
    t.same((after.ctime, after.change), (before.ctime, before.change), "ctime and counter");
    t.same(after.mtime, before.mtime, "mtime");
    t.claim(after.atime > LONG_AGO, "atime moved, as it lay before the last change");
}

async fn identities_are_unique(t: Bench) {
    let mut seen = std::collections::BTreeSet::new();
    for i in 0..50 {
        let f = t.file(&root(), t.root, &format!("f{i}"), 0o644).await;
        let a = t.attrs(f).await;
        t.same((a.ino, a.fsid), (f.ino, f.fsid), "attributes name the file");
        t.claim(seen.insert(a.ino.get()), "inode numbers are unique");
        t.claim(a.ino.get() != 0, "0 is no inode");
    }
    let mut objects = std::collections::BTreeSet::new();
    for i in 0..50 {
        let Some(f) = t.find(t.root, &format!("f{i}")).await else { panic!("f{i} is there") };
        t.claim(objects.insert(t.attrs(f).await.object), "object ids are unique");
    }
}
