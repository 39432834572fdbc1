//! Numbers: `f32 <-> codes`, dot products over packed codes. No I/O, no threads.
//!
//! Scalar code defines every result; vector code gives the same bits on every CPU. One source
//! serves all of them: it is written over sixteen lanes (`kernel::Simd`), and a [`Backend`] says
//! which registers hold the lanes.

mod activations;
mod ahead;
mod attention;
mod blocks;
mod dot;
mod dtype;
pub mod encoding;
mod error;
mod exp;
mod feedback;
mod float;
mod float8;
pub mod foreign;
mod ggml;
mod kept;
mod kernel;
mod matrix;
mod minifloat;
mod outer;
mod pack;
mod packed;
mod product;
mod quantize;
mod rows;
mod trellis;

pub use activations::{Activations, Copying};
pub use attention::{Attention, Part, SPANS, Span, attend, spans};
pub use blocks::{Blocks, Form};
pub use dot::{axpy, dot};
pub use dtype::ScaleType;
pub use encoding::{Affine, Encoding, EncodingError, Float, Parts, Trellis, Zeros};
pub use error::QuantError;
pub use exp::{Softmaxes, silu_mul, softmaxes};
pub use feedback::HessianFactor;
pub use float::{narrow, widen};
pub use float8::{f4_e2m1, f8_e4m3, f8_e5m2, f8_e8m0};
pub use ggml::{Ggml, Unheld};
pub use kept::{CacheType, Kept, VectorLayout};
pub use kernel::{Backend, BackendError, Outputs, return_free_pages, return_freed_memory};
pub use matrix::{Matrix, MatrixError};
pub use minifloat::{Element, Minifloat};
pub use outer::{Columns, add_outer_products};
pub use pack::{pack, unpack};
pub use product::{matmul, product_bytes};
pub use quantize::{Job, KEPT_COLS, Method, Objective, PartsMut, QuantStats, quantize};
