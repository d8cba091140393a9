//! One operation number through all layers: what a disk does for an operation can be found by it.

mod common;

use std::io::Write;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use cairn_cf::{DModule, Manage, Managed};
use cairn_op::{
    ClientAddr, CreateHow, Credential, Name, ObjectRef, Op, OpCtx, ReadOnly, Reply, SetAttrs,
    Stability,
};
use cairn_sys::Payload;
use cairn_units::{Fsid, OpNo, VserverId};
use common::Rig;
use tracing_subscriber::fmt::MakeWriter;

/// Lines of the formatted trace.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    fn with(&self, a: &str, b: &str) -> usize {
        let bytes = self.0.lock().expect("one thread").clone();
        let text = String::from_utf8(bytes).expect("text");
        text.lines().filter(|l| l.contains(a) && l.contains(b)).count()
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("one thread").extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Lines {
    type Writer = Self;
    fn make_writer(&self) -> Self {
        self.clone()
    }
}

fn call(rig: &Rig, op_no: u64, op: Op<ObjectRef>) -> Reply<ObjectRef> {
    let ctx = OpCtx {
        vserver: VserverId::new(1),
        cred: Credential::root(),
        client: ClientAddr { ip: [127, 0, 0, 1].into(), port: 1 },
        op_no: OpNo::new(op_no),
        deadline: None,
        read_only: ReadOnly::No,
    };
    let node = rig.node();
    rig.sim.block_on(async { node.file(ctx, op).wait().await }).expect("it works")
}

#[test]
fn a_read_from_disk_and_a_log_record_carry_the_number_of_their_operation() {
    let lines = Lines::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(lines.clone())
        .finish();
    tracing::subscriber::with_default(subscriber, || {
        let mut rig = Rig::small(1);
        let fsid = Fsid::new(1);
        let request = Manage::VolumeCreate { fsid, name: "v".to_owned(), size_bytes: 16 << 20 };
        rig.sim.block_on(rig.node().manage(request)).expect("a volume");
        let root = match rig.sim.block_on(rig.node().manage(Manage::VolumeRoot { fsid })) {
            Ok(Managed::Root(root)) => root,
            other => panic!("{other:?}"),
        };
        let name = Name::new(Bytes::from_static(b"f")).expect("a name");
        let how = CreateHow::Unchecked(SetAttrs::default());
        let Reply::Made { obj, .. } = call(&rig, 4_001, Op::Create { dir: root, name, how }) else {
            panic!("a file")
        };
        let data = Payload::copy_from(0, &[7; 4096]);
        let write = Op::Write { obj, offset: 0, data, stability: Stability::FileSync };
        call(&rig, 4_002, write);
        assert_eq!(lines.with("op_no=4002", "logged lsn="), 1);
        rig.clean_restart();
        let before = lines.with("op_no=4003", "disk read");
        call(&rig, 4_003, Op::Read { obj, offset: 0, count: 4096 });
        assert!(lines.with("op_no=4003", "disk read") > before, "the block comes from a disk");
        assert!(lines.with("op_no=4003", "raid_read{") > 0);
        let cold = lines.with("op_no=4003", "disk read");
        call(&rig, 4_004, Op::Read { obj, offset: 0, count: 4096 });
        assert_eq!(lines.with("op_no=4004", "disk read"), 0, "a second read is in memory (F8)");
        assert_eq!(lines.with("op_no=4003", "disk read"), cold);
        assert!(lines.with("consistency_point{cp=", "disk write") > 0);
    });
}
