//! Management operations, their answers, and the two kinds of message on the wire.

use cairn_units::{Crc, DiskUuid, Fbn, GroupNo, Pvbn, Vvbn};

use super::DecodeError;
#[cfg(test)]
use super::wire::Gen;
use super::wire::{Reader, Wire, Writer, wire_enum, wire_struct, wire_unit, wire_uuid};
use crate::{
    AggregateStatus, CfReply, CfRequest, CheckFinding, CheckReport, DiskPlace, DiskReport,
    ExplainedBlock, Explanation, GroupReport, Manage, ManageError, Managed, Metric, ScrubReport,
    VolumeStatus,
};

wire_unit!(Crc, Fbn, GroupNo, Pvbn, Vvbn);
wire_uuid!(DiskUuid);

wire_struct!(VolumeStatus { fsid, name, size_bytes, used_bytes, files, online });
wire_struct!(GroupReport { group, kind, data_disks, state, size_bytes });
wire_struct!(AggregateStatus { uuid, size_bytes, used_bytes, cp_count, groups, log_disks, faults });
wire_struct!(DiskReport {
    disk,
    location,
    class,
    size_bytes,
    role,
    position,
    state,
    rebuild,
    counters,
});
wire_struct!(ScrubReport {
    running,
    finished,
    progress,
    damaged,
    repaired,
    parity_mismatches,
    findings,
});
wire_struct!(CheckFinding { severity, volume, text });
wire_struct!(CheckReport {
    running,
    only,
    repair,
    progress,
    seen,
    found,
    repaired,
    left,
    findings,
    failed,
});
wire_struct!(DiskPlace { column, disk, location, dbn });
wire_struct!(ExplainedBlock { vvbn, pvbn, hint, crc, group, stripe, data, parity });
wire_struct!(Explanation { ino, fbn, block, state });
wire_struct!(Metric { name, labels, value });

wire_enum!(Manage {
    1 => VolumeCreate { fsid, name, size_bytes },
    2 => VolumeDelete { fsid },
    3 => VolumeResize { fsid, size_bytes },
    4 => VolumeRename { fsid, name },
    5 => VolumeList,
    6 => VolumeRoot { fsid },
    7 => ConsistencyPoint,
    8 => AggregateStatus,
    9 => DiskList,
    10 => DiskAdd { locations },
    11 => DiskFail { disk },
    12 => GroupGrow { group },
    13 => GroupAdd { disks },
    14 => ScrubStart,
    15 => ScrubStatus,
    16 => Explain { obj, fbn },
    17 => Counters,
    18 => CheckStart { only, repair, data },
    19 => CheckStatus,
    20 => DiskReplace { disk, with },
    21 => GroupKind { group, kind },
});

wire_enum!(Managed {
    1 => Done,
    2 => Volumes(volumes),
    3 => Root(root),
    4 => Aggregate(status),
    5 => Disks(disks),
    6 => DisksAdded(disks),
    7 => GroupAdded(group),
    8 => Scrub(report),
    9 => Explained(explanation),
    10 => Counters(metrics),
    11 => Check(report),
});

wire_enum!(ManageError {
    1 => NoSuchVolume(fsid),
    2 => NameTaken(name),
    3 => BadName(name),
    4 => NoSpace { needed_bytes, free_bytes },
    5 => Refused(text),
    6 => NoSuchObject,
    7 => Stopped(text),
});

wire_enum!(CfRequest { 1 => File(ctx, op), 2 => Manage(request) });
wire_enum!(CfReply { 1 => File(result), 2 => Manage(result) });
