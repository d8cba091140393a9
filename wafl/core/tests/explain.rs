//! F6: what `explain` says is recomputed from the bytes on the simulated disks.

use crate::common::Rig;
use cairn_cf::{DModule, DiskPlace, ExplainedBlock, Manage, Managed};
use cairn_op::{
    ClientAddr, CreateHow, Credential, Name, ObjectRef, Op, OpCtx, ReadOnly, Reply, SetAttrs,
    Stability,
};
use cairn_sim::SimDisk;
use cairn_sys::Payload;
use cairn_units::{Dbn, Fbn, Fsid, OpNo, VserverId};

/// Rows of a block in the ring of p = 17, and bytes of one.
const ROWS: usize = 16;
const ROW_BYTES: usize = 256;
const P: usize = 17;
/// Place of row parity in the ring.
const ROW_PARITY_INDEX: usize = 16;

fn call(rig: &Rig, op: Op<ObjectRef>) -> Reply<ObjectRef> {
    let ctx = OpCtx {
        vserver: VserverId::new(1),
        cred: Credential::root(),
        client: ClientAddr { ip: [127, 0, 0, 1].into(), port: 1 },
        op_no: OpNo::new(1),
        deadline: None,
        read_only: ReadOnly::No,
    };
    let node = rig.node();
    rig.sim.block_on(async { node.file(ctx, op).wait().await }).expect("the operation works")
}

fn manage(rig: &Rig, request: Manage) -> Managed {
    let node = rig.node();
    rig.sim.block_on(node.manage(request)).expect("management works")
}

fn on_disk<'r>(rig: &'r Rig, place: &DiskPlace) -> (&'r SimDisk, Vec<u8>) {
    let disk = rig.disks.iter().find(|d| d.driver().info().location == place.location);
    let disk = disk.unwrap_or_else(|| panic!("no disk at {}", place.location));
    (disk, disk.image().visible(Dbn::new(place.dbn))[..].to_vec())
}

fn explain(rig: &Rig, obj: ObjectRef, fbn: u64) -> ExplainedBlock {
    match manage(rig, Manage::Explain { obj, fbn: Fbn::new(fbn) }) {
        Managed::Explained(e) => {
            assert_eq!(e.state, "on disk");
            e.block.expect("a placed block")
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn explain_names_the_bytes_on_disk_and_their_parity() {
    let rig = Rig::small(1);
    let fsid = Fsid::new(1);
    manage(&rig, Manage::VolumeCreate { fsid, name: "v".to_owned(), size_bytes: 64 << 20 });
    let Managed::Root(root) = manage(&rig, Manage::VolumeRoot { fsid }) else { panic!("root") };
    let name = Name::new(bytes::Bytes::from_static(b"file")).expect("a name");
    let how = CreateHow::Guarded(SetAttrs::default());
    let Reply::Made { obj, .. } = call(&rig, Op::Create { dir: root, name, how }) else {
        panic!("made")
    };
    let bytes: Vec<u8> =
        (0..40u32 * 4096).map(|i| (i.wrapping_mul(2_654_435_761) >> 11).to_le_bytes()[0]).collect();
    let data = Payload::copy_from(0, &bytes);
    call(&rig, Op::Write { obj, offset: 0, data, stability: Stability::FileSync });
    manage(&rig, Manage::ConsistencyPoint);
    for fbn in [0usize, 1, 17, 39] {
        let block = explain(&rig, obj, fbn as u64);
        assert_eq!(block.hint, block.pvbn, "no block was moved");
        let (_, found) = on_disk(&rig, &block.data);
        assert_eq!(found, &bytes[fbn * 4096..][..4096], "block {fbn} of the file");
        assert_eq!(crc32fast::hash(&found), block.crc.get());
        let [row, diagonal] = &block.parity[..] else { panic!("two parity blocks") };
        let parity_disks = [&row.location, &diagonal.location];
        // Every other disk is a data disk; its column in the ring is its column in the group.
        let mut row_sum = vec![0u8; 4096];
        let mut diagonal_sum = vec![0u8; P * ROW_BYTES];
        let mut add_diagonals = |index: usize, block: &[u8]| {
            for r in 0..ROWS {
                let d = (r + index) % P;
                for b in 0..ROW_BYTES {
                    diagonal_sum[d * ROW_BYTES + b] ^= block[r * ROW_BYTES + b];
                }
            }
        };
        let Managed::Disks(disks) = manage(&rig, Manage::DiskList) else { panic!("disks") };
        for report in disks.iter().filter(|d| !parity_disks.contains(&&d.location)) {
            let (_, column) = report.position.expect("all disks are in the group");
            let place = DiskPlace { location: report.location.clone(), ..block.data.clone() };
            let (_, content) = on_disk(&rig, &place);
            for (sum, byte) in row_sum.iter_mut().zip(&content) {
                *sum ^= byte;
            }
            add_diagonals(usize::from(column), &content);
        }
        assert_eq!(on_disk(&rig, row).1, row_sum, "row parity of block {fbn}");
        add_diagonals(ROW_PARITY_INDEX, &row_sum);
        let stored = &diagonal_sum[..ROWS * ROW_BYTES];
        assert_eq!(on_disk(&rig, diagonal).1, stored, "diagonal parity of block {fbn}");
    }
}
