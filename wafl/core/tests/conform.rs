//! The storage manager passes the conformance suite of every D-module.

use crate::common::Rig;
use cairn_model::conformance;

#[test]
fn the_storage_manager_passes_every_conformance_case() {
    let rig = Rig::small(1);
    let node = rig.dmodule();
    let cases = rig.sim.block_on(conformance::run_all(&node));
    assert!(cases >= 80, "{cases} cases");
}
