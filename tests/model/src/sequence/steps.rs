//! What the raw numbers of a step mean, given the objects known when it runs.
//!
//! Layer: below `sequence`.

use bytes::Bytes;
use cairn_op::{
    AccessMask, CreateHow, Credential, DeviceNo, FileKind, LinkTarget, Name, NodeKind, ObjectRef,
    Op, ReadOnly, Reply, SetAttrs, SetTime, Stability, Verifier, XattrHow,
};
use cairn_sys::Payload;
use cairn_units::{Gid, Uid, WallTime};

use super::{Event, Pair, Runner, Step};
use crate::conformance::{ALICE, BOB, STAFF, context, name, user};

/// What a step does.
pub(super) enum Meaning {
    Event(Event),
    Checkpoint,
    ListAll {
        dir: Pair,
        page: u32,
    },
    Op {
        who: Credential,
        /// For the model, for the other one.
        op: (Op<ObjectRef>, Op<ObjectRef>),
    },
}

/// Cuts numbers out of a step's value.
struct Dice(u64);

impl Dice {
    /// A number below `sides`.
    fn roll(&mut self, sides: u64) -> u64 {
        let out = self.0 % sides;
        self.0 = (self.0 / sides) ^ self.0.rotate_left(29);
        out
    }
    fn small(&mut self, sides: u32) -> u32 {
        u32::try_from(self.roll(u64::from(sides))).unwrap_or(0)
    }
}

fn who(raw: u8) -> Credential {
    match raw % 8 {
        0..=3 => Credential::root(),
        4 | 5 => user(ALICE, 100, &[]),
        6 => user(BOB, 200, &[STAFF]),
        _ => user(ALICE, 100, &[STAFF, 7]),
    }
}

fn step_name(raw: u8) -> Name {
    match raw % 64 {
        60 => name(vec![b'L'; 255]),
        61 => name(b"."),
        62 => name(b".."),
        63 => name(b"\xff\xfe"),
        n => name(format!("n{}", n % 10)),
    }
}

/// Offsets: mostly in the first blocks, some at the places where formats change.
fn offset(dice: &mut Dice) -> u64 {
    match dice.roll(12) {
        0 => 0,
        1 => dice.roll(200),
        2 => 4096 * dice.roll(8),
        3 => (1 << 20) + dice.roll(10_000),
        4 => (1 << 21) * 3 + dice.roll(9000),
        5 => match dice.roll(4) {
            0 => (1 << 32) - 3000,
            1 => (1 << 44) + 17,
            2 => (1 << 33) + 4096 * dice.roll(3),
            _ => (1 << 52) - 1,
        },
        _ => dice.roll(40_000),
    }
}

fn count(dice: &mut Dice) -> u64 {
    match dice.roll(6) {
        0 => dice.roll(64),
        1 => 4096,
        2 => dice.roll(30_000),
        _ => dice.roll(6000),
    }
}

fn data(dice: &mut Dice) -> Vec<u8> {
    let len = usize::try_from(count(dice)).unwrap_or(0);
    let mut x = dice.roll(u64::MAX) | 1;
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

fn mode(dice: &mut Dice) -> u32 {
    const MODES: [u32; 12] =
        [0o777, 0o755, 0o644, 0o666, 0o700, 0o600, 0o1777, 0o2775, 0o6755, 0o444, 0, 0o2745];
    MODES[usize::try_from(dice.roll(12)).unwrap_or(0)]
}

fn uid(dice: &mut Dice) -> Uid {
    Uid::new([0, ALICE, BOB, 77][usize::try_from(dice.roll(4)).unwrap_or(0)])
}

fn gid(dice: &mut Dice) -> Gid {
    Gid::new([0, 100, STAFF, 200][usize::try_from(dice.roll(4)).unwrap_or(0)])
}

fn time(dice: &mut Dice) -> SetTime {
    match dice.roll(4) {
        0 => SetTime::Now,
        1 => {
            let nanos = i64::try_from(dice.roll(1_000_000_000_000)).unwrap_or(0);
            SetTime::To(WallTime::new(nanos - 500))
        }
        _ => SetTime::Keep,
    }
}

fn set_attrs(dice: &mut Dice) -> SetAttrs {
    let mut set = SetAttrs::default();
    match dice.roll(8) {
        0 | 1 => set.mode = Some(mode(dice)),
        2 => set.uid = Some(uid(dice)),
        3 => set.gid = Some(gid(dice)),
        4 | 5 => set.size = Some(offset(dice)),
        6 => (set.atime, set.mtime) = (time(dice), time(dice)),
        _ => {
            set.mode = Some(mode(dice));
            set.gid = Some(gid(dice));
            set.mtime = time(dice);
        }
    }
    set
}

fn new_attrs(dice: &mut Dice) -> SetAttrs {
    let mut set = SetAttrs { mode: Some(mode(dice)), ..SetAttrs::default() };
    if dice.roll(8) == 0 {
        set.uid = Some(uid(dice));
        set.gid = Some(gid(dice));
    }
    if dice.roll(8) == 0 {
        set.mtime = time(dice);
    }
    if dice.roll(6) == 0 {
        set.size = Some(if dice.roll(2) == 0 { 0 } else { offset(dice) });
    }
    set
}

impl Runner {
    fn any(&self, raw: u16) -> Pair {
        self.objects[usize::from(raw) % self.objects.len()]
    }

    /// An object of this kind if the model knows one, and now and then any object at all.
    fn of_kind(&self, raw: u16, kind: FileKind) -> Pair {
        if raw.is_multiple_of(19) {
            return self.any(raw / 19);
        }
        let ctx = context(Credential::root(), ReadOnly::No);
        let fits = |pair: &&Pair| {
            let got = self.a.run(&ctx, Op::GetAttr { obj: pair.a });
            matches!(got, Ok(Reply::Attrs(attrs)) if attrs.kind == kind)
        };
        let all: Vec<Pair> = self.objects.iter().filter(fits).copied().collect();
        if all.is_empty() { self.any(raw) } else { all[usize::from(raw) % all.len()] }
    }

    pub(super) fn meaning(&self, step: &Step) -> Meaning {
        let mut dice = Dice(step.value);
        let dir = self.of_kind(step.first, FileKind::Directory);
        let to_dir = self.of_kind(step.second, FileKind::Directory);
        let file = self.of_kind(step.first, FileKind::Regular);
        let any = self.any(step.first);
        let (n, other) = (step_name(step.name), step_name(step.other));
        let one = |pair: Pair, op: &dyn Fn(ObjectRef) -> Op<ObjectRef>| (op(pair.a), op(pair.b));
        let op = match step.kind {
            0..=29 => one(dir, &create(n, &mut dice)),
            30..=44 => {
                let set = new_attrs(&mut dice);
                one(dir, &|dir| Op::MakeDir { dir, name: n.clone(), set })
            }
            45..=49 => one(dir, &symlink(n, &mut dice)),
            50..=53 => one(dir, &make_node(n, &mut dice)),
            54..=66 => one(dir, &|dir| Op::Remove { dir, name: n.clone() }),
            67..=73 => one(dir, &|dir| Op::RemoveDir { dir, name: n.clone() }),
            74..=93 => {
                let op = |from_dir, to_dir| Op::Rename {
                    from_dir,
                    from_name: n.clone(),
                    to_dir,
                    to_name: other.clone(),
                };
                (op(dir.a, to_dir.a), op(dir.b, to_dir.b))
            }
            94..=103 => {
                let op = |obj, dir| Op::Link { obj, dir, name: n.clone() };
                (op(file.a, to_dir.a), op(file.b, to_dir.b))
            }
            104..=149 => one(file, &write(&mut dice)),
            150..=164 => {
                let (offset, count) = (offset(&mut dice), dice.small(70_000));
                one(file, &|obj| Op::Read { obj, offset, count })
            }
            165..=184 => {
                let set = set_attrs(&mut dice);
                one(if set.size.is_some() { file } else { any }, &|obj| Op::SetAttr {
                    obj,
                    set,
                    guard: None,
                })
            }
            185..=196 => one(dir, &|dir| Op::Lookup { dir, name: n.clone() }),
            197..=200 => {
                let want = AccessMask(dice.small(64));
                one(any, &|obj| Op::Access { obj, want })
            }
            201..=204 => one(any, &|obj| Op::GetAttr { obj }),
            205..=206 => one(any, &|obj| Op::ReadLink { obj }),
            207..=211 => {
                let page = 1 + dice.small(40);
                return Meaning::ListAll { dir, page };
            }
            212..=219 => {
                let (offset, count) = (offset(&mut dice), count(&mut dice) * 3);
                one(file, &|obj| Op::Punch { obj, offset, count })
            }
            220..=227 => {
                let whole = dice.roll(2) == 0;
                let (offset, count) =
                    if whole { (0, 0) } else { (offset(&mut dice), count(&mut dice)) };
                one(file, &|obj| Op::Commit { obj, offset, count })
            }
            228..=239 => one(any, &xattr(n, &mut dice)),
            240 => one(any, &|obj| Op::FsStat { obj }),
            241..=250 => return Meaning::Checkpoint,
            251 => return Meaning::Event(Event::Restart),
            252..=255 => return Meaning::Event(Event::Crash),
        };
        Meaning::Op { who: who(step.who), op }
    }
}

fn create(name: Name, dice: &mut Dice) -> impl Fn(ObjectRef) -> Op<ObjectRef> + use<> {
    let how = match dice.roll(6) {
        0 => CreateHow::Exclusive(Verifier([dice.roll(3).to_le_bytes()[0]; 8])),
        1 | 2 => CreateHow::Unchecked(new_attrs(dice)),
        _ => CreateHow::Guarded(new_attrs(dice)),
    };
    move |dir| Op::Create { dir, name: name.clone(), how }
}

fn symlink(name: Name, dice: &mut Dice) -> impl Fn(ObjectRef) -> Op<ObjectRef> + use<> {
    let long = usize::try_from(1 + dice.roll(if dice.0.is_multiple_of(4) { 4096 } else { 60 }));
    let target = vec![b't'; long.unwrap_or(1)];
    move |dir| match LinkTarget::new(Bytes::copy_from_slice(&target)) {
        Ok(target) => Op::Symlink { dir, name: name.clone(), target, set: SetAttrs::default() },
        Err(status) => panic!("a target of 1 to 4096 bytes: {status}"),
    }
}

fn make_node(name: Name, dice: &mut Dice) -> impl Fn(ObjectRef) -> Op<ObjectRef> + use<> {
    let device = DeviceNo { major: dice.small(300), minor: dice.small(100_000) };
    let kind = match dice.roll(4) {
        0 => NodeKind::BlockDevice(device),
        1 => NodeKind::CharDevice(device),
        2 => NodeKind::Fifo,
        _ => NodeKind::Socket,
    };
    let set = SetAttrs { mode: Some(mode(dice)), ..SetAttrs::default() };
    move |dir| Op::MakeNode { dir, name: name.clone(), kind, set }
}

fn write(dice: &mut Dice) -> impl Fn(ObjectRef) -> Op<ObjectRef> + use<> {
    let stability = match dice.roll(5) {
        0 | 1 => Stability::Unstable,
        2 => Stability::DataSync,
        _ => Stability::FileSync,
    };
    let offset = offset(dice);
    let data = data(dice);
    move |obj| {
        let data = Payload::copy_from(offset, &data);
        Op::Write { obj, offset, data, stability }
    }
}

fn xattr(name: Name, dice: &mut Dice) -> impl Fn(ObjectRef) -> Op<ObjectRef> + use<> {
    let value = data(dice);
    let which = dice.roll(8);
    let how = match dice.roll(3) {
        0 => XattrHow::Create,
        1 => XattrHow::Replace,
        _ => XattrHow::Either,
    };
    move |obj| {
        let name = name.clone();
        match which {
            0..=3 => Op::SetXattr { obj, name, value: value[..value.len().min(2000)].into(), how },
            4 | 5 => Op::GetXattr { obj, name },
            6 => Op::RemoveXattr { obj, name },
            _ => Op::ListXattr { obj },
        }
    }
}
