//! Claims about names: making, finding, removing, renaming, linking.

use cairn_op::{
    CreateHow, DeviceNo, FileKind, LinkTarget, NodeKind, ObjectRef, Op, Reply, SetAttrs, SetTime,
    Status, Verifier,
};
use cairn_units::{Gid, Uid, WallTime};

use super::{Bench, alice, bob, mode, name, rename_op, root, size};

super::case_list!(
    a_new_volume_has_an_empty_root,
    made_files_have_what_was_asked_for,
    every_kind_can_be_made_and_is_what_it_says,
    unchecked_create_opens_what_is_there,
    guarded_create_refuses_what_is_there,
    exclusive_create_is_found_again_by_its_verifier,
    names_are_bytes,
    dot_names_are_looked_up_and_never_made_or_removed,
    remove_and_remove_dir_keep_to_their_kinds,
    a_directory_with_anything_in_it_stays,
    links_share_one_file_and_count,
    links_are_refused_where_they_make_no_sense,
    links_stop_at_the_maximum,
    rename_moves_and_replaces,
    rename_of_two_links_of_one_file_does_nothing,
    rename_keeps_to_the_kinds,
    a_directory_does_not_move_below_itself,
    a_moved_directory_has_a_new_parent,
    directory_link_counts_count_subdirectories,
    replies_carry_the_directory_before_and_after,
    failed_operations_change_nothing,
    handles_survive_renames,
    symbolic_links_keep_their_target,
    deep_paths_work,
    a_name_used_again_is_another_file,
);

fn how(bits: u32) -> CreateHow {
    CreateHow::Guarded(mode(bits))
}

async fn a_new_volume_has_an_empty_root(t: Bench) {
    let a = t.attrs(t.root).await;
    t.same((a.kind, a.links, a.mode), (FileKind::Directory, 2, 0o755), "the root");
    t.same((a.uid.get(), a.gid.get(), a.fsid), (0, 0, t.fsid), "its owner and volume");
    t.same(a.ino, t.root.ino, "its inode number");
    t.same(t.find(t.root, "..").await, Some(t.root), "`..` of the root");
    t.same(t.find(t.root, "x").await, None, "nothing in it");
}

async fn made_files_have_what_was_asked_for(t: Bench) {
    let set = SetAttrs {
        mode: Some(0o4751),
        uid: Some(Uid::new(5)),
        gid: Some(Gid::new(6)),
        size: Some(12_345),
        atime: SetTime::To(WallTime::new(1_000_000_001)),
        mtime: SetTime::To(WallTime::new(-2_000_000_002)),
    };
    let op = Op::Create { dir: t.root, name: name("f"), how: CreateHow::Guarded(set) };
    let (f, a) = t.made(t.done(&root(), op).await);
    for a in [a, t.attrs(f).await] {
        t.same((a.mode, a.uid.get(), a.gid.get(), a.size), (0o4751, 5, 6, 12_345), "attributes");
        t.same((a.atime.get(), a.mtime.get()), (1_000_000_001, -2_000_000_002), "times");
        t.same((a.kind, a.links, a.ino), (FileKind::Regular, 1, f.ino), "kind and links");
    }
    t.same(t.find(t.root, "f").await, Some(f), "it is found");
    let open = t.open_dir("open").await;
    let op = Op::Create { dir: open, name: name("g"), how: CreateHow::Guarded(set) };
    let (_, a) = t.made(t.done(&alice(), op).await);
    t.same((a.uid.get(), a.gid.get()), (super::ALICE, 100), "a user makes only own files");
    let defaults = SetAttrs::default();
    let op = Op::Create { dir: open, name: name("h"), how: CreateHow::Guarded(defaults) };
    let (_, a) = t.made(t.done(&alice(), op).await);
    t.same(a.mode & 0o077, 0, "nothing is granted that nobody asked for");
}

async fn every_kind_can_be_made_and_is_what_it_says(t: Bench) {
    let device = DeviceNo { major: 8, minor: 17 };
    let kinds = [
        (NodeKind::BlockDevice(device), FileKind::BlockDevice, device),
        (NodeKind::CharDevice(device), FileKind::CharDevice, device),
        (NodeKind::Fifo, FileKind::Fifo, DeviceNo::default()),
        (NodeKind::Socket, FileKind::Socket, DeviceNo::default()),
    ];
    for (i, (kind, want, device)) in kinds.into_iter().enumerate() {
        let n = name(format!("n{i}"));
        let op = Op::MakeNode { dir: t.root, name: n.clone(), kind, set: mode(0o640) };
        let (obj, a) = t.made(t.done(&root(), op.clone()).await);
        t.same((a.kind, a.device, a.mode, a.links), (want, device, 0o640, 1), "a special file");
        t.same(t.attrs(obj).await.kind, want, "asked again");
        t.refused(&root(), op, Status::Exists).await;
        t.refused(&root(), Op::RemoveDir { dir: t.root, name: n }, Status::NotDirectory).await;
        t.remove(&root(), t.root, &format!("n{i}")).await;
    }
    let open = t.open_dir("open").await;
    for (kind, refused) in [
        (NodeKind::BlockDevice(device), true),
        (NodeKind::CharDevice(device), true),
        (NodeKind::Fifo, false),
        (NodeKind::Socket, false),
    ] {
        let op = Op::MakeNode { dir: open, name: name(format!("{kind:?}")), kind, set: mode(0o6) };
        if refused {
            t.refused(&alice(), op, Status::NotOwner).await;
        } else {
            t.done(&alice(), op).await;
        }
    }
    let d = t.dir(&root(), t.root, "d", 0o1750).await;
    let a = t.attrs(d).await;
    t.same((a.kind, a.mode, a.links), (FileKind::Directory, 0o1750, 2), "a directory");
}

async fn unchecked_create_opens_what_is_there(t: Bench) {
    let f = t.file(&root(), t.root, "f", 0o640).await;
    t.write(&root(), f, 0, b"hello").await;
    let open = |set| Op::Create { dir: t.root, name: name("f"), how: CreateHow::Unchecked(set) };
    let (again, a) = t.made(t.done(&root(), open(mode(0o777))).await);
    t.same((again, a.mode, a.size), (f, 0o640, 5), "the same file, its mode and data kept");
    let (again, a) = t.made(t.done(&root(), open(size(0))).await);
    t.same((again, a.size), (f, 0), "the same file, truncated");
    t.open_dir("d").await;
    for n in ["d"] {
        let how = CreateHow::Unchecked(mode(0o644));
        let op = Op::Create { dir: t.root, name: name(n), how };
        t.refused(&root(), op, Status::Exists).await;
    }
    t.refused(&bob(), open(size(0)), Status::AccessDenied).await;
    let (again, _) = t.made(t.done(&bob(), open(mode(0o777))).await);
    t.same(again, f, "opening needs no right to write the directory");
    let how = CreateHow::Unchecked(mode(0o644));
    let op = Op::Create { dir: t.root, name: name("g"), how };
    t.refused(&bob(), op, Status::AccessDenied).await;
}

async fn guarded_create_refuses_what_is_there(t: Bench) {
    t.file(&root(), t.root, "f", 0o644).await;
    t.open_dir("d").await;
    for n in ["f", "d"] {
        let op = Op::Create { dir: t.root, name: name(n), how: how(0o644) };
        t.refused(&root(), op, Status::Exists).await;
        let op = Op::MakeDir { dir: t.root, name: name(n), set: mode(0o755) };
        t.refused(&root(), op, Status::Exists).await;
    }
}

async fn exclusive_create_is_found_again_by_its_verifier(t: Bench) {
    let op = |v: u8| Op::Create {
        dir: t.root,
        name: name("f"),
        how: CreateHow::Exclusive(Verifier([v; 8])),
    };
    let (f, a) = t.made(t.done(&root(), op(1)).await);
    t.same((a.size, a.kind), (0, FileKind::Regular), "an empty file");
    let before = t.attrs(t.root).await;
    let (again, _) = t.made(t.done(&root(), op(1)).await);
    t.same(again, f, "the retry finds it");
    t.same(t.attrs(t.root).await.change, before.change, "the retry changes nothing");
    t.refused(&root(), op(2), Status::Exists).await;
    t.file(&root(), t.root, "plain", 0o644).await;
    for v in [0, 1] {
        let how = CreateHow::Exclusive(Verifier([v; 8]));
        let op = Op::Create { dir: t.root, name: name("plain"), how };
        t.refused(&root(), op, Status::Exists).await;
    }
}

async fn names_are_bytes(t: Bench) {
    let long = vec![b'n'; 255];
    let names: [&[u8]; 8] = [
        b"\xff\xfe\x80",
        b"a\nb",
        b" ",
        b"...",
        "\u{e4}".as_bytes(),
        "a\u{308}".as_bytes(),
        b"A",
        &long,
    ];
    for n in names {
        let op = Op::Create { dir: t.root, name: name(n), how: how(0o644) };
        let (obj, _) = t.made(t.done(&root(), op).await);
        let found = t.done(&root(), Op::Lookup { dir: t.root, name: name(n) }).await;
        let same = matches!(found, Reply::Found { obj: o, .. } if o == obj);
        t.claim(same, format_args!("{n:?} is found"));
    }
    t.same(t.find(t.root, "a").await, None, "case counts");
    for n in names {
        t.done(&root(), Op::Remove { dir: t.root, name: name(n) }).await;
        let op = Op::Lookup { dir: t.root, name: name(n) };
        t.refused(&root(), op, Status::NotFound).await;
    }
}

async fn dot_names_are_looked_up_and_never_made_or_removed(t: Bench) {
    let d = t.open_dir("d").await;
    let e = t.dir(&root(), d, "e", 0o755).await;
    let f = t.file(&root(), d, "f", 0o644).await;
    t.same(t.find(e, ".").await, Some(e), "`.`");
    t.same(t.find(e, "..").await, Some(d), "`..`");
    t.same(t.find(d, "..").await, Some(t.root), "`..` below the root");
    for dots in [".", ".."] {
        let n = name(dots);
        let (ex, inv) = (Status::Exists, Status::Invalid);
        t.refused(&root(), Op::Create { dir: d, name: n.clone(), how: how(0) }, ex).await;
        t.refused(&root(), Op::MakeDir { dir: d, name: n.clone(), set: mode(0) }, ex).await;
        t.refused(&root(), Op::Link { obj: f, dir: d, name: n.clone() }, ex).await;
        t.refused(&root(), Op::Remove { dir: d, name: n.clone() }, inv).await;
        t.refused(&root(), Op::RemoveDir { dir: e, name: n }, inv).await;
        t.refused(&root(), rename_op((d, dots), (d, "x")), inv).await;
        t.refused(&root(), rename_op((d, "f"), (d, dots)), inv).await;
    }
}

async fn remove_and_remove_dir_keep_to_their_kinds(t: Bench) {
    t.open_dir("d").await;
    t.file(&root(), t.root, "f", 0o644).await;
    let r = t.root;
    t.refused(&root(), Op::Remove { dir: r, name: name("d") }, Status::IsDirectory).await;
    t.refused(&root(), Op::RemoveDir { dir: r, name: name("f") }, Status::NotDirectory).await;
    t.refused(&root(), Op::Remove { dir: r, name: name("x") }, Status::NotFound).await;
    t.refused(&root(), Op::RemoveDir { dir: r, name: name("x") }, Status::NotFound).await;
    t.remove(&root(), r, "f").await;
    t.done(&root(), Op::RemoveDir { dir: r, name: name("d") }).await;
    t.same((t.find(r, "f").await, t.find(r, "d").await), (None, None), "both are gone");
}

async fn a_directory_with_anything_in_it_stays(t: Bench) {
    let d = t.open_dir("d").await;
    t.file(&root(), d, "f", 0o644).await;
    let op = || Op::RemoveDir { dir: t.root, name: name("d") };
    t.refused(&root(), op(), Status::NotEmpty).await;
    t.open_dir("other").await;
    t.refused(&root(), rename_op((t.root, "other"), (t.root, "d")), Status::NotEmpty).await;
    t.remove(&root(), d, "f").await;
    t.done(&root(), op()).await;
}

async fn links_share_one_file_and_count(t: Bench) {
    let d = t.open_dir("d").await;
    let f = t.file(&root(), t.root, "f", 0o644).await;
    for i in 0..20u32 {
        t.link(&root(), f, d, &format!("l{i}")).await;
        t.same(t.attrs(f).await.links, i + 2, "links");
    }
    t.same(t.find(d, "l7").await, Some(f), "a link is the file");
    t.write(&root(), f, 0, b"shared").await;
    t.remove(&root(), t.root, "f").await;
    for i in 0..20u32 {
        t.same(t.attrs(f).await.links, 20 - i, "links");
        t.same(t.read(f, 0, 10).await, (b"shared".to_vec(), true), "data");
        t.remove(&root(), d, &format!("l{i}")).await;
    }
    t.refused(&root(), Op::GetAttr { obj: f }, Status::Stale).await;
}

async fn links_are_refused_where_they_make_no_sense(t: Bench) {
    let d = t.open_dir("d").await;
    let f = t.file(&root(), t.root, "f", 0o644).await;
    let link = |obj, dir, n| Op::Link { obj, dir, name: name(n) };
    t.refused(&root(), link(d, t.root, "l"), Status::NotOwner).await;
    t.refused(&root(), link(f, t.root, "f"), Status::Exists).await;
    t.refused(&root(), link(f, t.root, "d"), Status::Exists).await;
    t.refused(&bob(), link(f, t.root, "l"), Status::AccessDenied).await;
    t.done(&bob(), link(f, d, "l")).await;
    let target = LinkTarget::new(bytes::Bytes::from_static(b"f"));
    let Ok(target) = target else { panic!("a target of the tests") };
    let op = Op::Symlink { dir: d, name: name("s"), target, set: mode(0o777) };
    let s = t.made(t.done(&root(), op).await).0;
    t.done(&root(), link(s, d, "s2")).await;
    t.same(t.attrs(s).await.links, 2, "a symbolic link may have two names");
}

async fn links_stop_at_the_maximum(t: Bench) {
    let d = t.open_dir("d").await;
    let f = t.file(&root(), t.root, "f", 0o644).await;
    for i in 1..crate::LINKS_MAX {
        t.link(&root(), f, d, &i.to_string()).await;
    }
    t.same(t.attrs(f).await.links, crate::LINKS_MAX, "links");
    let op = || Op::Link { obj: f, dir: t.root, name: name("one-too-many") };
    t.refused(&root(), op(), Status::TooManyLinks).await;
    t.remove(&root(), d, "1").await;
    t.done(&root(), op()).await;
}

async fn rename_moves_and_replaces(t: Bench) {
    let (a, b) = (t.open_dir("a").await, t.open_dir("b").await);
    let f = t.file(&root(), a, "f", 0o644).await;
    let g = t.file(&root(), b, "g", 0o644).await;
    t.rename(&root(), (a, "f"), (a, "f2")).await;
    t.same((t.find(a, "f").await, t.find(a, "f2").await), (None, Some(f)), "in place");
    t.rename(&root(), (a, "f2"), (b, "f3")).await;
    t.same((t.find(a, "f2").await, t.find(b, "f3").await), (None, Some(f)), "across");
    t.rename(&root(), (b, "f3"), (b, "g")).await;
    t.same((t.find(b, "f3").await, t.find(b, "g").await), (None, Some(f)), "over another");
    t.refused(&root(), Op::GetAttr { obj: g }, Status::Stale).await;
    t.refused(&root(), rename_op((b, "nope"), (a, "x")), Status::NotFound).await;
    let d = t.dir(&root(), a, "d", 0o755).await;
    let e = t.dir(&root(), b, "e", 0o755).await;
    t.rename(&root(), (a, "d"), (b, "e")).await;
    t.same(t.find(b, "e").await, Some(d), "a directory over an empty one");
    t.refused(&root(), Op::GetAttr { obj: e }, Status::Stale).await;
    t.rename(&root(), (b, "e"), (b, "e")).await;
    t.same(t.find(b, "e").await, Some(d), "onto itself");
}

async fn rename_of_two_links_of_one_file_does_nothing(t: Bench) {
    let d = t.open_dir("d").await;
    let f = t.file(&root(), t.root, "f", 0o644).await;
    t.link(&root(), f, d, "g").await;
    let before = (t.attrs(f).await, t.attrs(t.root).await.change);
    t.rename(&root(), (t.root, "f"), (d, "g")).await;
    let after = (t.attrs(f).await, t.attrs(t.root).await.change);
    t.same(after, before, "nothing changed");
    t.same((t.find(t.root, "f").await, t.find(d, "g").await), (Some(f), Some(f)), "both stay");
}

async fn rename_keeps_to_the_kinds(t: Bench) {
    t.open_dir("d").await;
    t.file(&root(), t.root, "f", 0o644).await;
    let (d, f) = ((t.root, "d"), (t.root, "f"));
    t.refused(&root(), rename_op(f, d), Status::IsDirectory).await;
    t.refused(&root(), rename_op(d, f), Status::NotDirectory).await;
    t.claim(t.find(t.root, "d").await.is_some(), "the directory stays");
    t.claim(t.find(t.root, "f").await.is_some(), "the file stays");
}

async fn a_directory_does_not_move_below_itself(t: Bench) {
    let a = t.open_dir("a").await;
    let b = t.dir(&root(), a, "b", 0o755).await;
    let c = t.dir(&root(), b, "c", 0o755).await;
    for dir in [a, b, c] {
        t.refused(&root(), rename_op((t.root, "a"), (dir, "x")), Status::Invalid).await;
    }
    t.refused(&root(), rename_op((b, "c"), (t.root, "a")), Status::NotEmpty).await;
    t.same(t.find(c, "..").await, Some(b), "all is as it was");
}

async fn a_moved_directory_has_a_new_parent(t: Bench) {
    let (a, b) = (t.open_dir("a").await, t.open_dir("b").await);
    let d = t.dir(&root(), a, "d", 0o755).await;
    t.same(t.find(d, "..").await, Some(a), "before");
    t.rename(&root(), (a, "d"), (b, "d")).await;
    t.same(t.find(d, "..").await, Some(b), "after");
    t.rename(&root(), (t.root, "a"), (d, "a")).await;
    t.same(t.find(a, "..").await, Some(d), "below a moved one");
}

async fn directory_link_counts_count_subdirectories(t: Bench) {
    let links = async |dir: ObjectRef| t.attrs(dir).await.links;
    let (a, b) = (t.open_dir("a").await, t.open_dir("b").await);
    t.same((links(t.root).await, links(a).await), (4, 2), "two in the root");
    let d = t.dir(&root(), a, "d", 0o755).await;
    t.file(&root(), a, "f", 0o644).await;
    t.same((links(a).await, links(d).await), (3, 2), "one in a, files do not count");
    t.rename(&root(), (a, "d"), (b, "d")).await;
    t.same((links(a).await, links(b).await), (2, 3), "moved");
    t.dir(&root(), a, "e", 0o755).await;
    t.rename(&root(), (a, "e"), (b, "d")).await;
    t.same((links(a).await, links(b).await), (2, 3), "moved over an empty one");
    t.dir(&root(), b, "g", 0o755).await;
    t.rename(&root(), (b, "g"), (b, "d")).await;
    t.same(links(b).await, 3, "over an empty one in place");
    t.done(&root(), Op::RemoveDir { dir: b, name: name("d") }).await;
    t.same((links(b).await, links(t.root).await), (2, 4), "removed");
}

async fn replies_carry_the_directory_before_and_after(t: Bench) {
    let (a, b) = (t.open_dir("a").await, t.open_dir("b").await);
    let mut last = t.attrs(a).await;
    let ops = [
        Op::Create { dir: a, name: name("f"), how: how(0o644) },
        Op::MakeDir { dir: a, name: name("d"), set: mode(0o755) },
        Op::Remove { dir: a, name: name("f") },
        Op::RemoveDir { dir: a, name: name("d") },
    ];
    for op in ops {
        let text = format!("{op:?}");
        let (before, after) = match t.done(&root(), op).await {
            Reply::Made { dir_before, dir_after, .. } => (dir_before, dir_after),
            Reply::Removed { dir_before, dir_after } => (dir_before, dir_after),
            other => panic!("{text} answered {other:?}"),
        };
        t.same(before, last.as_before(), format_args!("before {text}"));
        t.claim(after.change > before.change, format_args!("the counter moved in {text}"));
        last = t.attrs(a).await;
        t.same(after, last.clone(), format_args!("after {text}"));
    }
    t.file(&root(), a, "f", 0o644).await;
    let (was_a, was_b) = (t.attrs(a).await.as_before(), t.attrs(b).await.as_before());
    let reply = t.done(&root(), rename_op((a, "f"), (b, "f"))).await;
    let Reply::Renamed { from_before, from_after, to_before, to_after } = reply else {
        panic!("rename answered {reply:?}");
    };
    t.same((from_before, to_before), (was_a, was_b), "before the rename");
    t.same((from_after, to_after), (t.attrs(a).await, t.attrs(b).await), "after the rename");
    let found = t.done(&alice(), Op::Lookup { dir: b, name: name("f") }).await;
    let Reply::Found { dir, .. } = found else { panic!("lookup answered {found:?}") };
    t.same(dir, t.attrs(b).await, "lookup carries the directory");
}

async fn failed_operations_change_nothing(t: Bench) {
    let d = t.dir(&root(), t.root, "d", 0o755).await;
    let f = t.file(&root(), d, "f", 0o644).await;
    let e = t.dir(&root(), d, "e", 0o755).await;
    let before = (t.attrs(d).await, t.attrs(f).await, t.attrs(e).await);
    let ops = [
        Op::Create { dir: d, name: name("f"), how: how(0o644) },
        Op::Create { dir: d, name: name("g"), how: how(0o644) },
        Op::MakeDir { dir: d, name: name("e"), set: mode(0) },
        Op::Remove { dir: d, name: name("f") },
        Op::RemoveDir { dir: d, name: name("e") },
        rename_op((d, "f"), (d, "g")),
        rename_op((d, "f"), (d, "e")),
        Op::Link { obj: f, dir: d, name: name("l") },
        Op::SetAttr { obj: f, set: mode(0o777), guard: None },
        Op::SetAttr { obj: f, set: size(7), guard: None },
        super::write_op(f, 0, b"x"),
        Op::Punch { obj: f, offset: 0, count: 10 },
    ];
    for op in ops {
        let text = format!("{op:?}");
        match t.ask(&bob(), op).await {
            Ok(reply) => panic!("{text} answered {reply:?}"),
            Err(failure) => {
                let told = failure.attrs.is_none_or(|a| [&before.0, &before.1].contains(&&a));
                t.claim(told, format_args!("{text} tells the attributes"));
            }
        }
        let after = (t.attrs(d).await, t.attrs(f).await, t.attrs(e).await);
        t.same(after, before.clone(), format_args!("after {text}"));
    }
}

async fn handles_survive_renames(t: Bench) {
    let (a, b) = (t.open_dir("a").await, t.open_dir("b").await);
    let f = t.file(&root(), a, "f", 0o644).await;
    t.write(&root(), f, 0, b"one").await;
    for round in 0..10 {
        let (from, to) = if round % 2 == 0 { (a, b) } else { (b, a) };
        t.rename(&root(), (from, "f"), (to, "f")).await;
        t.write(&root(), f, 0, format!("{round:03}").as_bytes()).await;
        t.same(t.read(f, 0, 3).await.0, format!("{round:03}").into_bytes(), "through the handle");
        t.same(t.find(to, "f").await, Some(f), "and by name");
    }
}

async fn symbolic_links_keep_their_target(t: Bench) {
    let long = vec![b't'; 4096];
    let targets: [&[u8]; 6] = [b"a", b"../x/y", b"/abs", b"\xff\x01", &long[..60], &long];
    for (i, bytes) in targets.into_iter().enumerate() {
        let made = LinkTarget::new(bytes::Bytes::copy_from_slice(bytes));
        let Ok(target) = made else { panic!("a target of the tests") };
        let n = name(format!("l{i}"));
        let op = Op::Symlink { dir: t.root, name: n, target: target.clone(), set: mode(0o600) };
        let (obj, a) = t.made(t.done(&root(), op.clone()).await);
        t.same((a.kind, a.mode), (FileKind::Symlink, 0o777), "a link");
        t.same(a.size, bytes.len() as u64, "its size is the target's length");
        match t.done(&bob(), Op::ReadLink { obj }).await {
            Reply::LinkTarget { target: got, .. } => t.same(got, target, "target"),
            other => panic!("readlink answered {other:?}"),
        }
        t.refused(&root(), op, Status::Exists).await;
    }
    t.remove(&root(), t.root, "l0").await;
    let op = Op::RemoveDir { dir: t.root, name: name("l1") };
    t.refused(&root(), op, Status::NotDirectory).await;
}

async fn deep_paths_work(t: Bench) {
    let mut at = t.root;
    let mut path = Vec::new();
    for _ in 0..100 {
        path.push(at);
        at = t.dir(&root(), at, "d", 0o755).await;
    }
    let f = t.file(&root(), at, "f", 0o644).await;
    t.write(&root(), f, 0, b"deep").await;
    while let Some(parent) = path.pop() {
        t.same(t.find(at, "..").await, Some(parent), "the way up");
        at = parent;
    }
    let target = t.find(at, "d").await;
    let Some(top) = target else { panic!("the way down") };
    t.refused(&root(), rename_op((t.root, "d"), (top, "x")), Status::Invalid).await;
}

async fn a_name_used_again_is_another_file(t: Bench) {
    let mut seen = Vec::new();
    for round in 0..50 {
        let f = t.file(&root(), t.root, "f", 0o644).await;
        t.claim(!seen.contains(&f), format_args!("round {round}: a new reference"));
        t.same(t.attrs(f).await.size, 0, "empty");
        t.write(&root(), f, 0, b"old data").await;
        for old in &seen {
            t.refused(&root(), Op::GetAttr { obj: *old }, Status::Stale).await;
        }
        seen.push(f);
        t.remove(&root(), t.root, "f").await;
    }
}
