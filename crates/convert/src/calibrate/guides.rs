//! From observed inputs to what the quantizers need of them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use shardwright_format::Unit;
use shardwright_format::unit::TensorEntry;
use shardwright_quant::{Encoding, Feedback, Guide, Method};

use super::statistics::{Moments, Observed, Place};

/// Added to the diagonal, as a share of its mean: inputs are never known well enough to be
/// trusted further.
pub const DAMPING: f32 = 0.05;

/// What an error of a tensor costs.
#[derive(Clone, Debug)]
pub enum Costs {
    /// The same everywhere: nothing is known of the inputs.
    Unknown,
    /// By column.
    Importance(Arc<[f32]>),
    /// By all pairs of columns.
    Feedback(Arc<Feedback>),
}

impl Costs {
    /// As the quantizer takes it.
    pub fn guide(&self) -> Guide<'_> {
        match self {
            Self::Unknown => Guide::Weights,
            Self::Importance(values) => Guide::Importance(values),
            Self::Feedback(feedback) => Guide::Feedback(feedback),
        }
    }

    /// The best that `method` can be with what is known.
    pub const fn method(&self, method: Method) -> Method {
        match (self, method) {
            (Self::Unknown, Method::Importance | Method::Gptq) => Method::Search,
            (Self::Importance(_), Method::Gptq) => Method::Importance,
            _ => method,
        }
    }
}

/// Factors are shared by the matrices of a place that are rounded in the same basis.
type Basis = (Place, bool);

/// Inputs that were observed, and the factors made of them so far.
#[derive(Debug, Default)]
pub struct Guides {
    observed: Observed,
    /// Whether the embedding is only looked up, and multiplied with nothing.
    untied: bool,
    factors: Mutex<BTreeMap<Basis, Arc<Feedback>>>,
}

impl Guides {
    /// Of what was observed.
    pub fn new(observed: Observed) -> Self {
        Self { observed, untied: false, factors: Mutex::default() }
    }

    /// The same for a model whose head is, or is not, the embedding.
    #[must_use]
    pub const fn tied(mut self, tied: bool) -> Self {
        self.untied = !tied;
        self
    }

    /// By place.
    pub const fn observed(&self) -> &Observed {
        &self.observed
    }

    /// What is known for a tensor of `unit`, by as much as `method` can use.
    ///
    /// # Errors
    /// Inputs of another width than the tensor's, or that no damping makes invertible.
    pub fn costs(&self, unit: Unit, entry: &TensorEntry, method: Method) -> Result<Costs, String> {
        let looked_up = self.untied && unit == Unit::Embedding;
        let coded = entry.encoding.float().is_none();
        let known = Place::of(unit, entry.role).filter(|_| coded && !looked_up);
        let Some((place, moments)) = known.and_then(|p| Some((p, self.observed.get(&p)?))) else {
            return Ok(Costs::Unknown);
        };
        if moments.cols() as u64 != entry.cols {
            let (expected, found) = (entry.cols, moments.cols());
            return Err(format!("statistics: expected {expected} inputs, found {found}"));
        }
        match (method, moments) {
            (_, Moments::Gram(gram)) if is_rotated(entry.encoding) => {
                self.feedback(place, gram, entry)
            }
            (_, Moments::Diagonal(values)) if is_rotated(entry.encoding) => {
                self.feedback(place, &diagonal(values), entry)
            }
            (Method::Gptq, Moments::Gram(gram)) => self.feedback(place, gram, entry),
            (Method::Gptq | Method::Importance, _) => {
                Ok(Costs::Importance(moments.diagonal().into()))
            }
            (Method::MinMax | Method::Search, _) => Ok(Costs::Unknown),
        }
    }

    fn feedback(&self, place: Place, gram: &[f32], entry: &TensorEntry) -> Result<Costs, String> {
        let basis = (place, is_rotated(entry.encoding));
        if let Some(found) = self.factors().get(&basis) {
            return Ok(Costs::Feedback(Arc::clone(found)));
        }
        // Not held while the factor is made: each unit has inputs of its own.
        let made = Feedback::new(gram, entry.cols as usize, DAMPING, entry.encoding);
        let made = Arc::new(made.map_err(|e| format!("statistics: {e}"))?);
        self.factors().insert(basis, Arc::clone(&made));
        Ok(Costs::Feedback(made))
    }

    fn factors(&self) -> MutexGuard<'_, BTreeMap<Basis, Arc<Feedback>>> {
        self.factors.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const fn is_rotated(encoding: Encoding) -> bool {
    matches!(encoding, Encoding::Trellis(_))
}

/// The matrix `[n, n]` with `values` on its diagonal.
fn diagonal(values: &[f32]) -> Vec<f32> {
    let n = values.len();
    let mut matrix = vec![0.0; n * n];
    for (at, value) in values.iter().enumerate() {
        matrix[at * n + at] = *value;
    }
    matrix
}

#[cfg(test)]
mod tests {
    use shardwright_format::{Role, SourceView};
    use shardwright_quant::{Affine, Float};
    use shardwright_runtime::InputSite;

    use super::*;

    fn entry(role: Role) -> TensorEntry {
        let encoding = Encoding::Affine(Affine::new(4, 32, Float::F16).unwrap());
        let source = SourceView {
            tensor: role.name().to_owned(),
            dtype: Float::F16,
            shape: vec![8, 32],
            start: 0,
            row_stride: 32,
            col_stride: 1,
            expert_stride: 0,
            decoder: None,
        };
        TensorEntry { role, encoding, rows: 8, cols: 32, offset: 0, source }
    }

    #[test]
    fn an_embedding_is_guided_by_the_heads_inputs_only_where_it_is_the_head() {
        let place = Place { layer: None, expert: None, site: InputSite::Head };
        let observed = || Observed::from([(place, Moments::Diagonal(vec![1.0; 32]))]);
        let embed = entry(Role::EmbedTokens);
        let costs = |tied, unit, entry: &TensorEntry| {
            let guides = Guides::new(observed()).tied(tied);
            guides.costs(unit, entry, Method::Importance).unwrap()
        };
        assert!(matches!(costs(true, Unit::Embedding, &embed), Costs::Importance(_)));
        assert!(matches!(costs(false, Unit::Embedding, &embed), Costs::Unknown));
        let head = entry(Role::LmHead);
        assert!(matches!(costs(false, Unit::Head, &head), Costs::Importance(_)));
    }
}
