//! The reply cache: a call that must be done once is done once, though the client sends it again.
//!
//! One cache for all connections; the client is told apart by its address, not its port, so that
//! a reconnect finds its replies. The key holds transaction id, program, version, procedure and a
//! checksum of the first bytes of the arguments. A duplicate of a finished call gets the kept
//! reply; a duplicate of one in progress is parked and gets the reply when there is one; only
//! when too many are parked is one dropped, and the client will ask again.
//!
//! Bounds: entries and bytes per shard, oldest first out; entries expire. A call in progress is
//! never evicted (the connection limits bound their number).

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use cairn_sys::lock::{Guard, Mutex, Rank};
use cairn_sys::mutant;
use cairn_units::MonoTime;
use tokio::sync::oneshot;

use crate::config::Limits;

/// Bytes of arguments that go into the key's checksum.
pub(crate) const CHECKSUM_BYTES: usize = 256;
/// Replies longer than this are not kept: none of those that need it is.
const REPLY_BYTES_MAX: usize = 4096;
/// Duplicates of one call that wait for it.
const PARKED_MAX: usize = 8;
const SHARDS: usize = 16;

/// Identity of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) xid: u32,
    pub(crate) checksum: u32,
    pub(crate) procedure: u32,
    pub(crate) version: u32,
    pub(crate) program: u32,
    pub(crate) client: IpAddr,
}

#[derive(Debug)]
enum Entry {
    Running { parked: Vec<oneshot::Sender<Bytes>> },
    Done { reply: Bytes, since: MonoTime },
}

#[derive(Debug, Default)]
struct Shard {
    entries: BTreeMap<Key, Entry>,
    /// Finished calls, oldest first.
    order: VecDeque<(Key, MonoTime)>,
    bytes: usize,
}

/// What to do with a call.
pub(crate) enum Admission {
    /// Do it, and tell the ticket.
    New(Ticket),
    /// It was done: this is the reply.
    Replay(Bytes),
    /// It is being done: the reply will come (or, if it has none, an error).
    Parked(oneshot::Receiver<Bytes>),
    /// Too many of it wait already.
    Drop,
}

/// The cache.
#[derive(Debug)]
pub(crate) struct ReplayCache {
    shards: Vec<Mutex<Shard>>,
    entries_max: usize,
    bytes_max: usize,
    expiry_nanos: u64,
}

impl ReplayCache {
    pub(crate) fn new(limits: &Limits) -> Arc<Self> {
        Arc::new(Self {
            shards: (0..SHARDS).map(|_| Mutex::new(Rank::ReplyCache, Shard::default())).collect(),
            entries_max: (limits.replay_entries_max / SHARDS).max(1),
            bytes_max: (limits.replay_bytes_max / SHARDS).max(REPLY_BYTES_MAX),
            expiry_nanos: u64::try_from(limits.replay_expiry.as_nanos()).unwrap_or(u64::MAX),
        })
    }

    fn shard(&self, key: &Key) -> Guard<'_, Shard> {
        let index = (key.xid ^ key.checksum) as usize % SHARDS;
        self.shards[index].lock()
    }

    /// Looks a call up, and enters it if it is new.
    pub(crate) fn admit(self: &Arc<Self>, key: Key, now: MonoTime) -> Admission {
        let mut shard = self.shard(&key);
        self.expire(&mut shard, now);
        match shard.entries.get_mut(&key) {
            Some(Entry::Done { reply, .. }) => return Admission::Replay(reply.clone()),
            Some(Entry::Running { parked }) => {
                parked.retain(|sender| !sender.is_closed());
                if parked.len() >= PARKED_MAX {
                    return Admission::Drop;
                }
                let (sender, receiver) = oneshot::channel();
                parked.push(sender);
                return Admission::Parked(receiver);
            }
            None => {}
        }
        shard.entries.insert(key, Entry::Running { parked: Vec::new() });
        Admission::New(Ticket { cache: Some(self.clone()), key })
    }

    fn expire(&self, shard: &mut Shard, now: MonoTime) {
        let old = |since: MonoTime| now.since(since).is_some_and(|age| age > self.expiry_nanos);
        while let Some((key, since)) = shard.order.front().copied() {
            let over = shard.order.len() > self.entries_max || shard.bytes > self.bytes_max;
            if !over && !old(since) {
                break;
            }
            shard.order.pop_front();
            // The same key may have been entered anew since then.
            if let Some(Entry::Done { reply, since: entered }) = shard.entries.get(&key)
                && *entered == since
            {
                shard.bytes -= reply.len();
                shard.entries.remove(&key);
            }
        }
    }

    fn complete(&self, key: Key, reply: &[u8], now: MonoTime) {
        let reply = Bytes::copy_from_slice(reply);
        let mut shard = self.shard(&key);
        let parked = match shard.entries.remove(&key) {
            Some(Entry::Running { parked }) => parked,
            other => unreachable!("{key:?} has a ticket but is {other:?}"),
        };
        if reply.len() <= REPLY_BYTES_MAX && !mutant("reply-not-kept") {
            shard.bytes += reply.len();
            shard.order.push_back((key, now));
            shard.entries.insert(key, Entry::Done { reply: reply.clone(), since: now });
            self.expire(&mut shard, now);
        }
        drop(shard);
        for sender in parked {
            // A receiver that has gone away needs no reply.
            drop(sender.send(reply.clone()));
        }
    }

    #[cfg(test)]
    fn totals(&self) -> (usize, usize) {
        let shards = self.shards.iter().map(|s| s.lock());
        shards.fold((0, 0), |(n, b), s| (n + s.entries.len(), b + s.bytes))
    }
}

/// The right and duty to finish one call. Dropped without a reply (the call was refused before
/// anything was done), it takes the call out of the cache.
#[derive(Debug)]
pub(crate) struct Ticket {
    cache: Option<Arc<ReplayCache>>,
    key: Key,
}

impl Ticket {
    /// Keeps the reply (header included, record mark not) and gives it to who waits.
    pub(crate) fn complete(mut self, reply: &[u8], now: MonoTime) {
        if let Some(cache) = self.cache.take() {
            cache.complete(self.key, reply, now);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(cache) = self.cache.take() {
            cache.shard(&self.key).entries.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::time::Duration;
    use std::net::Ipv4Addr;

    fn cache(entries: usize, bytes: usize) -> Arc<ReplayCache> {
        ReplayCache::new(&Limits {
            replay_entries_max: entries,
            replay_bytes_max: bytes,
            replay_expiry: Duration::from_nanos(100),
            ..Limits::default()
        })
    }

    fn key(xid: u32) -> Key {
        Key {
            xid,
            checksum: 1,
            procedure: 8,
            version: 3,
            program: 100_003,
            client: IpAddr::V4(Ipv4Addr::LOCALHOST),
        }
    }

    fn at(nanos: u64) -> MonoTime {
        MonoTime::new(nanos)
    }

    fn ticket(admission: Admission) -> Ticket {
        match admission {
            Admission::New(ticket) => ticket,
            _ => panic!("not new"),
        }
    }

    #[test]
    fn a_duplicate_gets_the_kept_reply_until_it_expires() {
        let c = cache(1000, 1 << 20);
        ticket(c.admit(key(1), at(0))).complete(b"reply", at(10));
        assert!(matches!(c.admit(key(1), at(110)), Admission::Replay(r) if &r[..] == b"reply"));
        drop(ticket(c.admit(key(1), at(111))));
        assert_eq!(c.totals(), (0, 0));
    }

    #[test]
    fn other_arguments_or_another_client_are_another_call() {
        let c = cache(1000, 1 << 20);
        ticket(c.admit(key(1), at(0))).complete(b"reply", at(0));
        let other = Key { checksum: 2, ..key(1) };
        assert!(matches!(c.admit(other, at(0)), Admission::New(_)));
        let other = Key { client: IpAddr::V4(Ipv4Addr::BROADCAST), ..key(1) };
        assert!(matches!(c.admit(other, at(0)), Admission::New(_)));
    }

    #[test]
    fn duplicates_in_progress_are_parked_and_answered_up_to_a_bound() {
        let c = cache(1000, 1 << 20);
        let first = ticket(c.admit(key(1), at(0)));
        let mut parked: Vec<_> = (0..PARKED_MAX)
            .map(|_| match c.admit(key(1), at(0)) {
                Admission::Parked(receiver) => receiver,
                _ => panic!("not parked"),
            })
            .collect();
        assert!(matches!(c.admit(key(1), at(0)), Admission::Drop));
        // One of them goes away: there is room again.
        drop(parked.pop());
        assert!(matches!(c.admit(key(1), at(0)), Admission::Parked(_)));
        first.complete(b"once", at(1));
        for mut receiver in parked {
            assert_eq!(&receiver.try_recv().unwrap()[..], b"once");
        }
    }

    #[test]
    fn a_refused_call_leaves_nothing_behind() {
        let c = cache(1000, 1 << 20);
        drop(ticket(c.admit(key(1), at(0))));
        assert!(matches!(c.admit(key(1), at(0)), Admission::New(_)));
    }

    #[test]
    fn entries_and_bytes_stay_bounded() {
        let c = cache(160, 1);
        for xid in 0..10_000 {
            ticket(c.admit(key(xid), at(5))).complete(&[0; 100], at(5));
        }
        let (entries, bytes) = c.totals();
        assert!(entries <= 160, "{entries}");
        assert!(bytes <= SHARDS * REPLY_BYTES_MAX, "{bytes}");
        assert!(matches!(c.admit(key(9_999), at(5)), Admission::Replay(_)));
    }
}
