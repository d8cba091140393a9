//! The storage manager: buffers, volumes, messages, consistency points.
