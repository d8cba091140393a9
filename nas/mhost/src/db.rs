//! The configuration database: tables of small values in one redb file.
//!
//! Every value is kept as `{version u8 = 1, crc32 u32 LE, JSON}`. The checksum covers the table's
//! name and the key as well, so that a value in the wrong place is as bad as a damaged one. A
//! transaction is durable when it returns. The cluster's replicated database will keep the same
//! tables behind the same calls.

use std::path::Path;

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::Serialize;
use serde::de::DeserializeOwned;

const VALUE_VERSION: u8 = 1;
const HEAD_BYTES: usize = 5;

/// The tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// Identity and keys of the node: one value, key "self".
    Node,
    /// Virtual servers by number.
    Vservers,
    /// Volumes by fsid (the volume location database).
    Volumes,
    /// Export policies by fsid.
    Policies,
    /// Administrators by name.
    Users,
    /// Jobs by number.
    Jobs,
    /// Locations of disks that were added after the node was set up.
    Disks,
    /// Settings by name.
    Settings,
    /// Next number of each kind.
    Sequences,
}

impl Table {
    /// All tables, made when the database is opened.
    const ALL: [Table; 9] = [
        Table::Node,
        Table::Vservers,
        Table::Volumes,
        Table::Policies,
        Table::Users,
        Table::Jobs,
        Table::Disks,
        Table::Settings,
        Table::Sequences,
    ];
    const fn name(self) -> &'static str {
        match self {
            Table::Node => "node",
            Table::Vservers => "vservers",
            Table::Volumes => "volumes",
            Table::Policies => "policies",
            Table::Users => "users",
            Table::Jobs => "jobs",
            Table::Disks => "disks",
            Table::Settings => "settings",
            Table::Sequences => "sequences",
        }
    }
    const fn definition(self) -> TableDefinition<'static, &'static str, &'static [u8]> {
        TableDefinition::new(self.name())
    }
}

/// Why the database failed.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// The file or the library.
    #[error("configuration database: {0}")]
    Store(#[source] Box<redb::Error>),
    /// A value does not have its checksum.
    #[error("configuration database: {table}/{key} is damaged; restore the file from a backup")]
    Damaged {
        /// Table.
        table: &'static str,
        /// Key.
        key: String,
    },
    /// A value of a newer release.
    #[error("configuration database: {table}/{key} has format {version}, this release reads 1")]
    Version {
        /// Table.
        table: &'static str,
        /// Key.
        key: String,
        /// Its format.
        version: u8,
    },
    /// A value that this release cannot read or write.
    #[error("configuration database: {table}/{key}: {source}")]
    Value {
        /// Table.
        table: &'static str,
        /// Key.
        key: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

fn store<E: Into<redb::Error>>(error: E) -> DbError {
    DbError::Store(Box::new(error.into()))
}

fn checksum(table: Table, key: &str, json: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    for part in [table.name().as_bytes(), b"/", key.as_bytes(), b"=", json] {
        crc.update(part);
    }
    crc.finalize()
}

pub(crate) fn encode<T: Serialize>(table: Table, key: &str, value: &T) -> Result<Vec<u8>, DbError> {
    let json = serde_json::to_vec(value).map_err(|source| DbError::Value {
        table: table.name(),
        key: key.to_owned(),
        source,
    })?;
    Ok(frame(table, key, &json))
}

/// Version and checksum in front of a value.
pub(crate) fn frame(table: Table, key: &str, json: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEAD_BYTES + json.len());
    out.push(VALUE_VERSION);
    out.extend_from_slice(&checksum(table, key, json).to_le_bytes());
    out.extend_from_slice(json);
    out
}

pub(crate) fn decode<T: DeserializeOwned>(
    table: Table,
    key: &str,
    bytes: &[u8],
) -> Result<T, DbError> {
    let damaged = || DbError::Damaged { table: table.name(), key: key.to_owned() };
    let (head, json) = bytes.split_first_chunk::<HEAD_BYTES>().ok_or_else(damaged)?;
    let [version, c0, c1, c2, c3] = *head;
    if version != VALUE_VERSION {
        return Err(DbError::Version { table: table.name(), key: key.to_owned(), version });
    }
    if u32::from_le_bytes([c0, c1, c2, c3]) != checksum(table, key, json) {
        return Err(damaged());
    }
    serde_json::from_slice(json).map_err(|source| DbError::Value {
        table: table.name(),
        key: key.to_owned(),
        source,
    })
}

/// The key of a numbered value: sorts as the number does.
pub fn number_key(number: u64) -> String {
    format!("{number:020}")
}

/// The database.
pub struct Db {
    inner: Database,
}

impl core::fmt::Debug for Db {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Db")
    }
}

impl Db {
    /// Opens or makes the database in a file.
    ///
    /// # Errors
    /// The file cannot be opened, is held by another process, or is no database.
    pub fn open(path: &Path) -> Result<Self, DbError> {
        let inner = Database::create(path).map_err(store)?;
        let db = Self { inner };
        db.update(|tx| {
            for table in Table::ALL {
                tx.inner.open_table(table.definition()).map_err(store)?;
            }
            Ok::<(), DbError>(())
        })?;
        Ok(db)
    }

    /// Runs `change` as one transaction: all of it or, when it fails, nothing.
    ///
    /// # Errors
    /// What `change` returned, or [`DbError`] when the commit failed.
    pub fn update<T, E: From<DbError>>(
        &self,
        change: impl FnOnce(&mut Tx) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut tx = Tx { inner: self.inner.begin_write().map_err(store)? };
        let out = change(&mut tx)?;
        tx.inner.commit().map_err(store)?;
        Ok(out)
    }

    /// One value.
    ///
    /// # Errors
    /// See [`DbError`].
    pub fn get<T: DeserializeOwned>(&self, table: Table, key: &str) -> Result<Option<T>, DbError> {
        let tx = self.inner.begin_read().map_err(store)?;
        let open = tx.open_table(table.definition()).map_err(store)?;
        let found = open.get(key).map_err(store)?;
        found.map(|bytes| decode(table, key, bytes.value())).transpose()
    }

    /// All values of a table, by key.
    ///
    /// # Errors
    /// See [`DbError`].
    pub fn list<T: DeserializeOwned>(&self, table: Table) -> Result<Vec<(String, T)>, DbError> {
        let tx = self.inner.begin_read().map_err(store)?;
        let open = tx.open_table(table.definition()).map_err(store)?;
        let mut out = Vec::new();
        for item in open.iter().map_err(store)? {
            let (key, bytes) = item.map_err(store)?;
            out.push((key.value().to_owned(), decode(table, key.value(), bytes.value())?));
        }
        Ok(out)
    }
}

/// A transaction that changes something.
pub struct Tx {
    inner: redb::WriteTransaction,
}

impl Tx {
    /// One value, as this transaction sees it.
    ///
    /// # Errors
    /// See [`DbError`].
    pub fn get<T: DeserializeOwned>(&self, table: Table, key: &str) -> Result<Option<T>, DbError> {
        let open = self.inner.open_table(table.definition()).map_err(store)?;
        let found = open.get(key).map_err(store)?;
        found.map(|bytes| decode(table, key, bytes.value())).transpose()
    }
    /// All values of a table, as this transaction sees them.
    ///
    /// # Errors
    /// See [`DbError`].
    pub fn list<T: DeserializeOwned>(&self, table: Table) -> Result<Vec<(String, T)>, DbError> {
        let open = self.inner.open_table(table.definition()).map_err(store)?;
        let mut out = Vec::new();
        for item in open.iter().map_err(store)? {
            let (key, bytes) = item.map_err(store)?;
            out.push((key.value().to_owned(), decode(table, key.value(), bytes.value())?));
        }
        Ok(out)
    }
    /// Sets a value.
    ///
    /// # Errors
    /// See [`DbError`].
    pub fn put<T: Serialize>(&mut self, table: Table, key: &str, value: &T) -> Result<(), DbError> {
        let bytes = encode(table, key, value)?;
        let mut open = self.inner.open_table(table.definition()).map_err(store)?;
        open.insert(key, bytes.as_slice()).map_err(store)?;
        Ok(())
    }
    /// Removes a value; one that is not there is fine.
    ///
    /// # Errors
    /// See [`DbError`].
    pub fn remove(&mut self, table: Table, key: &str) -> Result<(), DbError> {
        let mut open = self.inner.open_table(table.definition()).map_err(store)?;
        open.remove(key).map_err(store)?;
        Ok(())
    }
    /// The next number of a kind, counted from 1; never the same one twice.
    ///
    /// # Errors
    /// See [`DbError`].
    pub fn next_number(&mut self, kind: &str) -> Result<u64, DbError> {
        let last: u64 = self.get(Table::Sequences, kind)?.unwrap_or(0);
        let next = last.checked_add(1).ok_or_else(|| DbError::Damaged {
            table: Table::Sequences.name(),
            key: kind.to_owned(),
        })?;
        self.put(Table::Sequences, kind, &next)?;
        Ok(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_round_trips_and_any_flipped_bit_is_noticed() {
        let bytes = encode(Table::Volumes, "k", &vec!["text".to_owned()]).unwrap();
        let back: Vec<String> = decode(Table::Volumes, "k", &bytes).unwrap();
        assert_eq!(back, vec!["text".to_owned()]);
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode::<Vec<String>>(Table::Volumes, "k", &bad).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn value_in_another_place_is_refused() {
        let bytes = encode(Table::Volumes, "1", &5u64).unwrap();
        assert!(decode::<u64>(Table::Volumes, "2", &bytes).is_err());
        assert!(decode::<u64>(Table::Jobs, "1", &bytes).is_err());
    }

    #[test]
    fn number_keys_sort_as_numbers() {
        assert!(number_key(9) < number_key(10));
        assert_eq!(number_key(u64::MAX).len(), 20);
    }
}
