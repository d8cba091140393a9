//! Directories: a B+tree in the blocks of a file.
