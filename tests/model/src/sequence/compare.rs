//! Comparing answers, listings and whole trees.
//!
//! Layer: below `sequence`.

use std::collections::{BTreeMap, BTreeSet};

use cairn_cf::DModule;
use cairn_op::{
    Attrs, Before, Entry, FileKind, ListLimits, Name, ObjectRef, Op, OpCtx, OpResult, ReadOnly,
    Reply, WithFiles,
};
use cairn_units::{BLOCK_BYTES_U64, Cookie, WallTime};

use super::{Checked, Difference, Pair, Twins};
use crate::ModelNode;
use crate::conformance::context;

/// Times below were set explicitly by a step; the clock gives later ones.
pub(super) const EXPLICIT_MAX: WallTime = WallTime::new(1_000_000_000_000_000);

/// Files up to this size are compared whole, larger ones where the model has data.
const WHOLE_BYTES_MAX: u64 = 256 << 10;

fn differ<T>(what: &str, a: &dyn core::fmt::Debug, b: &dyn core::fmt::Debug) -> Checked<T> {
    Err(Difference::new(format!("{what}\n  model: {a:?}\n  other: {b:?}")))
}

fn same_time(a: WallTime, b: WallTime) -> bool {
    a == b || (a > EXPLICIT_MAX && b > EXPLICIT_MAX)
}

fn attrs(a: &Attrs, b: &Attrs) -> Checked<()> {
    let plain = |x: &Attrs| (x.kind, x.mode, x.links, x.uid, x.gid, x.device, x.fsid);
    let sized = a.kind != FileKind::Directory;
    if plain(a) != plain(b) || (sized && a.size != b.size) || !same_time(a.mtime, b.mtime) {
        return differ("attributes", a, b);
    }
    Ok(())
}

fn change(a: (&Before, &Attrs), b: (&Before, &Attrs)) -> Checked<()> {
    attrs(a.1, b.1)?;
    let sized = a.1.kind != FileKind::Directory;
    let moved = |x: (&Before, &Attrs)| x.1.change.cmp(&x.0.change);
    let same = !sized || a.0.size == b.0.size;
    if !same || moved(a) != moved(b) || !same_time(a.0.mtime, b.0.mtime) {
        return differ("attributes before and after", &a, &b);
    }
    Ok(())
}

/// Compares two answers to the same operation.
pub(super) fn results(
    twins: &mut Twins,
    a: &OpResult<ObjectRef>,
    b: &OpResult<ObjectRef>,
) -> Checked<()> {
    match (a, b) {
        (Ok(reply_a), Ok(reply_b)) => replies(twins, reply_a, reply_b),
        (Err(fa), Err(fb)) => {
            if fa.status != fb.status {
                return differ("statuses", fa, fb);
            }
            for (x, y) in [(&fa.attrs, &fb.attrs), (&fa.second, &fb.second)] {
                if let (Some(x), Some(y)) = (x, y) {
                    attrs(x, y)?;
                }
            }
            Ok(())
        }
        _ => differ("one failed", a, b),
    }
}

fn met(twins: &mut Twins, a: (&ObjectRef, &Attrs), b: (&ObjectRef, &Attrs)) -> Checked<()> {
    if b.0.ino != b.1.ino {
        return differ("an object and its attributes", b.0, b.1);
    }
    attrs(a.1, b.1)?;
    twins.meet(*a.0, *b.0)
}

fn replies(
    twins: &mut Twins,
    reply_a: &Reply<ObjectRef>,
    reply_b: &Reply<ObjectRef>,
) -> Checked<()> {
    match (reply_a, reply_b) {
        (Reply::Attrs(x), Reply::Attrs(y)) => attrs(x, y),
        (Reply::Changed { before: p, after: q }, Reply::Changed { before: r, after: s }) => {
            change((p, q), (r, s))
        }
        (Reply::Found { obj: o, attrs: p, dir: q }, Reply::Found { obj: r, attrs: s, dir: u }) => {
            attrs(q, u)?;
            met(twins, (o, p), (r, s))
        }
        (Reply::Access { granted: g, attrs: p }, Reply::Access { granted: h, attrs: q })
            if g == h =>
        {
            attrs(p, q)
        }
        (Reply::LinkTarget { target: g, attrs: p }, Reply::LinkTarget { target: h, attrs: q })
            if g == h =>
        {
            attrs(p, q)
        }
        (Reply::Read { data: d, eof: g, attrs: p }, Reply::Read { data: e, eof: h, attrs: q }) => {
            if g != h || d.to_vec() != e.to_vec() {
                return data_differ(&d.to_vec(), &e.to_vec(), *g, *h);
            }
            attrs(p, q)
        }
        (
            Reply::Written { count: c, before: p, after: q, .. },
            Reply::Written { count: d, before: r, after: s, .. },
        ) if c == d => change((p, q), (r, s)),
        (
            Reply::Made { obj: o, attrs: p, dir_before: q, dir_after: r },
            Reply::Made { obj: s, attrs: u, dir_before: v, dir_after: w },
        ) => {
            change((q, r), (v, w))?;
            met(twins, (o, p), (s, u))
        }
        (
            Reply::Removed { dir_before: p, dir_after: q },
            Reply::Removed { dir_before: r, dir_after: s },
        ) => change((p, q), (r, s)),
        (
            Reply::Renamed { from_before: p, from_after: q, to_before: r, to_after: s },
            Reply::Renamed { from_before: u, from_after: v, to_before: w, to_after: x },
        ) => {
            change((p, q), (u, v))?;
            change((r, s), (w, x))
        }
        (
            Reply::Linked { attrs: o, dir_before: p, dir_after: q },
            Reply::Linked { attrs: r, dir_before: s, dir_after: u },
        ) => {
            attrs(o, r)?;
            change((p, q), (s, u))
        }
        (Reply::FsStat { attrs: p, .. }, Reply::FsStat { attrs: q, .. }) => attrs(p, q),
        (
            Reply::Committed { before: p, after: q, .. },
            Reply::Committed { before: r, after: s, .. },
        ) => change((p, q), (r, s)),
        (Reply::Xattr { value: v }, Reply::Xattr { value: w }) if v == w => Ok(()),
        (Reply::XattrNames { names: v }, Reply::XattrNames { names: w }) => {
            let set = |names: &[Name]| names.iter().cloned().collect::<BTreeSet<_>>();
            if set(v) != set(w) || v.len() != w.len() {
                return differ("names of extended attributes", v, w);
            }
            Ok(())
        }
        _ => differ("replies", reply_a, reply_b),
    }
}

fn data_differ(a: &[u8], b: &[u8], eof_a: bool, eof_b: bool) -> Checked<()> {
    let at = a.iter().zip(b).position(|(x, y)| x != y).unwrap_or(a.len().min(b.len()));
    let around = |d: &[u8]| d.get(at..d.len().min(at + 16)).unwrap_or_default().to_vec();
    let what = format!("data, first at byte {at} of {} and {}", a.len(), b.len());
    differ(&what, &(around(a), eof_a), &(around(b), eof_b))
}

fn root_ctx() -> OpCtx {
    context(cairn_op::Credential::root(), ReadOnly::No)
}

type Listed = BTreeMap<Name, (ObjectRef, Attrs)>;

/// All entries but the dots, page by page; `None` when the object does not list.
async fn list(node: &dyn DModule, dir: ObjectRef, page: u32) -> Checked<Option<Listed>> {
    let (mut all, mut cookie) = (Listed::new(), Cookie::new(0));
    let limits = ListLimits {
        entries_max: page,
        bytes_max: 1 << 20,
        entry_bytes: 24,
        with_files: WithFiles::Yes,
    };
    loop {
        let got = node.file(root_ctx(), Op::ReadDir { dir, cookie, limits }).wait().await;
        let Ok(Reply::Listing { entries, eof, .. }) = got else { return Ok(None) };
        if entries.is_empty() && !eof {
            return Err(Difference::new("a page of a listing is empty, but not the last"));
        }
        for Entry { ino, cookie: at, name, file } in entries {
            cookie = at;
            let dots = name.is_dot_or_dotdot();
            let Some((obj, attrs)) = file else {
                if dots {
                    continue;
                }
                return Err(Difference::new(format!("entry {name:?} has no file")));
            };
            if obj.ino != ino {
                return Err(Difference::new(format!("entry {name:?}: {ino:?} but {obj:?}")));
            }
            if !dots && all.insert(name.clone(), (obj, attrs)).is_some() {
                return Err(Difference::new(format!("entry {name:?} is listed twice")));
            }
        }
        if eof {
            return Ok(Some(all));
        }
    }
}

/// Compares two listings of one directory, as sets.
pub(super) async fn listings(
    model: &ModelNode,
    b: &dyn DModule,
    dir: Pair,
    page: u32,
) -> Checked<()> {
    let (in_a, in_b) = (list(model, dir.a, page).await?, list(b, dir.b, page).await?);
    let names = |l: &Option<Listed>| l.as_ref().map(|l| l.keys().cloned().collect::<Vec<_>>());
    if names(&in_a) != names(&in_b) {
        return differ("listings", &names(&in_a), &names(&in_b));
    }
    Ok(())
}

/// Compares everything that can be reached from `root`.
pub(super) async fn trees(
    model: &ModelNode,
    b: &dyn DModule,
    root: Pair,
    twins: &mut Twins,
) -> Checked<()> {
    let mut seen = BTreeSet::new();
    let mut todo = vec![root];
    // No entry leads to the root, and it has extended attributes as well.
    if let Ok(Reply::Attrs(attrs)) = model.run(&root_ctx(), Op::GetAttr { obj: root.a }) {
        content(model, b, twins, root, &attrs).await?;
    }
    while let Some(dir) = todo.pop() {
        both(model, b, twins, |p| Op::GetAttr { obj: p }, dir).await?;
        let (in_a, in_b) = (list(model, dir.a, 17).await?, list(b, dir.b, 17).await?);
        let (Some(in_a), Some(in_b)) = (in_a, in_b) else {
            return Err(Difference::new(format!("{dir:?} cannot be listed")));
        };
        if !in_a.keys().eq(in_b.keys()) {
            let keys = |l: &Listed| l.keys().cloned().collect::<Vec<_>>();
            return differ("names in a directory", &keys(&in_a), &keys(&in_b));
        }
        for ((name, a), bb) in in_a.iter().zip(in_b.values()) {
            let place = |d: Difference| Difference::new(format!("at {name:?}: {}", d.what));
            met(twins, (&a.0, &a.1), (&bb.0, &bb.1)).map_err(place)?;
            let pair = Pair { a: a.0, b: bb.0 };
            if !seen.insert(pair.a) {
                continue;
            }
            if a.1.kind == FileKind::Directory {
                let dots = |dir| Op::Lookup { dir, name: crate::conformance::name("..") };
                both(model, b, twins, dots, pair).await.map_err(place)?;
                todo.push(pair);
            }
            content(model, b, twins, pair, &a.1).await.map_err(place)?;
        }
    }
    Ok(())
}

/// Compares the blocks of a file at these places.
pub(super) async fn blocks(
    model: &ModelNode,
    b: &dyn DModule,
    twins: &mut Twins,
    file: Pair,
    places: &BTreeSet<u64>,
) -> Checked<()> {
    for offset in places {
        both(model, b, twins, |obj| Op::Read { obj, offset: *offset, count: 4096 }, file).await?;
    }
    Ok(())
}

/// Asks both the same about one object.
async fn both(
    model: &ModelNode,
    b: &dyn DModule,
    twins: &mut Twins,
    op: impl Fn(ObjectRef) -> Op<ObjectRef>,
    pair: Pair,
) -> Checked<()> {
    let got_a = model.run(&root_ctx(), op(pair.a));
    let got_b = b.file(root_ctx(), op(pair.b)).wait().await;
    results(twins, &got_a, &got_b)
}

async fn content(
    model: &ModelNode,
    b: &dyn DModule,
    twins: &mut Twins,
    pair: Pair,
    a: &Attrs,
) -> Checked<()> {
    both(model, b, twins, |obj| Op::ListXattr { obj }, pair).await?;
    if let Ok(Reply::XattrNames { names }) = model.run(&root_ctx(), Op::ListXattr { obj: pair.a }) {
        for name in names {
            let get = |obj| Op::GetXattr { obj, name: name.clone() };
            both(model, b, twins, get, pair).await?;
        }
    }
    match a.kind {
        FileKind::Symlink => both(model, b, twins, |obj| Op::ReadLink { obj }, pair).await,
        FileKind::Regular => data(model, b, twins, pair, a.size).await,
        _ => Ok(()),
    }
}

async fn data(
    model: &ModelNode,
    b: &dyn DModule,
    twins: &mut Twins,
    pair: Pair,
    size: u64,
) -> Checked<()> {
    let mut ranges: Vec<(u64, u32)> = Vec::new();
    if size <= WHOLE_BYTES_MAX {
        let count = u32::try_from(size + 1).unwrap_or(u32::MAX);
        ranges.push((0, count));
    } else {
        // Where there is data, the holes around it, and the end.
        for fbn in model.allocated(&pair.a) {
            let at = fbn.offset().unwrap_or(0).saturating_sub(BLOCK_BYTES_U64);
            ranges.push((at, 12_288));
        }
        ranges.push((size / 2, 4096));
        ranges.push((size - 100, 200));
    }
    for (offset, count) in ranges {
        both(model, b, twins, |obj| Op::Read { obj, offset, count }, pair).await?;
    }
    Ok(())
}
