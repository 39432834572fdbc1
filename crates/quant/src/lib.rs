//! Numbers: `f32 <-> codes`, dot products over packed codes. No I/O, no threads.
//!
//! Scalar code defines every result; vector code gives the same bits on every CPU. One source
//! serves all of them: it is written over sixteen lanes (`kernel::Simd`), and a [`Backend`] says
//! which registers hold the lanes.

mod dot;
pub mod encoding;
mod feedback;
mod float;
mod ggml;
mod kernel;
mod matrix;
mod pack;
mod quantize;
mod trellis;

pub use dot::{axpy, dot};
pub use encoding::{Affine, Encoding, EncodingError, Float, Parts, Trellis};
pub use feedback::Feedback;
pub use float::{narrow, widen};
pub use ggml::Ggml;
pub use kernel::{Backend, gemm};
pub use matrix::{Activation, Matrix, MatrixError, matvec};
pub use pack::{pack, unpack};
pub use quantize::{Guide, Method, PartsMut, QuantError, QuantStats, quantize};
