//! The pool of pages under many threads. Alone in its process: the count is the process's.

use cairn_sys::BlockMut;
use cairn_sys::block::pages_in_use;

const THREADS: usize = 8;
const ROUNDS: usize = 50_000;

#[test]
fn pages_of_many_threads_are_counted() {
    let before = pages_in_use();
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                for round in 0..ROUNDS {
                    let held: Vec<BlockMut> = (0..round % 4).map(|_| BlockMut::dirty()).collect();
                    drop(held);
                }
            });
        }
    });
    assert_eq!(pages_in_use(), before, "every page was given back, and counted");
}
