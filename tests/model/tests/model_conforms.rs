//! The model passes its own conformance suite.

use std::sync::Arc;

use cairn_cf::DModule;
use cairn_model::{ModelNode, conformance};
use cairn_sim::SimWorld;

#[test]
fn the_model_passes_every_conformance_case() {
    let sim = SimWorld::new(1);
    let node: Arc<dyn DModule> = Arc::new(ModelNode::new(sim.world()));
    sim.jump_wall_clock(1_700_000_000_000_000_000);
    let cases = sim.block_on(conformance::run_all(&node));
    assert!(cases >= 80, "{cases} cases");
}
