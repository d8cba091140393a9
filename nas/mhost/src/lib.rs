//! The M-host: configuration database, jobs, REST model.
