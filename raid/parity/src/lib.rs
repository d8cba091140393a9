//! XOR kernels and row-diagonal parity.
