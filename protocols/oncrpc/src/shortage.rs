//! Who goes first when memory or places are short.
//!
//! Pure choices over what connections show of themselves; see the rules at [`crate::Limits`].
//! Asked connections judge for themselves whether the reason still holds.

use core::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use cairn_units::MonoTime;

use crate::config::IDLE_MIN;
use crate::control::{Control, Request};

/// Connections that are asked for their memory: those without progress, the longest first, until
/// `wanted` bytes come together.
pub(crate) fn for_bytes(all: &[Arc<Control>], now: MonoTime, wanted: u64) -> Vec<Arc<Control>> {
    let mut late: Vec<(u64, u64, &Arc<Control>)> = all
        .iter()
        .map(|c| (c, c.standing()))
        .filter(|(_, s)| s.scarce_deadline <= now.get() && s.held > 0)
        .map(|(c, s)| (s.scarce_deadline, s.held, c))
        .collect();
    late.sort_by_key(|(deadline, _, control)| (*deadline, control.id));
    let mut sum = 0u64;
    let needed = late.into_iter().take_while(|(_, held, _)| {
        let more = sum < wanted;
        sum = sum.saturating_add(*held);
        more
    });
    needed.map(|(_, _, control)| control.clone()).collect()
}

/// At most `count` connections that are asked for their places.
pub(crate) fn for_places(all: &[Arc<Control>], now: MonoTime, count: usize) -> Vec<Arc<Control>> {
    let idle_min = u64::try_from(IDLE_MIN.as_nanos()).unwrap_or(u64::MAX);
    let mut of_client: BTreeMap<IpAddr, usize> = BTreeMap::new();
    for control in all {
        *of_client.entry(control.client).or_default() += 1;
    }
    let mut idle: Vec<_> = all
        .iter()
        .map(|c| (c, c.standing()))
        .filter(|(c, s)| {
            s.idle_since.saturating_add(idle_min) <= now.get() && !c.is_asked(Request::Place)
        })
        .map(|(c, s)| {
            let most = Reverse(of_client.get(&c.client).copied().unwrap_or(0));
            ((most, s.answered, s.idle_since, c.id), c)
        })
        .collect();
    idle.sort_by_key(|(order, _)| *order);
    idle.into_iter().take(count).map(|(_, control)| control.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{NEVER, Standing};

    const SECOND: u64 = 1_000_000_000;

    fn control(id: u64, client: u8, standing: Standing) -> Arc<Control> {
        let control = Control::new(id, [10, 0, 0, client].into(), MonoTime::new(0));
        control.show(standing);
        Arc::new(control)
    }

    const IDLE: Standing = Standing {
        deadline: NEVER,
        scarce_deadline: NEVER,
        idle_since: 0,
        held: 0,
        answered: true,
    };

    fn ids(controls: &[Arc<Control>]) -> Vec<u64> {
        controls.iter().map(|c| c.id).collect()
    }

    #[test]
    fn the_longest_without_progress_gives_way_and_no_more_than_needed() {
        let late = |at, held| Standing { scarce_deadline: at, held, ..IDLE };
        let all = [
            control(1, 1, late(5, 100)),
            control(2, 1, late(3, 100)),
            control(3, 1, late(50, 100)),
            control(4, 1, late(1, 0)),
            control(5, 1, late(4, 100)),
        ];
        assert_eq!(ids(&for_bytes(&all, MonoTime::new(10), 150)), [2, 5]);
        assert_eq!(ids(&for_bytes(&all, MonoTime::new(10), 1000)), [2, 5, 1]);
        assert_eq!(ids(&for_bytes(&all, MonoTime::new(10), 0)), [0u64; 0]);
    }

    #[test]
    fn places_come_from_the_address_with_most_then_strangers_then_the_longest_idle() {
        let since = |idle_since, answered| Standing { idle_since, answered, ..IDLE };
        let all = [
            control(1, 1, since(0, false)),
            control(2, 2, since(3, true)),
            control(3, 2, since(2, true)),
            control(4, 2, since(4, false)),
            control(5, 2, since(NEVER, true)),
            control(6, 2, since(9 * SECOND, true)),
        ];
        let now = MonoTime::new(5 * SECOND);
        assert_eq!(ids(&for_places(&all, now, 9)), [4, 3, 2, 1]);
        all[3].ask(Request::Place);
        assert_eq!(ids(&for_places(&all, now, 2)), [3, 2]);
    }
}
