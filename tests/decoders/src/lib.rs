//! Every decoder of bytes that come from a wire or a disk, as a function that takes any bytes.
//!
//! Layer: tests. [`decoders`] is the one list: a name, the function, and the seeds that a fuzzer
//! begins with (real encodings). `tests/fuzz` has a cargo-fuzz target for each name and its seeds
//! as files (both checked here); the tests of this crate run each on all kept inputs and on
//! mutated ones for a moment, so that a decoder that panics is found by `make test` already.
//! A target may assert what must hold of a decoded value, and must never fail otherwise.
//!
//! Where a checksum would refuse everything that a fuzzer makes up, the target makes it right
//! first: an attacker, or our own fault, can do that too.

pub mod admin;
pub mod nvlog;
pub mod patch;
pub mod raid;
pub mod rpc;
pub mod storage;
pub mod wafl;

/// One decoder.
#[derive(Clone, Copy)]
pub struct Decoder {
    /// Its name: that of the cargo-fuzz target and of the directory of its inputs.
    pub name: &'static str,
    /// Takes any bytes.
    pub run: fn(&[u8]),
    /// Inputs to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// Calls a macro with every decoder: `name: function, seeds;`.
#[macro_export]
macro_rules! decoders {
    ($callback:ident) => {
        $callback! {
            rpc_record: cairn_oncrpc::fuzzing::fuzz_record, $crate::rpc::record_seeds;
            xdr: cairn_oncrpc::fuzzing::fuzz_xdr, $crate::rpc::xdr_seeds;
            nfs_args: cairn_nfs::fuzzing::fuzz_args, $crate::rpc::nfs_args_seeds;
            nfs_mount_calls: $crate::rpc::nfs_mount_calls, $crate::rpc::call_seeds;
            rpcbind_calls: $crate::rpc::rpcbind_calls, $crate::rpc::rpcbind_seeds;
            rpcbind_reply: cairn_nfs::fuzzing::fuzz_rpcbind_reply, $crate::rpc::reply_seeds;
            cf_message: cairn_cf::codec::fuzz_decode, $crate::rpc::cf_seeds;
            file_handle: cairn_nmod::fuzz_handle, $crate::admin::handle_seeds;
            rest_body: cairn_mhost::fuzzing::fuzz_body, $crate::admin::body_seeds;
            database_value: cairn_mhost::fuzzing::fuzz_value, $crate::admin::value_seeds;
            node_config: $crate::admin::node_config, $crate::admin::config_seeds;
            disk_label: $crate::raid::disk_label, $crate::raid::label_seeds;
            raid_config: cairn_raid_group::fuzzing::fuzz_config, $crate::raid::config_seeds;
            root_slot: cairn_raid_group::fuzzing::fuzz_root_slot, $crate::raid::root_seeds;
            raid_stamps: cairn_raid_group::fuzzing::fuzz_stamps, $crate::raid::stamp_seeds;
            raid_open: $crate::raid::open_damaged, $crate::raid::open_seeds;
            nvlog_recover: $crate::nvlog::recover_damaged, $crate::nvlog::seeds;
            log_record: cairn_wafl_core::fuzz_log_record, $crate::storage::log_record_seeds;
            aggregate_root: $crate::wafl::aggregate_root, $crate::storage::root_seeds;
            volume_record: $crate::wafl::volume_record, $crate::storage::volume_seeds;
            inode: $crate::wafl::inode, $crate::storage::inode_seeds;
            block_pointers: $crate::wafl::block_pointers, $crate::wafl::pointer_seeds;
            directory: $crate::wafl::directory, $crate::wafl::directory_seeds;
            directory_check: $crate::wafl::directory_check, $crate::wafl::directory_seeds;
            xattrs: cairn_wafl_core::fuzz_xattrs, $crate::wafl::xattr_seeds;
            volumes_open: $crate::storage::open_damaged, $crate::storage::open_seeds;
        }
    };
}

macro_rules! list {
    ($($name:ident: $run:expr, $seeds:expr;)*) => {
        /// All of them.
        pub const DECODERS: &[Decoder] =
            &[$(Decoder { name: stringify!($name), run: $run, seeds: $seeds }),*];
    };
}
decoders!(list);

/// The decoder of this name.
pub fn decoder(name: &str) -> Option<Decoder> {
    DECODERS.iter().find(|known| known.name == name).copied()
}
