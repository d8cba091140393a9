//! Locks that a task holds over its awaits.
//!
//! Layer: inside [`crate::lock`]. tokio's, which need no runtime, with a rank. The order is checked
//! when a lock is asked for, before anything waits.

use core::ops::{Deref, DerefMut};

use crate::lock::Rank;
use crate::lock::held::{Held, Key};

/// A lock that a task holds over its awaits.
pub struct AsyncMutex<T> {
    key: Key,
    inner: tokio::sync::Mutex<T>,
}

/// The value of an [`AsyncMutex`] while it is locked.
pub struct AsyncGuard<'l, T> {
    inner: tokio::sync::MutexGuard<'l, T>,
    _held: Held,
}

impl<T> AsyncMutex<T> {
    /// A lock of this rank.
    pub const fn new(rank: Rank, value: T) -> Self {
        Self::in_table(rank, 0, value)
    }
    /// A lock of a table: of several of this rank, the one with the lower `order` is taken first.
    pub const fn in_table(rank: Rank, order: u32, value: T) -> Self {
        Self { key: Key::new(rank, order), inner: tokio::sync::Mutex::const_new(value) }
    }
    /// Waits for the lock.
    pub async fn lock(&self) -> AsyncGuard<'_, T> {
        Held::ask(self.key);
        let inner = self.inner.lock().await;
        AsyncGuard { inner, _held: Held::by_task(self.key) }
    }
}

impl<T> Deref for AsyncGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.inner
    }
}
impl<T> DerefMut for AsyncGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

/// A lock that tasks hold over their awaits: many who share, or one alone. Who waits to have it
/// alone comes before those who want to share it later, so a task must not share it twice.
pub struct AsyncRwLock<T> {
    key: Key,
    inner: tokio::sync::RwLock<T>,
}

/// The value of an [`AsyncRwLock`], shared.
pub struct AsyncReadGuard<'l, T> {
    inner: tokio::sync::RwLockReadGuard<'l, T>,
    _held: Held,
}

/// The value of an [`AsyncRwLock`], alone.
pub struct AsyncWriteGuard<'l, T> {
    inner: tokio::sync::RwLockWriteGuard<'l, T>,
    _held: Held,
}

impl<T> AsyncRwLock<T> {
    /// A lock of this rank.
    pub const fn new(rank: Rank, value: T) -> Self {
        Self { key: Key::new(rank, 0), inner: tokio::sync::RwLock::const_new(value) }
    }
    /// Waits to share it.
    pub async fn read(&self) -> AsyncReadGuard<'_, T> {
        Held::ask(self.key);
        let inner = self.inner.read().await;
        AsyncReadGuard { inner, _held: Held::by_task(self.key) }
    }
    /// Waits to have it alone.
    pub async fn write(&self) -> AsyncWriteGuard<'_, T> {
        Held::ask(self.key);
        let inner = self.inner.write().await;
        AsyncWriteGuard { inner, _held: Held::by_task(self.key) }
    }
}

impl<T> Deref for AsyncReadGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.inner
    }
}
impl<T> Deref for AsyncWriteGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.inner
    }
}
impl<T> DerefMut for AsyncWriteGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}
