//! Logits of rows behind the last layer, from a head in memory or in pieces.

use shardwright_format::UnitLayout;
use shardwright_format::io::AlignedBuf;

use super::Model;
use crate::block::ops::rms_norm;
use crate::error::Result;
use crate::fetch::Request;
use crate::linear::Product;
use crate::plan::{HEAD_BUFFERS, head_chunk};

impl Model {
    /// Logits after the last `rows` rows.
    pub(super) fn compute_logits(&mut self, rows: usize) -> Result<()> {
        let Self { state, norm, spec, .. } = self;
        let (linear, normed) = (&mut state.work.linear, &mut state.work.normed);
        let last = &state.x[state.x.len() - rows * norm.len()..];
        rms_norm(linear.backend, last, norm, spec.rms_norm_eps, normed);
        let mut logits = std::mem::take(&mut self.logits);
        let done = self.head_logits(rows, &mut logits);
        self.logits = logits;
        done
    }

    /// The head's product with the rows in `state.work.normed`.
    pub(super) fn head_logits(&mut self, rows: usize, out: &mut Vec<f32>) -> Result<()> {
        let vocab = self.vocab();
        let Self { state, norm, head, .. } = self;
        out.resize(rows * vocab, 0.0);
        let Some(loaded) = &head.loaded else { return self.stream_logits(rows, out) };
        let matrix = loaded.view().matrix(head.entry.role, vocab, norm.len())?;
        let x = &state.work.normed;
        state.work.linear.compute(vec![Product { matrix, x, out }]);
        Ok(())
    }

    /// The head in pieces, the next one read while one is used.
    fn stream_logits(&mut self, rows: usize, all: &mut [f32]) -> Result<()> {
        let (unit, entry) = (self.head.unit, self.head.entry.clone());
        let layout = UnitLayout { tensors: [entry.clone()].into(), len: 0 };
        let (chunk, _) = head_chunk(&layout, entry.role)?;
        let (hidden, vocab, end) = (self.norm.len(), self.vocab(), entry.rows);
        self.pieces.resize_with(HEAD_BUFFERS, AlignedBuf::default);
        let request =
            |first: u64| Request::Rows(unit, entry.clone(), first..end.min(first + chunk));
        let mut next = 0;
        for first in (0..vocab).step_by(chunk as usize) {
            while next < end
                && let Some(buf) = self.pieces.pop()
            {
                self.store.request_piece(request(next), buf);
                next += chunk;
            }
            let loaded = self.store.take_piece(first as u64)?;
            let width = (vocab - first).min(chunk as usize);
            let matrix = loaded.view().matrix(entry.role, width, hidden)?;
            let (work, out) = (&mut self.state.work, &mut self.piece);
            out.resize(rows * width, 0.0);
            work.linear
                .compute(vec![Product { matrix, x: &work.normed, out }]);
            let logits = all.chunks_exact_mut(vocab);
            for (logits, out) in logits.zip(out.chunks_exact(width)) {
                logits[first..first + width].copy_from_slice(out);
            }
            self.pieces.push(loaded.bytes);
        }
        Ok(())
    }
}
