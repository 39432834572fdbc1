//! Drafts of the model's own: what its layer for the token after next would go on with.

use super::Model;
use crate::block::ops::{cap, rms_norm};
use crate::error::Result;
use crate::prediction::{Predictor, ROWS};
use crate::text::greedy;
use crate::token::Guesses;

impl Model {
    /// Shows the layer, if it is there, what the model gave for `tokens`, computed from position `first` on.
    pub(super) fn show_predictor(&mut self, tokens: &[u32], first: usize) -> Result<()> {
        let Some(mut predictor) = self.predictor.take() else { return Ok(()) };
        let (backend, eps) = (self.state.work.linear.backend, self.spec.rms_norm_eps);
        // Few rows may have to go again, and none of those may be taken in.
        let mut shown = if predictor.pairs().len() + tokens.len() > ROWS {
            self.catch_up(&mut predictor)
        } else {
            Ok(())
        };
        let mut normed = Vec::new();
        for (i, token) in tokens.iter().enumerate() {
            let row = &self.state.x[i * self.norm.len()..][..self.norm.len()];
            rms_norm(backend, row, &self.norm, eps, &mut normed);
            predictor.push(first + i, *token, &normed);
            if predictor.pairs().len() == ROWS {
                shown = shown.and_then(|()| self.catch_up(&mut predictor));
            }
        }
        self.predictor = Some(predictor);
        shown
    }

    /// The layer goes back with the model.
    pub(super) fn go_back(&mut self) {
        if let Some(predictor) = &mut self.predictor {
            predictor.go_back(self.position);
        }
    }

    /// Takes in all pairs; what comes out for the last of them is ready for the head.
    fn catch_up(&mut self, predictor: &mut Predictor) -> Result<()> {
        if predictor.pairs().is_empty() {
            return Ok(());
        }
        let tokens = predictor.pairs().to_vec();
        let embeddings = self.embedded(&tokens)?;
        let given = predictor.take_in(&embeddings)?;
        self.last_guess.clear();
        self.last_guess.extend_from_slice(given);
        Ok(())
    }

    /// What the layer finds likeliest behind `last`, the token at the next position, token after token, at most
    /// `most`; shows the logits of each to `observe`. None where it lacks what the model gave before.
    pub(super) fn predict(
        &mut self,
        last: u32,
        most: usize,
        observe: Guesses<'_>,
    ) -> Result<Vec<u32>> {
        let Some(mut predictor) = self.predictor.take() else { return Ok(Vec::new()) };
        let drafted = if predictor.follow(self.position, last) {
            self.guesses(&mut predictor, most, observe)
        } else {
            Ok(Vec::new())
        };
        self.predictor = Some(predictor);
        drafted
    }

    fn guesses(
        &mut self,
        predictor: &mut Predictor,
        most: usize,
        observe: Guesses<'_>,
    ) -> Result<Vec<u32>> {
        self.catch_up(predictor)?;
        let (mut draft, mut logits) = (Vec::new(), Vec::new());
        loop {
            let Self { state, last_guess, .. } = self;
            state.work.normed.clone_from(last_guess);
            self.head_logits(1, &mut logits)?;
            cap(&mut logits, self.spec.logits_cap);
            observe(&logits);
            // A layer of no numbers has nothing to say.
            if logits.iter().any(|logit| !logit.is_finite()) {
                return Ok(draft);
            }
            let token = greedy(&logits);
            draft.push(token);
            if draft.len() >= most {
                return Ok(draft);
            }
            let embedding = self.embedded(&[token])?;
            let given = predictor.go_on(&embedding, self.position + draft.len() - 1)?;
            self.last_guess.clear();
            self.last_guess.extend_from_slice(given);
        }
    }
}
