//! An executable reference model of a node: files in memory, behind the same traits.
