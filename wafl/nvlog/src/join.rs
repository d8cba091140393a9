//! Waits for several futures at once.
//!
//! Layer: inside `cairn-wafl-nvlog`. Polls all that are not done whenever one of them wakes: a
//! round has a handful of writes.

use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll};

use cairn_sys::BoxFuture;
use cairn_sys::lock::branch;

/// Completes with all results, in the order of the futures.
pub(crate) struct JoinAll<T> {
    parts: Vec<Part<T>>,
}

enum Part<T> {
    Running(BoxFuture<T>),
    Done(Option<T>),
}

impl<T: 'static> JoinAll<T> {
    pub(crate) fn new(futures: Vec<BoxFuture<T>>) -> Self {
        Self { parts: futures.into_iter().map(|f| Part::Running(branch(f))).collect() }
    }
}

impl<T: Unpin> Future for JoinAll<T> {
    type Output = Vec<T>;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Vec<T>> {
        let mut pending = false;
        for part in &mut self.parts {
            if let Part::Running(future) = part {
                match future.as_mut().poll(cx) {
                    Poll::Ready(value) => *part = Part::Done(Some(value)),
                    Poll::Pending => pending = true,
                }
            }
        }
        if pending {
            return Poll::Pending;
        }
        Poll::Ready(
            self.parts
                .iter_mut()
                .filter_map(|part| match part {
                    Part::Done(value) => value.take(),
                    Part::Running(_) => None,
                })
                .collect(),
        )
    }
}
