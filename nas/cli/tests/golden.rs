//! What people see, letter by letter.

use cairn_cli::table;
use cairn_cli::watch::bar;
use cairn_mhost::api::{
    DiskView, ExplainBlock, ExplainView, ExportView, JobView, PlaceView, VolumeView,
};
use cairn_mhost::jobs::{JobKind, JobState, Progress};
use cairn_mhost::model::{ExportRule, RuleSquash, VolumeState};

fn disk(n: u8, role: &str) -> DiskView {
    DiskView {
        disk: format!("0000000{n}-0000-0000-0000-000000000000"),
        location: format!("/dev/sd{}", char::from(b'a' + n)),
        class: "hdd".to_owned(),
        size_bytes: 4 << 40,
        role: role.to_owned(),
        group: (role != "spare").then_some(0),
        column: (role != "spare").then_some(u16::from(n)),
        state: "online".to_owned(),
        rebuild_done: None,
        rebuild_total: None,
        reads: 0,
        blocks_read: 0,
        writes: 0,
        blocks_written: 0,
        flushes: 0,
        errors: u64::from(n),
    }
}

fn job(state: JobState, steps_done: u64, progress: Option<Progress>) -> JobView {
    JobView {
        id: 7,
        title: "take disk 1 out".to_owned(),
        what: JobKind::Rebuild,
        state,
        steps_done,
        steps_total: 2,
        step: "rebuild".to_owned(),
        progress,
        message: "every group is whole".to_owned(),
        what_to_do: String::new(),
        created_ns: 0,
        ended_ns: None,
    }
}

#[test]
fn disks_stand_in_columns() {
    let rebuilding = DiskView {
        state: "rebuilding".to_owned(),
        rebuild_done: Some(1),
        rebuild_total: Some(3),
        ..disk(1, "row parity")
    };
    let expected = "\
DISK                                  ROLE        GROUP  COLUMN  STATE                SIZE  ERRORS  CLASS  LOCATION
00000000-0000-0000-0000-000000000000  data            0       0  online           4.00 TiB       0  hdd    /dev/sda
00000001-0000-0000-0000-000000000000  row parity      0       1  rebuilding 33 %  4.00 TiB       1  hdd    /dev/sdb
00000002-0000-0000-0000-000000000000  spare           -       -  online           4.00 TiB       2  hdd    /dev/sdc
";
    assert_eq!(table::disks(&[disk(0, "data"), rebuilding, disk(2, "spare")]), expected);
}

#[test]
fn volumes_and_an_empty_list_have_headings() {
    let volume = VolumeView {
        name: "vol0".to_owned(),
        fsid: 1,
        vserver: "default".to_owned(),
        junction: "/vol0".to_owned(),
        state: VolumeState::Online,
        size_bytes: 10 << 30,
        used_bytes: 16384,
        files: 12,
    };
    let expected = "\
VOLUME  FSID  STATE       SIZE      USED  FILES  VSERVER  PATH
vol0       1  online  10.0 GiB  16.0 KiB     12  default  /vol0
";
    assert_eq!(table::volumes(&[volume]), expected);
    assert_eq!(table::volumes(&[]), "VOLUME  FSID  STATE  SIZE  USED  FILES  VSERVER  PATH\n");
}

#[test]
fn exports_show_each_rule_and_who_has_none() {
    let export = |volume: &str, rules| ExportView {
        volume: volume.to_owned(),
        path: format!("/{volume}"),
        rules,
    };
    let rules = vec![ExportRule::everybody(RuleSquash::None)];
    let expected = "\
PATH  VOLUME  CLIENTS   ACCESS  SQUASH  PORTS
/a    a       *         rw      none    any
/b    b       (nobody)  -       -       -
";
    assert_eq!(table::exports(&[export("a", rules), export("b", Vec::new())]), expected);
}

#[test]
fn explain_goes_from_the_path_down_to_the_disks() {
    let place = |column, dbn| PlaceView {
        column,
        disk: if column == 17 { String::new() } else { format!("d{column}") },
        location: format!("/dev/{column}"),
        dbn,
    };
    let block = ExplainBlock {
        vvbn: 5,
        pvbn: 70,
        pvbn_hint: 66,
        crc: 0xab,
        group: 0,
        stripe: 6,
        data: place(0, 100),
        parity: vec![place(16, 100), place(17, 100)],
    };
    let explained = ExplainView {
        path: "/vol0/f".to_owned(),
        volume: "vol0".to_owned(),
        fsid: 1,
        ino: 64,
        size_bytes: 9000,
        fbn: 2,
        state: "on disk".to_owned(),
        block: Some(block),
    };
    let expected = "\
path:            /vol0/f
volume:          vol0 (fsid 1)
inode:           64 (9000 bytes)
FBN:             2
state:           on disk
VVBN:            5
PVBN:            70 (the pointer's hint says 66)
CRC-32:          000000ab
RAID group:      0, stripe 6
data:            column 0: disk d0 (/dev/0), DBN 100
row parity:      column 16: disk d16 (/dev/16), DBN 100
diagonal parity: column 17: no disk, DBN 100
";
    assert_eq!(table::explain(&explained), expected);
}

#[test]
fn bar_fills_with_steps_and_their_progress() {
    let half = Progress { done: 5, total: 10, unit: "stripes".to_owned() };
    assert_eq!(
        bar(&job(JobState::Running, 1, Some(half))),
        "job 7 take disk 1 out [##################......] rebuild 50 % (5 of 10 stripes)"
    );
    assert_eq!(
        bar(&job(JobState::Done, 2, None)),
        "job 7 take disk 1 out [########################] every group is whole"
    );
    assert_eq!(
        bar(&job(JobState::Running, 0, None)),
        "job 7 take disk 1 out [........................] rebuild"
    );
}

#[test]
fn jobs_show_step_and_progress() {
    let expected = "\
JOB  STATE    STEP  WHAT             PROGRESS
  7  running   1/2  take disk 1 out  rebuild
  7  done      2/2  take disk 1 out  every group is whole
";
    let list = [job(JobState::Running, 1, None), job(JobState::Done, 2, None)];
    assert_eq!(table::jobs(&list), expected);
}

#[test]
fn command_line_is_sound_and_every_shell_has_a_completion() {
    use clap::{CommandFactory, ValueEnum};
    let mut command = cairn_cli::args::Args::command();
    command.clone().debug_assert();
    for shell in clap_complete::Shell::value_variants() {
        let mut out = Vec::new();
        clap_complete::generate(*shell, &mut command, "cairn", &mut out);
        assert!(!out.is_empty(), "{shell}");
    }
}

#[test]
fn cairnd_is_the_daemon_and_says_what_is_wrong_with_its_configuration() {
    let config = format!("{}/no-such.toml", env!("CARGO_TARGET_TMPDIR"));
    let cairn = env!("CARGO_BIN_EXE_cairn");
    let said = |program: &str, words: &[&str]| {
        let done = std::process::Command::new(program).args(words).output().expect("it runs");
        (done.status.code(), String::from_utf8([done.stdout, done.stderr].concat()).expect("text"))
    };
    let own = said(cairn, &["daemon", "--config", &config]);
    assert!(own.0 == Some(1) && own.1.starts_with("cairn: ") && own.1.contains(&config), "{own:?}");
    let cairnd = env!("CARGO_BIN_EXE_cairnd");
    assert_eq!(said(cairnd, &["--config", &config]), own);
    let version = (Some(0), format!("cairn-daemon {}\n", env!("CARGO_PKG_VERSION")));
    assert_eq!(said(cairnd, &["--version"]), version);
}
