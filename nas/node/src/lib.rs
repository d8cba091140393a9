//! The node: assembles every layer into `cairnd`.
