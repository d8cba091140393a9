//! Claims about who may do what.

use cairn_op::{
    AccessMask, CreateHow, Credential, ListLimits, ObjectRef, Op, ReadOnly, Reply, SetAttrs,
    SetTime, Status, WithFiles, XattrHow,
};
use cairn_units::{Cookie, Gid, Uid, WallTime};

use super::{
    ALICE, BOB, Bench, STAFF, alice, bob, context, group, mode, name, owner, rename_op, root, size,
    user, write_op,
};

super::case_list!(
    mode_bits_decide_for_owner_group_and_others,
    the_superuser_may_all_but_execute_what_nobody_may,
    the_owner_reads_and_writes_through_an_open_descriptor,
    programs_can_be_read_by_who_may_execute_them,
    directories_need_search_for_lookups_and_write_for_changes,
    listing_needs_read,
    existence_is_told_before_permission,
    sticky_directories_protect_entries,
    sticky_directories_protect_rename_targets,
    set_gid_directories_pass_their_group_on,
    only_the_owner_changes_the_mode,
    only_the_superuser_gives_files_away,
    the_owner_changes_to_own_groups_only,
    chown_clears_set_id_bits,
    writes_by_users_clear_set_id_bits,
    set_gid_is_only_for_members,
    truncation_needs_write_permission,
    explicit_times_need_the_owner,
    now_needs_write_permission,
    secondary_groups_count,
    moving_a_directory_needs_to_write_it,
    read_only_exports_refuse_changes,
    creating_needs_a_writable_directory,
);

const ALL_RIGHTS: AccessMask = AccessMask(0x3f);

async fn granted(t: &Bench, who: &Credential, obj: ObjectRef) -> u32 {
    match t.done(who, Op::Access { obj, want: ALL_RIGHTS }).await {
        Reply::Access { granted, .. } => granted.0,
        other => panic!("access answered {other:?}"),
    }
}

/// What ACCESS grants for `rwx` bits on a file.
fn file_rights(bits: u32) -> u32 {
    let mut mask = 0;
    if bits & 4 != 0 {
        mask |= AccessMask::READ;
    }
    if bits & 2 != 0 {
        mask |= AccessMask::MODIFY | AccessMask::EXTEND;
    }
    if bits & 1 != 0 {
        mask |= AccessMask::EXECUTE;
    }
    mask
}

/// What ACCESS grants for `rwx` bits on a directory.
fn dir_rights(bits: u32) -> u32 {
    let mut mask = 0;
    if bits & 4 != 0 {
        mask |= AccessMask::READ;
    }
    if bits & 2 != 0 {
        mask |= AccessMask::MODIFY | AccessMask::EXTEND | AccessMask::DELETE;
    }
    if bits & 1 != 0 {
        mask |= AccessMask::LOOKUP;
    }
    mask
}

async fn mode_bits_decide_for_owner_group_and_others(t: Bench) {
    let dir = t.open_dir("d").await;
    let f = t.file(&root(), dir, "f", 0o644).await;
    let d = t.dir(&root(), dir, "sub", 0o755).await;
    let whose = SetAttrs { gid: Some(Gid::new(STAFF)), ..owner(ALICE) };
    t.set(&root(), f, whose).await;
    t.set(&root(), d, whose).await;
    let member = user(BOB, 200, &[7, STAFF]);
    let primary = user(1010, STAFF, &[]);
    for bits in 0..8u32 {
        // The class that fits first decides, even when a later one would give more.
        for (shift, who) in [(6, &alice()), (3, &member), (3, &primary), (0, &bob())] {
            let m = (bits << shift) | (!(7 << shift) & 0o777 & (0o777 * u32::from(bits == 0)));
            t.set(&root(), f, mode(m)).await;
            t.set(&root(), d, mode(m)).await;
            let of = format!("mode {m:o} for {who:?}");
            t.same(granted(&t, who, f).await, file_rights(bits), format_args!("file {of}"));
            t.same(granted(&t, who, d).await, dir_rights(bits), format_args!("directory {of}"));
            let op = Op::Lookup { dir: d, name: name("nope") };
            let want = if bits & 1 != 0 { Status::NotFound } else { Status::AccessDenied };
            t.refused(who, op, want).await;
        }
    }
    let some = AccessMask(AccessMask::READ | AccessMask::EXECUTE);
    t.set(&root(), f, mode(0o777)).await;
    match t.done(&bob(), Op::Access { obj: f, want: some }).await {
        Reply::Access { granted, .. } => t.same(granted, some, "only what was asked"),
        other => panic!("access answered {other:?}"),
    }
}

async fn the_superuser_may_all_but_execute_what_nobody_may(t: Bench) {
    let f = t.file(&alice(), t.open_dir("d").await, "f", 0).await;
    t.same(granted(&t, &root(), f).await, file_rights(6), "mode 0");
    t.write(&root(), f, 0, b"x").await;
    t.set(&root(), f, mode(0o001)).await;
    t.same(granted(&t, &root(), f).await, file_rights(7), "mode 1");
    let d = t.dir(&root(), t.root, "closed", 0).await;
    t.same(granted(&t, &root(), d).await, dir_rights(7), "a directory of mode 0");
    t.file(&root(), d, "x", 0).await;
}

async fn the_owner_reads_and_writes_through_an_open_descriptor(t: Bench) {
    let f = t.file(&alice(), t.open_dir("d").await, "f", 0o444).await;
    t.write(&alice(), f, 0, b"mine").await;
    t.set(&alice(), f, mode(0)).await;
    t.write(&alice(), f, 4, b" all").await;
    t.done(&alice(), Op::Read { obj: f, offset: 0, count: 9 }).await;
    t.set(&alice(), f, size(3)).await;
    t.same(granted(&t, &alice(), f).await, 0, "ACCESS tells the mode all the same");
    t.refused(&bob(), Op::Read { obj: f, offset: 0, count: 9 }, Status::AccessDenied).await;
    t.refused(&bob(), write_op(f, 0, b"x"), Status::AccessDenied).await;
}

async fn programs_can_be_read_by_who_may_execute_them(t: Bench) {
    let f = t.file(&alice(), t.open_dir("d").await, "f", 0o711).await;
    t.done(&bob(), Op::Read { obj: f, offset: 0, count: 9 }).await;
    t.refused(&bob(), write_op(f, 0, b"x"), Status::AccessDenied).await;
    t.same(granted(&t, &bob(), f).await, AccessMask::EXECUTE, "execute only");
}

async fn directories_need_search_for_lookups_and_write_for_changes(t: Bench) {
    let d = t.dir(&root(), t.root, "d", 0o777).await;
    t.file(&alice(), d, "f", 0o644).await;
    t.dir(&alice(), d, "e", 0o755).await;
    let ad = Status::AccessDenied;
    for bits in [0o776, 0o774, 0o775, 0o771] {
        t.set(&root(), d, mode(bits)).await;
        let lookup = Op::Lookup { dir: d, name: name("f") };
        if bits & 1 != 0 {
            t.done(&bob(), lookup).await;
        } else {
            t.refused(&bob(), lookup, ad).await;
            t.refused(&bob(), Op::Lookup { dir: d, name: name(".") }, ad).await;
            t.refused(&bob(), Op::Lookup { dir: d, name: name("..") }, ad).await;
        }
        let how = CreateHow::Unchecked(mode(0o644));
        let set = mode(0o755);
        t.refused(&bob(), Op::Create { dir: d, name: name("n"), how }, ad).await;
        t.refused(&bob(), Op::MakeDir { dir: d, name: name("n"), set }, ad).await;
        t.refused(&bob(), Op::Remove { dir: d, name: name("f") }, ad).await;
        t.refused(&bob(), Op::RemoveDir { dir: d, name: name("e") }, ad).await;
        t.refused(&bob(), rename_op((d, "f"), (d, "g")), ad).await;
    }
    t.set(&root(), d, mode(0o773)).await;
    let how = CreateHow::Guarded(mode(0o644));
    t.done(&bob(), Op::Create { dir: d, name: name("n"), how }).await;
    t.remove(&bob(), d, "f").await;
    t.done(&bob(), Op::RemoveDir { dir: d, name: name("e") }).await;
}

async fn listing_needs_read(t: Bench) {
    let limits =
        ListLimits { entries_max: 9, bytes_max: 9999, entry_bytes: 24, with_files: WithFiles::No };
    let d = t.dir(&alice(), t.open_dir("o").await, "d", 0o733).await;
    let op = Op::ReadDir { dir: d, cookie: Cookie::new(0), limits };
    t.refused(&bob(), op.clone(), Status::AccessDenied).await;
    t.done(&alice(), op.clone()).await;
    t.set(&alice(), d, mode(0o344)).await;
    t.done(&bob(), op.clone()).await;
    t.refused(&alice(), op, Status::AccessDenied).await;
}

async fn existence_is_told_before_permission(t: Bench) {
    t.file(&root(), t.root, "f", 0o644).await;
    let d = t.root;
    let set = mode(0o755);
    t.refused(&bob(), Op::MakeDir { dir: d, name: name("f"), set }, Status::Exists).await;
    let how = CreateHow::Guarded(set);
    t.refused(&bob(), Op::Create { dir: d, name: name("f"), how }, Status::Exists).await;
    t.refused(&bob(), Op::Remove { dir: d, name: name("x") }, Status::NotFound).await;
    t.refused(&bob(), Op::RemoveDir { dir: d, name: name("x") }, Status::NotFound).await;
    t.refused(&bob(), rename_op((d, "x"), (d, "y")), Status::NotFound).await;
    t.refused(&bob(), Op::Remove { dir: d, name: name("f") }, Status::AccessDenied).await;
}

async fn sticky_directories_protect_entries(t: Bench) {
    let d = t.dir(&root(), t.root, "tmp", 0o1777).await;
    t.file(&alice(), d, "f", 0o666).await;
    t.dir(&alice(), d, "e", 0o777).await;
    let no = Status::NotOwner;
    t.refused(&bob(), Op::Remove { dir: d, name: name("f") }, no).await;
    t.refused(&bob(), Op::RemoveDir { dir: d, name: name("e") }, no).await;
    t.refused(&bob(), rename_op((d, "f"), (d, "g")), no).await;
    t.rename(&alice(), (d, "f"), (d, "g")).await;
    t.remove(&alice(), d, "g").await;
    t.file(&alice(), d, "h", 0o600).await;
    t.remove(&root(), d, "h").await;
    t.set(&root(), d, owner(BOB)).await;
    t.done(&bob(), Op::RemoveDir { dir: d, name: name("e") }).await;
}

async fn sticky_directories_protect_rename_targets(t: Bench) {
    let d = t.dir(&root(), t.root, "tmp", 0o1777).await;
    t.file(&alice(), d, "hers", 0o666).await;
    t.file(&bob(), d, "his", 0o666).await;
    t.refused(&bob(), rename_op((d, "his"), (d, "hers")), Status::NotOwner).await;
    let o = t.open_dir("o").await;
    t.file(&bob(), o, "other", 0o666).await;
    t.refused(&bob(), rename_op((o, "other"), (d, "hers")), Status::NotOwner).await;
    t.rename(&root(), (o, "other"), (d, "hers")).await;
}

async fn set_gid_directories_pass_their_group_on(t: Bench) {
    let d = t.dir(&root(), t.root, "team", 0o777).await;
    t.set(&root(), d, group(STAFF)).await;
    t.set(&root(), d, mode(0o2777)).await;
    let f = t.file(&alice(), d, "f", 0o644).await;
    t.same(t.attrs(f).await.gid.get(), STAFF, "a file's group");
    let e = t.dir(&alice(), d, "e", 0o755).await;
    let a = t.attrs(e).await;
    t.same((a.gid.get(), a.mode), (STAFF, 0o2755), "a directory's group and bit");
    t.set(&root(), d, mode(0o777)).await;
    let g = t.file(&alice(), d, "g", 0o644).await;
    t.same(t.attrs(g).await.gid.get(), 100, "without the bit the caller's group");
}

async fn only_the_owner_changes_the_mode(t: Bench) {
    let f = t.file(&alice(), t.open_dir("d").await, "f", 0o666).await;
    let op = Op::SetAttr { obj: f, set: mode(0o777), guard: None };
    t.refused(&bob(), op, Status::NotOwner).await;
    t.same(t.set(&alice(), f, mode(0o4711)).await.mode, 0o4711, "by the owner");
    t.same(t.set(&root(), f, mode(0o600)).await.mode, 0o600, "by the superuser");
}

async fn only_the_superuser_gives_files_away(t: Bench) {
    let f = t.file(&alice(), t.open_dir("d").await, "f", 0o666).await;
    let give = |uid| Op::SetAttr { obj: f, set: owner(uid), guard: None };
    t.refused(&alice(), give(BOB), Status::NotOwner).await;
    t.refused(&bob(), give(BOB), Status::NotOwner).await;
    t.refused(&bob(), give(ALICE), Status::NotOwner).await;
    t.done(&alice(), give(ALICE)).await;
    t.same(t.set(&root(), f, owner(BOB)).await.uid, Uid::new(BOB), "by the superuser");
}

async fn the_owner_changes_to_own_groups_only(t: Bench) {
    let f = t.file(&alice(), t.open_dir("d").await, "f", 0o666).await;
    let op = |gid| Op::SetAttr { obj: f, set: group(gid), guard: None };
    t.refused(&alice(), op(STAFF), Status::NotOwner).await;
    t.refused(&user(BOB, STAFF, &[]), op(STAFF), Status::NotOwner).await;
    t.done(&alice(), op(100)).await;
    let member = user(ALICE, 100, &[STAFF]);
    t.same(t.set(&member, f, group(STAFF)).await.gid, Gid::new(STAFF), "a member's own file");
    t.done(&alice(), op(STAFF)).await;
    t.same(t.set(&root(), f, group(1)).await.gid, Gid::new(1), "by the superuser");
}

async fn chown_clears_set_id_bits(t: Bench) {
    let dir = t.open_dir("d").await;
    let f = t.file(&alice(), dir, "f", 0o755).await;
    let member = user(ALICE, 100, &[STAFF]);
    for (bits, left) in [(0o6755, 0o755), (0o4755, 0o755), (0o2745, 0o2745), (0o1777, 0o1777)] {
        t.set(&root(), f, mode(bits)).await;
        let a = t.set(&member, f, group(STAFF)).await;
        t.same(a.mode, left, format_args!("chgrp of {bits:o}"));
        t.set(&root(), f, mode(bits)).await;
        let a = t.set(&root(), f, owner(ALICE)).await;
        t.same(a.mode, left, format_args!("chown of {bits:o}"));
    }
    let d = t.dir(&root(), dir, "e", 0o6777).await;
    t.same(t.set(&root(), d, owner(ALICE)).await.mode, 0o6777, "a directory keeps them");
}

async fn writes_by_users_clear_set_id_bits(t: Bench) {
    let f = t.file(&alice(), t.open_dir("d").await, "f", 0o777).await;
    t.write(&alice(), f, 0, &[1; 9000]).await;
    let changes = || {
        [
            write_op(f, 0, b"x"),
            Op::SetAttr { obj: f, set: size(5000), guard: None },
            Op::Punch { obj: f, offset: 0, count: 100 },
        ]
    };
    for op in changes() {
        for (bits, left) in [(0o6777, 0o777), (0o2767, 0o2767), (0o1777, 0o1777)] {
            t.set(&root(), f, mode(bits)).await;
            t.done(&bob(), op.clone()).await;
            t.same(t.attrs(f).await.mode, left, format_args!("{bits:o} after {op:?}"));
        }
    }
    for op in changes() {
        t.set(&root(), f, mode(0o6777)).await;
        t.done(&root(), op).await;
        t.same(t.attrs(f).await.mode, 0o6777, "the superuser's writes keep them");
    }
}

async fn set_gid_is_only_for_members(t: Bench) {
    let dir = t.open_dir("d").await;
    let f = t.file(&alice(), dir, "f", 0o755).await;
    t.set(&root(), f, group(STAFF)).await;
    t.same(t.set(&alice(), f, mode(0o6755)).await.mode, 0o4755, "not in the group");
    let member = user(ALICE, 100, &[STAFF]);
    t.same(t.set(&member, f, mode(0o6755)).await.mode, 0o6755, "in the group");
}

async fn truncation_needs_write_permission(t: Bench) {
    let f = t.file(&alice(), t.open_dir("d").await, "f", 0o644).await;
    let op = Op::SetAttr { obj: f, set: size(10), guard: None };
    t.refused(&bob(), op.clone(), Status::AccessDenied).await;
    t.set(&alice(), f, mode(0o646)).await;
    t.done(&bob(), op).await;
    t.same(t.attrs(f).await.size, 10, "size");
    let both = SetAttrs { mode: Some(0o777), ..size(20) };
    let op = Op::SetAttr { obj: f, set: both, guard: None };
    t.refused(&bob(), op, Status::NotOwner).await;
    let a = t.attrs(f).await;
    t.same((a.size, a.mode), (10, 0o646), "all or nothing");
}

async fn explicit_times_need_the_owner(t: Bench) {
    let f = t.file(&alice(), t.open_dir("d").await, "f", 0o666).await;
    let at = SetTime::To(WallTime::new(77));
    for set in [
        SetAttrs { atime: at, ..SetAttrs::default() },
        SetAttrs { mtime: at, ..SetAttrs::default() },
        SetAttrs { mtime: at, atime: SetTime::Now, ..SetAttrs::default() },
    ] {
        let op = Op::SetAttr { obj: f, set, guard: None };
        t.refused(&bob(), op, Status::NotOwner).await;
        t.set(&alice(), f, set).await;
    }
    let a = t.set(&root(), f, SetAttrs { atime: at, mtime: at, ..SetAttrs::default() }).await;
    t.same((a.atime.get(), a.mtime.get()), (77, 77), "times");
}

async fn now_needs_write_permission(t: Bench) {
    let f = t.file(&alice(), t.open_dir("d").await, "f", 0o644).await;
    let set = SetAttrs { atime: SetTime::Now, mtime: SetTime::Now, ..SetAttrs::default() };
    let op = || Op::SetAttr { obj: f, set, guard: None };
    t.refused(&bob(), op(), Status::AccessDenied).await;
    t.set(&alice(), f, mode(0o446)).await;
    t.done(&bob(), op()).await;
    t.done(&alice(), op()).await;
}

async fn secondary_groups_count(t: Bench) {
    let f = t.file(&root(), t.open_dir("d").await, "f", 0o640).await;
    t.set(&root(), f, group(15)).await;
    let groups: Vec<u32> = (0..16).collect();
    t.same(granted(&t, &user(ALICE, 100, &groups), f).await, file_rights(4), "the last of 16");
    t.same(granted(&t, &user(ALICE, 100, &groups[..15]), f).await, 0, "without it");
}

async fn moving_a_directory_needs_to_write_it(t: Bench) {
    let (a, b) = (t.open_dir("a").await, t.open_dir("b").await);
    t.dir(&root(), a, "d", 0o755).await;
    t.refused(&bob(), rename_op((a, "d"), (b, "d")), Status::AccessDenied).await;
    t.rename(&bob(), (a, "d"), (a, "e")).await;
    t.dir(&root(), a, "open", 0o777).await;
    t.rename(&bob(), (a, "open"), (b, "open")).await;
}

async fn read_only_exports_refuse_changes(t: Bench) {
    let f = t.file(&root(), t.root, "f", 0o777).await;
    let ask = |op| t.node.file(context(root(), ReadOnly::Yes), op).wait();
    let (dir, set) = (t.root, mode(0o700));
    let value = vec![1];
    let ops = [
        Op::SetAttr { obj: f, set, guard: None },
        write_op(f, 0, b"x"),
        Op::Create { dir, name: name("g"), how: CreateHow::Unchecked(set) },
        Op::Create { dir, name: name("f"), how: CreateHow::Unchecked(set) },
        Op::MakeDir { dir, name: name("g"), set },
        Op::Remove { dir, name: name("f") },
        Op::RemoveDir { dir, name: name("f") },
        rename_op((dir, "f"), (dir, "g")),
        Op::Link { obj: f, dir, name: name("g") },
        Op::Punch { obj: f, offset: 0, count: 1 },
        Op::SetXattr { obj: f, name: name("user.k"), value, how: XattrHow::Either },
        Op::RemoveXattr { obj: f, name: name("user.k") },
    ];
    for op in ops {
        let text = format!("{op:?}");
        let got = ask(op).await.map_err(|failure| failure.status);
        t.same(got, Err(Status::ReadOnlyFs), text);
    }
    for op in [
        Op::GetAttr { obj: f },
        Op::Lookup { dir, name: name("f") },
        Op::Read { obj: f, offset: 0, count: 1 },
        Op::FsStat { obj: f },
        Op::Commit { obj: f, offset: 0, count: 0 },
    ] {
        let text = format!("{op:?}");
        t.claim(ask(op).await.is_ok(), text);
    }
    match ask(Op::Access { obj: f, want: ALL_RIGHTS }).await {
        Ok(Reply::Access { granted, .. }) => {
            t.same(granted.0, AccessMask::READ | AccessMask::EXECUTE, "rights");
        }
        other => panic!("access answered {other:?}"),
    }
}

async fn creating_needs_a_writable_directory(t: Bench) {
    let target = cairn_op::LinkTarget::new(bytes::Bytes::from_static(b"x"));
    let Ok(target) = target else { panic!("a target of the tests") };
    let (dir, set, ad) = (t.root, mode(0o644), Status::AccessDenied);
    let n = || name("new");
    t.refused(&bob(), Op::Symlink { dir, name: n(), target, set }, ad).await;
    let kind = cairn_op::NodeKind::Fifo;
    t.refused(&bob(), Op::MakeNode { dir, name: n(), kind, set }, ad).await;
    for how in [
        CreateHow::Unchecked(set),
        CreateHow::Guarded(set),
        CreateHow::Exclusive(cairn_op::Verifier([1; 8])),
    ] {
        t.refused(&bob(), Op::Create { dir, name: n(), how }, ad).await;
    }
    t.same(t.find(dir, "new").await, None, "nothing was made");
}
