//! The N-module: exports, file handles, routing to volumes.
