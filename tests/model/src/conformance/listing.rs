//! Claims about listings.

use std::collections::BTreeSet;

use cairn_op::{Entry, ListLimits, ObjectRef, Op, Reply, Status, WithFiles};
use cairn_units::Cookie;

use super::{Bench, alice, name, root};

super::case_list!(
    an_empty_directory_lists_itself_and_its_parent,
    every_entry_is_listed_once_whatever_the_page_size,
    limits_are_kept,
    listings_with_files_match_getattr,
    entries_that_stay_are_listed_once_while_others_come_and_go,
    a_listing_resumes_at_a_removed_entry,
    cookies_are_stable,
    large_directories_are_listed_completely,
    files_are_not_listed,
);

const ALL: ListLimits = ListLimits {
    entries_max: u32::MAX,
    bytes_max: u32::MAX,
    entry_bytes: 24,
    with_files: WithFiles::No,
};

type Page = (Vec<Entry<ObjectRef>>, bool);

async fn page(t: &Bench, dir: ObjectRef, cookie: u64, limits: ListLimits) -> Page {
    let op = Op::ReadDir { dir, cookie: Cookie::new(cookie), limits };
    match t.done(&root(), op).await {
        Reply::Listing { entries, eof, .. } => (entries, eof),
        other => panic!("readdir answered {other:?}"),
    }
}

/// All entries, page by page.
async fn list(t: &Bench, dir: ObjectRef, entries_max: u32) -> Vec<Entry<ObjectRef>> {
    let (mut all, mut cookie) = (Vec::new(), 0);
    loop {
        let (entries, eof) = page(t, dir, cookie, ListLimits { entries_max, ..ALL }).await;
        t.claim(entries.len() as u64 <= u64::from(entries_max), "entries_max is kept");
        t.claim(eof || !entries.is_empty(), "a page that is not the last holds something");
        cookie = entries.last().map_or(cookie, |e| e.cookie.get());
        all.extend(entries);
        if eof {
            return all;
        }
    }
}

fn names(entries: &[Entry<ObjectRef>]) -> BTreeSet<Vec<u8>> {
    let names = entries.iter().map(|e| e.name.as_bytes().to_vec());
    names.filter(|n| n != b"." && n != b"..").collect()
}

async fn fill(t: &Bench, dir: ObjectRef, prefix: &str, count: u32) -> BTreeSet<Vec<u8>> {
    let mut want = BTreeSet::new();
    for i in 0..count {
        let n = format!("{prefix}{i}");
        t.file(&root(), dir, &n, 0o644).await;
        want.insert(n.into_bytes());
    }
    want
}

async fn an_empty_directory_lists_itself_and_its_parent(t: Bench) {
    let d = t.open_dir("d").await;
    for (dir, parent) in [(d, t.root), (t.root, t.root)] {
        let all = list(&t, dir, 10).await;
        let find = |n: &str| all.iter().find(|e| e.name == name(n)).map(|e| e.ino);
        t.same(find("."), Some(dir.ino), "`.`");
        t.same(find(".."), Some(parent.ino), "`..`");
    }
    t.same(list(&t, d, 10).await.len(), 2, "and nothing else");
}

async fn every_entry_is_listed_once_whatever_the_page_size(t: Bench) {
    let d = t.open_dir("d").await;
    let want = fill(&t, d, "name-", 100).await;
    for entries_max in [1, 2, 3, 7, 50, 101, 102, 1000] {
        let all = list(&t, d, entries_max).await;
        t.same(all.len(), 102, format_args!("entries in pages of {entries_max}"));
        t.claim(names(&all) == want, format_args!("names in pages of {entries_max}"));
        let cookies: BTreeSet<u64> = all.iter().map(|e| e.cookie.get()).collect();
        t.same(cookies.len(), 102, "cookies are unique");
        t.claim(!cookies.contains(&0), "0 is the start and no entry");
    }
}

async fn limits_are_kept(t: Bench) {
    let d = t.open_dir("d").await;
    fill(&t, d, "a-rather-long-name-", 50).await;
    for bytes_max in [28, 60, 100, 500, 1000, 100_000] {
        let (entries, eof) = page(&t, d, 0, ListLimits { bytes_max, ..ALL }).await;
        let cost = |e: &Entry<ObjectRef>| 24 + e.name.as_bytes().len().next_multiple_of(4);
        let bytes: usize = entries.iter().map(cost).sum();
        t.claim(bytes <= bytes_max as usize, format_args!("{bytes} bytes of {bytes_max}"));
        t.claim(bytes + 24 + 24 > bytes_max as usize || eof, "the page is filled");
        t.same(eof, entries.len() == 52, "the end is told");
    }
    let (entries, eof) = page(&t, d, 0, ListLimits { bytes_max: 27, ..ALL }).await;
    t.same((entries.len(), eof), (0, false), "not even one fits");
    let (entries, eof) = page(&t, d, 0, ListLimits { entries_max: 0, ..ALL }).await;
    t.same((entries.len(), eof), (0, false), "none wanted");
}

async fn listings_with_files_match_getattr(t: Bench) {
    let d = t.open_dir("d").await;
    fill(&t, d, "f", 20).await;
    t.dir(&root(), d, "sub", 0o700).await;
    let limits = ListLimits { with_files: WithFiles::Yes, ..ALL };
    let (entries, _) = page(&t, d, 0, limits).await;
    t.same(entries.len(), 23, "entries");
    for entry in entries {
        let Some((obj, attrs)) = entry.file else {
            t.claim(entry.name.is_dot_or_dotdot(), "every entry has its file");
            continue;
        };
        t.same(obj.ino, entry.ino, "inode number");
        if obj != d {
            t.same(attrs, t.attrs(obj).await, format_args!("attributes of {:?}", entry.name));
        }
    }
    let hidden = t.dir(&alice(), d, "hidden", 0o400).await;
    let op = Op::Create {
        dir: hidden,
        name: name("x"),
        how: cairn_op::CreateHow::Guarded(super::mode(0o600)),
    };
    t.done(&root(), op).await;
    let op = Op::ReadDir { dir: hidden, cookie: Cookie::new(0), limits };
    let Reply::Listing { entries, .. } = t.done(&alice(), op).await else {
        panic!("a readable directory is listed");
    };
    t.same(entries.len(), 3, "names are shown to who may read");
    t.claim(entries.iter().all(|e| e.file.is_none()), "files only to who may search");
}

async fn entries_that_stay_are_listed_once_while_others_come_and_go(t: Bench) {
    let d = t.open_dir("d").await;
    let stay = fill(&t, d, "stay-", 200).await;
    fill(&t, d, "go-", 100).await;
    let (mut all, mut cookie, mut round) = (Vec::new(), 0, 0);
    loop {
        let (entries, eof) = page(&t, d, cookie, ListLimits { entries_max: 13, ..ALL }).await;
        cookie = entries.last().map_or(cookie, |e| e.cookie.get());
        all.extend(entries);
        if eof {
            break;
        }
        if round < 100 {
            t.remove(&root(), d, &format!("go-{round}")).await;
            t.file(&root(), d, &format!("come-{round}"), 0o644).await;
        }
        round += 1;
        t.claim(round < 1000, "the listing ends");
    }
    let mut seen = Vec::new();
    for entry in all.iter().filter(|e| e.name.as_bytes().starts_with(b"stay-")) {
        seen.push(entry.name.as_bytes().to_vec());
    }
    t.same(seen.len(), stay.len(), "entries that stayed");
    t.claim(seen.into_iter().collect::<BTreeSet<_>>() == stay, "each of them");
}

async fn a_listing_resumes_at_a_removed_entry(t: Bench) {
    let d = t.open_dir("d").await;
    fill(&t, d, "f", 60).await;
    let whole = list(&t, d, 1000).await;
    for at in [5usize, 20, 40, 61] {
        let entry = &whole[at];
        let (rest, _) = page(&t, d, entry.cookie.get(), ALL).await;
        let n = String::from_utf8_lossy(entry.name.as_bytes()).into_owned();
        t.remove(&root(), d, &n).await;
        let (again, eof) = page(&t, d, entry.cookie.get(), ALL).await;
        t.claim(eof, "the rest is complete");
        t.same(names(&again), names(&rest), format_args!("behind the removed {n}"));
    }
}

async fn cookies_are_stable(t: Bench) {
    let d = t.open_dir("d").await;
    fill(&t, d, "f", 40).await;
    let before = list(&t, d, 1000).await;
    fill(&t, d, "more", 40).await;
    let after = list(&t, d, 3).await;
    for entry in &before {
        let same = after.iter().any(|e| e.name == entry.name && e.cookie == entry.cookie);
        t.claim(same, format_args!("the cookie of {:?}", entry.name));
    }
}

async fn large_directories_are_listed_completely(t: Bench) {
    let d = t.open_dir("d").await;
    let mut want = fill(&t, d, "entry-number-", 3000).await;
    t.claim(names(&list(&t, d, 100).await) == want, "3000 entries");
    for i in (0..3000).step_by(3) {
        let n = format!("entry-number-{i}");
        t.remove(&root(), d, &n).await;
        want.remove(n.as_bytes());
    }
    t.claim(names(&list(&t, d, 64).await) == want, "2000 entries");
    for n in &want {
        let n = String::from_utf8_lossy(n).into_owned();
        t.claim(t.find(d, &n).await.is_some(), format_args!("{n} is found"));
        t.remove(&root(), d, &n).await;
    }
    t.same(list(&t, d, 10).await.len(), 2, "all removed");
    t.done(&root(), Op::RemoveDir { dir: t.root, name: name("d") }).await;
}

async fn files_are_not_listed(t: Bench) {
    let f = t.file(&root(), t.root, "f", 0o644).await;
    let op = Op::ReadDir { dir: f, cookie: Cookie::new(0), limits: ALL };
    t.refused(&root(), op, Status::NotDirectory).await;
}
